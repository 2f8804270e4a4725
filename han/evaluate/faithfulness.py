"""Faithfulness: does the answer depend on the parts that an explanation ranks first?

Comprehensiveness is the loss of probability when the first 1, 5, 10, 20 and 50% of a review's parts are taken out, sufficiency the loss
when only they are kept; each is the mean over the five shares (DeYoung et al. 2020, "ERASER"). The probability is the calibrated one of
the label predicted for the whole review. A large comprehensiveness and a small sufficiency are faithful. Parts are taken out of the encoded
review, so that the boundaries of the other sentences stay where they are. Comprehensiveness of different models is not comparable.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

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
    """Values [S] of every sentence by each method; larger values rank first. `permuted_attention` and `random` must fail."""
    with torch.no_grad():
        vectors, _ = network.words(network.word_vectors(batch), batch.sentence_lengths)
        attention = _array(network.sentences(vectors, batch.review_lengths)[1])
    leave_one_out = np.nan_to_num(_array(effects.sentence_effects(network, vectors, batch.review_lengths).effects))
    return {"leave_one_out": leave_one_out, "attention": attention, **_controls(attention, _rows(batch, "sentences"), seed)}


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
    ranks, sizes = ranks_in_rows(values, rows)
    return float((leave_one_out[ranks < np.ceil(share * sizes - 1e-9)[rows]] < 0).mean())


def kendall(left: Floats, right: Floats) -> float:
    """Kendall's tau-b of two rankings of the same parts; NaN where one of them is constant."""
    signs = [np.sign(values[:, None] - values[None, :]) for values in (left, right)]
    norm = np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())
    return float((signs[0] * signs[1]).sum() / norm) if norm > 0 else float("nan")


def agreement(rankings: Mapping[str, Floats], rows: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Mean over the reviews of Kendall's tau between every two rankings."""
    bounds = np.cumsum(np.bincount(rows))[:-1]
    split = {name: np.split(values, bounds) for name, values in rankings.items()}
    return {
        one: {two: float(np.nanmean([kendall(*pair) for pair in zip(split[one], split[two], strict=True)])) for two in split if two != one}
        for one in split
    }


def bootstrap(values: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95% percentile interval of the mean of `values` [R]."""
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def report(network: HAN, batch: RaggedBatch, *, model: Model | None = None, words: bool = True, seed: int = 0) -> dict[str, Any]:
    """Every figure for both levels, ready for JSON. `model` scores the edited reviews, for example a `FoldedHAN` of `network`."""
    empty = network.read_out.bias.detach().double().cpu().numpy()
    rankings: dict[Parts, dict[str, Floats]] = {"sentences": sentence_rankings(network, batch, seed=seed)}
    if words:
        rankings["words"] = word_rankings(network, batch, seed=seed)
    results: dict[str, Any] = {"num_reviews": batch.num_reviews, "probabilities": "calibrated", "shares": list(SHARES)}
    for parts, of_parts in rankings.items():
        rows = _rows(batch, parts)
        methods = {
            method: {
                **losses(model or network, batch, values, parts=parts, empty_logits=empty).figures(seed=seed),
                "wrong_signs": wrong_signs(values, of_parts["leave_one_out"], rows),
            }
            for method, values in of_parts.items()
        }
        results[parts] = {"methods": methods, "kendall": agreement(of_parts, rows)}
    return results


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
