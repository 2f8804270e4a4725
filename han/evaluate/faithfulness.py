"""Faithfulness: does the answer depend on the parts that an explanation ranks first?

Comprehensiveness is the loss of probability when the first 1, 5, 10, 20 and 50% of a review's parts are taken out, sufficiency the loss
when only they are kept; each is the mean over the five shares (DeYoung et al. 2020, "ERASER"). The probability is the calibrated one of
the label predicted for the whole review. A large comprehensiveness and a small sufficiency are faithful. Parts are taken out of the encoded
review, so that the boundaries of the other sentences stay where they are. Comprehensiveness of different models is not comparable. The
normalised comprehensiveness places a method between the worst (0) and the best (1) greedy order of the sentences, which depends less on
the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from han.explain import charts
from han.model import effects
from han.model.effects import WordMethod
from han.model.network import HAN
from han.model.ragged import flat_batch
from han.types import Attention, RaggedBatch

SHARES = (0.01, 0.05, 0.10, 0.20, 0.50)
RESAMPLES = 1_000

Parts: TypeAlias = Literal["sentences", "words"]
Floats: TypeAlias = NDArray[np.float64]
Model: TypeAlias = Callable[[RaggedBatch], Attention]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Losses of probability of R reviews under one ranking."""

    removed: Floats  # [R, shares], without the first parts
    kept: Floats  # [R, shares], with the first parts only

    def figures(self, *, seed: int = 0) -> dict[str, Any]:
        """Means over reviews with 95% bootstrap intervals, ready for JSON."""
        figures: dict[str, Any] = {}
        for name, losses in (("comprehensiveness", self.removed), ("sufficiency", self.kept)):
            figures[name] = float(losses.mean())
            figures[f"{name}_interval"] = list(bootstrap(losses.mean(axis=1), seed=seed))
            figures[f"{name}_by_share"] = {f"{share:.0%}": float(value) for share, value in zip(SHARES, losses.mean(axis=0), strict=True)}
        return figures


def sentence_rankings(network: HAN, batch: RaggedBatch, *, seed: int = 0) -> dict[str, Floats]:
    """Values [S] of every sentence by each method; larger values rank first. `permuted_attention`, `random_weights`, `random` must fail."""
    leave_one_out, attention = _effects_and_attention(network, batch)
    random_weights, _ = _effects_and_attention(_random_weights(network, seed), batch)
    controls = {"random_weights": random_weights, **_controls(attention, _rows(batch, "sentences"), seed)}
    return {"leave_one_out": leave_one_out, "attention": attention, **controls}


@torch.no_grad()
def _effects_and_attention(network: HAN, batch: RaggedBatch) -> tuple[Floats, Floats]:
    """(effects [S], attention [S]) of the sentences; the only sentence of a review has the effect 0."""
    vectors, _ = network.words(network.word_vectors(batch), batch.sentence_lengths)
    result = effects.sentence_effects(network, vectors, batch.review_lengths)
    return np.nan_to_num(_array(result.effects)), _array(result.attention)


def word_rankings(
    network: HAN, batch: RaggedBatch, *, methods: Sequence[WordMethod] = get_args(WordMethod), seed: int = 0
) -> dict[str, Floats]:
    """Values [T] of every word by each method; larger values rank first. `permuted_attention`, `random_weights` and `random` must fail."""
    values: dict[str, Floats] = {method: np.nan_to_num(_array(effects.word_effects(network, batch, method=method))) for method in methods}
    attention = _array(effects.word_effects(network, batch, method="attention"))
    values["random_weights"] = np.nan_to_num(_array(effects.word_effects(_random_weights(network, seed), batch, method="gradient_input")))
    return {**values, **_controls(attention, _rows(batch, "words"), seed)}


@torch.no_grad()
def losses(model: Model, batch: RaggedBatch, values: Floats, *, parts: Parts, empty_logits: Floats) -> Losses:
    """Losses of probability when the parts with the largest `values` are taken out or kept.

    values: [S] or [T]. At least one part is taken, the number is rounded up. A review without any word has the logits `empty_logits`
    [C], which are the bias of the read-out.
    """
    rows = _rows(batch, parts)
    ranks, sizes = ranks_in_rows(values, rows)
    whole = _softmax(model(batch).logits.double().cpu().numpy())
    labels = whole.argmax(axis=1)
    reviews = np.arange(len(labels))
    results: dict[bool, list[Floats]] = {True: [], False: []}
    for share in SHARES:
        first = ranks < np.ceil(share * sizes - 1e-9)[rows]
        for keep in (True, False):
            mask = first if keep else ~first
            if parts == "sentences":
                mask = np.repeat(mask, batch.sentence_lengths.numpy())
            rest = _softmax(logits_of_kept(model, batch, mask, empty_logits=empty_logits))
            results[keep].append(whole[reviews, labels] - rest[reviews, labels])
    return Losses(removed=np.stack(results[False], axis=1), kept=np.stack(results[True], axis=1))


def logits_of_kept(model: Model, batch: RaggedBatch, mask: NDArray[np.bool_], *, empty_logits: Floats) -> Floats:
    """Logits [R, C] of the reviews with only the words of `mask` [T]; sentences without words are left out."""
    sentence_of = np.repeat(np.arange(len(batch.sentence_lengths)), batch.sentence_lengths.numpy())
    sentence_lengths = np.bincount(sentence_of[mask], minlength=len(batch.sentence_lengths))
    review_of = np.repeat(np.arange(batch.num_reviews), batch.review_lengths.numpy())
    review_lengths = np.bincount(review_of[sentence_lengths > 0], minlength=batch.num_reviews)
    logits = np.tile(empty_logits, (batch.num_reviews, 1))
    if mask.any():
        ids = batch.token_ids.cpu().numpy()[mask]
        rest = flat_batch(ids, sentence_lengths[sentence_lengths > 0].astype(np.int32), review_lengths[review_lengths > 0])
        with torch.no_grad():
            logits[review_lengths > 0] = model(rest).logits.double().cpu().numpy()
    return logits


def ranks_in_rows(values: Floats, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rank of each value in its row, the largest is 0; size of each row). rows: int64 [N], ascending. Ties keep their order."""
    sizes = np.bincount(rows)
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.lexsort((-values, rows))] = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks, sizes


def wrong_signs(values: Floats, leave_one_out: Floats, rows: NDArray[np.int64], *, share: float = 0.1) -> float:
    """Share of the first parts (the first tenth of each row) whose removal strengthens the answer although they rank as its support."""
    wrong = _wrong(values, leave_one_out, rows, share=share).sum(axis=0)
    return float(wrong[0] / wrong[1])


def _wrong(values: Floats, leave_one_out: Floats, rows: NDArray[np.int64], *, share: float = 0.1) -> Floats:
    """First parts whose removal strengthens the answer, and first parts, for each row: [R, 2]."""
    ranks, sizes = ranks_in_rows(values, rows)
    first = ranks < np.ceil(share * sizes - 1e-9)[rows]
    counts = [np.bincount(rows[mask], minlength=len(sizes)) for mask in (first & (leave_one_out < 0), first)]
    return np.stack(counts, axis=1).astype(np.float64)


def kendall(left: Floats, right: Floats) -> float:
    """Kendall's tau-b of two rankings of the same parts; NaN where one of them is constant."""
    signs = [np.sign(values[:, None] - values[None, :]) for values in (left, right)]
    norm = np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())
    return float((signs[0] * signs[1]).sum() / norm) if norm > 0 else float("nan")


def agreement(rankings: Mapping[str, Floats], rows: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Mean over the reviews of Kendall's tau between every two rankings."""
    return {one: {two: float(np.nanmean(values)) for two, values in others.items()} for one, others in _kendalls(rankings, rows).items()}


def _kendalls(rankings: Mapping[str, Floats], rows: NDArray[np.int64]) -> dict[str, dict[str, Floats]]:
    """Kendall's tau of every two rankings for each review, [R]."""
    bounds = np.cumsum(np.bincount(rows))[:-1]
    split = {name: np.split(values, bounds) for name, values in rankings.items()}
    return {
        one: {two: np.array([kendall(*pair) for pair in zip(split[one], split[two], strict=True)]) for two in split if two != one}
        for one in split
    }


def bootstrap(values: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95% percentile interval of the mean of `values` [R]."""
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of R reviews before they are averaged, for the sentences or for the words."""

    losses: dict[str, Losses]  # of each method
    wrong: dict[str, Floats]  # of each method, [R, 2]: first parts with the wrong sign, first parts
    kendall: dict[str, dict[str, Floats]]  # of every two methods, [R], NaN where it is not defined


def measure(network: HAN, batch: RaggedBatch, *, model: Model | None = None, words: bool = True, seed: int = 0) -> dict[Parts, Measured]:
    """The figures of each review of a batch. `model` scores the edited reviews, for example a `FoldedHAN` of `network`."""
    empty = network.read_out.bias.detach().double().cpu().numpy()
    rankings: dict[Parts, dict[str, Floats]] = {"sentences": sentence_rankings(network, batch, seed=seed)}
    if words:
        rankings["words"] = word_rankings(network, batch, seed=seed)
    results: dict[Parts, Measured] = {}
    for parts, of_parts in rankings.items():
        rows = _rows(batch, parts)
        of_methods = {
            method: losses(model or network, batch, values, parts=parts, empty_logits=empty) for method, values in of_parts.items()
        }
        if parts == "sentences":
            for name, strongest_first in (("best_order", True), ("worst_order", False)):
                values = greedy_order(network, batch, strongest_first=strongest_first)
                of_methods[name] = losses(model or network, batch, values, parts=parts, empty_logits=empty)
        results[parts] = Measured(
            losses=of_methods,
            wrong={method: _wrong(values, of_parts["leave_one_out"], rows) for method, values in of_parts.items()},
            kendall=_kendalls(of_parts, rows),
        )
    return results


@torch.no_grad()
def greedy_order(network: HAN, batch: RaggedBatch, *, strongest_first: bool) -> Floats:
    """Values [S] that rank first the sentences whose removal, one after the other, weakens the answer most (or strengthens it most).

    Half of the sentences of a review are ranked; the others have the value 0. The order is greedy, so a better one may exist.
    """
    vectors, _ = network.words(network.word_vectors(batch), batch.sentence_lengths)
    labels = network.logits(network.sentences(vectors, batch.review_lengths)[0]).argmax(dim=1)
    review_of = torch.from_numpy(_rows(batch, "sentences"))
    half = torch.ceil(batch.review_lengths * SHARES[-1] - 1e-9).long()
    values, kept = np.zeros(len(vectors)), torch.ones(len(vectors), dtype=torch.bool)
    for step in range(int(half.max())):
        lengths = torch.bincount(review_of[kept], minlength=batch.num_reviews)
        active = (lengths > 1) & (half > step)
        chosen = kept & active[review_of]
        if not chosen.any():
            break
        result = effects.sentence_effects(network, vectors[chosen.to(vectors.device)], lengths[active])
        rows = review_of[chosen]
        left = effects.evidence(result.logits_without, labels[rows.to(labels.device)]).cpu()
        order = np.lexsort((left.numpy() if strongest_first else -left.numpy(), rows.numpy()))
        first = order[np.r_[True, np.diff(rows.numpy()[order]) > 0]]
        places = torch.nonzero(chosen)[:, 0][torch.from_numpy(first)]
        values[places.numpy()] = len(vectors) - step
        kept[places] = False
    return values


def summarise(measured: Sequence[dict[Parts, Measured]], *, seed: int = 0) -> dict[str, Any]:
    """The report of all batches, ready for JSON: means over the reviews, intervals, and shares of the way from worst to best order."""
    results: dict[str, Any] = {"num_reviews": sum(_num_reviews(each["sentences"]) for each in measured)}
    results |= {"probabilities": "calibrated", "shares": list(SHARES)}
    for parts in ("sentences", "words"):
        own = [each[parts] for each in measured if parts in each]
        if not own:
            continue
        methods = {}
        for method in own[0].losses:
            joined = Losses(
                removed=np.concatenate([each.losses[method].removed for each in own]),
                kept=np.concatenate([each.losses[method].kept for each in own]),
            )
            methods[method] = joined.figures(seed=seed)
            if method in own[0].wrong:
                wrong = np.concatenate([each.wrong[method] for each in own]).sum(axis=0)
                methods[method]["wrong_signs"] = float(wrong[0] / wrong[1])
        if "best_order" in methods:
            _normalise(methods)
        results[parts] = {"num_reviews": sum(map(_num_reviews, own)), "methods": methods, "kendall": _joined_kendalls(own)}
    return results


def report(network: HAN, batch: RaggedBatch, *, model: Model | None = None, words: bool = True, seed: int = 0) -> dict[str, Any]:
    """Every figure for both levels, ready for JSON. `model` scores the edited reviews, for example a `FoldedHAN` of `network`."""
    return summarise([measure(network, batch, model=model, words=words, seed=seed)], seed=seed)


def failures(results: dict[str, Any]) -> list[str]:
    """Sanity checks that do not hold: a control that does not fail, or effects that are not more faithful than it."""
    problems = []
    for parts in ("sentences", "words"):
        methods = results.get(parts, {}).get("methods", {})
        for control in ("permuted_attention", "random_weights", "random"):
            if control in methods and methods[control]["comprehensiveness"] > methods["leave_one_out"]["comprehensiveness_interval"][0]:
                problems.append(f"{parts}: {control} is as comprehensive as leave_one_out")
    return problems


def plot(results: dict[str, Any]) -> str:
    """The loss of probability by the share of parts taken out, one line for each method, as an SVG that carries its own style."""
    drawn = [f"<style>{_STYLE}</style>"]
    left = 0
    for parts in ("sentences", "words"):
        methods = results.get(parts, {}).get("methods", {})
        if not methods:
            continue
        curves = {name: list(figures["comprehensiveness_by_share"].values()) for name, figures in methods.items()}
        y = charts.scale([value for curve in curves.values() for value in curve], percent=True)
        frame = charts.Frame(x=charts.Scale(low=0.009, high=0.55, log=True), y=y, width=430, height=300)
        body = [frame.axes(f"share of the {parts} taken out", "loss of probability")]
        for number, (name, curve) in enumerate(curves.items()):
            places = [frame.at(share, value) for share, value in zip(SHARES, curve, strict=True)]
            body += [charts.line(places, f"curve c{number % 8}"), *(charts.dot(place, f"c{number % 8}", 2.5) for place in places)]
            body.append(charts.dot((72, 34 + 14 * number), f"c{number % 8}", 3.5))
            body.append(charts.text(80, 38 + 14 * number, name.replace("_", " "), "tick"))
        drawn.append(f'<g transform="translate({left} 0)">{"".join(body)}</g>')
        left += 430
    figure = charts.svg(max(left, 1), 300, drawn)
    return figure.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777", "#aaaa00")  # Okabe and Ito
_STYLE = (
    "svg{background:#fdfcfa;font:11px sans-serif}.grid{fill:none;stroke:#e6e2da}.tick{fill:#6a665f}.name{fill:#1d1c1a}.end{text-anchor:end}"
    ".middle{text-anchor:middle}.curve{fill:none;stroke-width:1.8}"
    + "".join(f"circle.c{number}{{fill:{colour}}}.curve.c{number}{{stroke:{colour}}}" for number, colour in enumerate(_COLOURS))
)


def _normalise(methods: dict[str, dict[str, Any]]) -> None:
    """Not of sufficiency: the greedy orders are those of taking out, not of keeping."""
    high, low = (methods[name]["comprehensiveness"] for name in ("best_order", "worst_order"))
    for figures in methods.values():
        figures["comprehensiveness_normalised"] = (figures["comprehensiveness"] - low) / (high - low) if high != low else None


def _num_reviews(measured: Measured) -> int:
    return len(next(iter(measured.losses.values())).removed)


def _joined_kendalls(measured: Sequence[Measured]) -> dict[str, dict[str, float | None]]:
    joined: dict[str, dict[str, float | None]] = {}
    for one, others in measured[0].kendall.items():
        for two in others:
            values = np.concatenate([each.kendall[one][two] for each in measured])
            joined.setdefault(one, {})[two] = float(np.nanmean(values)) if np.isfinite(values).any() else None
    return joined


def _rows(batch: RaggedBatch, parts: Parts) -> NDArray[np.int64]:
    """The review of each sentence [S] or word [T]."""
    review_of = np.repeat(np.arange(batch.num_reviews), batch.review_lengths.numpy())
    return review_of if parts == "sentences" else np.repeat(review_of, batch.sentence_lengths.numpy())


def _controls(attention: Floats, rows: NDArray[np.int64], seed: int) -> dict[str, Floats]:
    generator = np.random.default_rng(seed)
    random = generator.random(len(rows))
    order = np.lexsort((random, rows))  # a permutation within each row
    return {"permuted_attention": attention[order], "random": generator.random(len(rows))}


def _random_weights(network: HAN, seed: int) -> HAN:
    """A copy whose weights are permuted within each tensor: the same distribution, nothing learnt."""
    shuffled = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in shuffled.parameters():
            order = torch.randperm(weight.numel(), generator=generator)
            weight.copy_(weight.flatten()[order.to(weight.device)].view_as(weight))
    return shuffled


def _array(values: torch.Tensor) -> Floats:
    return values.detach().double().cpu().numpy()


def _softmax(logits: Floats) -> Floats:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))
