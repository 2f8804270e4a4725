"""The effect of a sentence or a word: how much the answer changes when it is taken out of the encoded review.

The *evidence* of a review is the log-odds of its label: ln(p / (1 - p)), in nats, from the calibrated logits. With two labels it is the
difference of the two logits. The label is the predicted one of the whole review and stays fixed. The *effect* of a part is the evidence of
the whole review minus the evidence of the review without that part: a positive effect supports the answer, a negative one contradicts it.
The only part of a review has no effect (NaN), because the review without it would be empty, and empty reviews are refused.

An edit changes one element of a row (a sentence of a review, a word of a sentence). The forward states before it and the backward states
after it do not change, so only the other half of the states is computed again, and for at most `REACH` elements on either side: the cost
is linear in the length of the row. Rows of at most `REACH + 1` elements are exact. In longer rows, the states beyond are those of the
unedited row. On a CPU a compiled kernel computes the states, and stops where they differ by at most `SAME_STATE` from the unedited ones.

Without a word, the n-grams of the two words after it are others: in a network with n-grams their inputs are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from han.model.gru import row_product, run_in_threads
from han.model.network import HAN, CompiledLevel, Level
from han.model.ngrams import ORDERS
from han.types import RaggedBatch

REACH = 256  # elements on either side of an edit whose states are computed again
FOLLOWING = ORDERS - 1  # words after an edit whose n-grams change
EDITS_AT_ONCE = 8_192  # limits the memory: 5 kB an edit at 50 hidden units
SAME_STATE = 1e-6  # of a unit of a state: moves an effect of the shipped model by less than 2e-6
LARGEST_SPAN = 8  # words of a phrase in `flipping_spans`
SUBSETS = 4_096  # sets of sentences that `flipping_sentences` tries before it becomes greedy

WordMethod: TypeAlias = Literal[
    "leave_one_out", "attention_share", "gradient_input", "midpoint_gradient", "integrated_gradients", "attention"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceEffects:
    """Effects of all S sentences of R reviews, in nats. evidence = nothing + sum of effects + interaction, for each review."""

    logits: Tensor  # float [R, C], of the whole reviews
    attention: Tensor  # float [S], of the whole reviews
    labels: Tensor  # int64 [R], the predicted labels
    evidence: Tensor  # float [R], of the whole reviews
    nothing: Tensor  # float [R], of a review without any sentence: the bias of the read-out
    effects: Tensor  # float [S]; NaN for the only sentence of a review
    sums: Tensor  # float [R], of the effects; NaN for a review of one sentence
    interaction: Tensor  # float [R], what the effects leave unexplained; NaN for a review of one sentence
    logits_without: Tensor  # float [S, C], of the review without the sentence; NaN for the only sentence of a review


def evidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds [N] of `labels` int64 [N] under calibrated `logits` [N, C], in nats."""
    own = logits.gather(1, labels[:, None])[:, 0]
    if logits.shape[1] == 2:  # the same numbers without an exponential
        return own - logits.gather(1, 1 - labels[:, None])[:, 0]
    return own - torch.logsumexp(logits.scatter(1, labels[:, None], -torch.inf), dim=1)


@torch.no_grad()
def sentence_effects(
    network: HAN,
    vectors_SD: Tensor,
    review_lengths: Tensor,
    *,
    compiled_level: CompiledLevel | None = None,
    reach: int = REACH,
) -> SentenceEffects:
    """The effect of every sentence of R reviews, from their sentence vectors.

    vectors_SD: output of `network.words`, all sentences end to end; review_lengths: int64 [R], on the CPU, all >= 1; compiled_level:
    `CompiledLevel.of(network.sentences)`, where it is kept. Equal to scoring the encoded review without the sentence's tokens,
    within the rounding of float32, for reviews of at most `reach + 1` sentences.
    """
    rows = _Rows(network.sentences, vectors_SD, review_lengths, compiled_level)
    logits_RC = network.logits(rows.vectors())
    labels = logits_RC.argmax(dim=1)
    whole = evidence(logits_RC, labels)
    review_of = rows.row_of
    places = torch.arange(len(vectors_SD), device=vectors_SD.device)
    logits_SC = network.logits(_edited(rows, places, None, None, reach))
    logits_SC = logits_SC.masked_fill((rows.first == rows.last)[:, None], torch.nan)
    effects = whole[review_of] - evidence(logits_SC, labels[review_of])
    sums = torch.zeros_like(whole).index_add(0, review_of, effects)
    nothing = evidence(network.read_out.bias.expand(len(labels), -1), labels)
    return SentenceEffects(
        logits=logits_RC,
        attention=rows.softmax(),
        labels=labels,
        evidence=whole,
        nothing=nothing,
        effects=effects,
        sums=sums,
        interaction=whole - nothing - sums,
        logits_without=logits_SC,
    )


def word_effects(network: HAN, batch: RaggedBatch, *, method: WordMethod = "leave_one_out", steps: int = 20) -> Tensor:
    """One value [T] for every word, for the predicted label of its review, in nats except for `attention`.

    `leave_one_out` is the effect by definition: the exact one within the limits of `REACH`. The others are estimates in one or a few
    passes: `attention_share` lets the word's share of the sentence vector act along the gradient, `gradient_input` is the gradient times
    the word vector, `midpoint_gradient` the same with the gradient at half of all word vectors, `integrated_gradients` its mean over
    `steps` points from no vector to the vector. `attention` is the word's attention times its sentence's, a share of the review without a
    sign. Leave-one-out costs many times a pass, so it is meant for single reviews. Network and batch are on the same device; the network
    is in evaluation mode.
    """
    if method == "leave_one_out":
        return _left_out(network, batch)
    if method == "attention":
        return _attention(network, batch)
    if method == "attention_share":
        return _attention_share(network, batch)
    steps = steps if method == "integrated_gradients" else 1
    return _integrated_gradients(network, batch, steps=steps, at_end=method == "gradient_input")


@torch.no_grad()
def edited(
    level: Level,
    inputs_TE: Tensor,
    lengths: Tensor,
    places: Tensor,
    replacements: Tensor | None = None,
    *,
    following: Tensor | None = None,
    reach: int = REACH,
) -> Tensor:
    """The vectors [N, size] of N edited rows. Edit n takes element `places[n]` out of its row, or puts `replacements[n]` in its place.

    inputs_TE and lengths: the rows, as for `Level.forward`; places: int64 [N], indices into inputs_TE; replacements: [N, E]. following:
    [N, FOLLOWING, E], new inputs of the elements after the one that is taken out; those beyond the end of the row are ignored. A row
    whose only element is taken out has the vector 0.
    """
    return _edited(_Rows(level, inputs_TE, lengths), places, replacements, following, reach)


def _edited(rows: _Rows, places: Tensor, replacements: Tensor | None, following: Tensor | None, reach: int) -> Tensor:
    parts = [slice(first, first + EDITS_AT_ONCE) for first in range(0, len(places), EDITS_AT_ONCE)]
    vectors = [rows.edit(places[part], _part(replacements, part), _part(following, part), reach) for part in parts]
    return torch.cat(vectors) if vectors else rows.inputs.new_empty(0, rows.level.size)


def _part(inputs: Tensor | None, part: slice) -> Tensor | None:
    return None if inputs is None else inputs[part]


class _Rows:
    """States, attention scores and sums of the unedited rows, which all edits of them share."""

    def __init__(self, level: Level, inputs_TE: Tensor, lengths: Tensor, compiled_level: CompiledLevel | None = None) -> None:
        self.level, self.inputs = level, inputs_TE
        device = inputs_TE.device
        ends = torch.cumsum(lengths, 0)
        self.starts = (ends - lengths).to(device)
        self.row_of = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)  # [T]
        self.first = self.starts[self.row_of]  # [T], of the element's row
        self.last = (ends - 1).to(device)[self.row_of]
        kept = compiled_level or CompiledLevel.of(level)
        self.compiled = _CompiledRows(kept, inputs_TE, lengths, self.first, self.last) if kept is not None else None
        if self.compiled is not None:
            self.states, self.shift, self.sums = self.compiled.states, self.compiled.shift, self.compiled.sums
        else:
            self._read(level, inputs_TE, lengths)
        self.hidden = self.states.shape[1] // 2
        if level.gru is not None:
            self.weights = list(zip(*map(level.gru.both_ways, ("weight_hh", "bias_hh")), strict=True))

    def _read(self, level: Level, inputs_TE: Tensor, lengths: Tensor) -> None:
        """The states and sums without the compiled kernels."""
        self.states = level.gru(inputs_TE, lengths) if level.gru is not None else inputs_TE
        if level.gru is not None:
            hidden = self.states.shape[1] // 2
            ways = (slice(0, hidden), slice(hidden, None))
            # tanh(W h + b) splits into the parts of the two directions, and an edit changes one of them.
            self.attention = [level.attention.weight[:, way].T for way in ways]
            projected = torch.split(level.gru.project(inputs_TE), 3 * hidden, dim=1)
            others = [self.states[:, way] for way in reversed(ways)]
            scored = [torch.addmm(level.attention.bias, other, self.attention[1 - way]) for way, other in enumerate(others)]
            # What a step of each direction reads of an element, side by side, because most of the time goes into reading it.
            self.read = [torch.cat(parts, dim=1) for parts in zip(projected, scored, others, strict=True)]
        scores = level.scores(self.states)
        highest = scores.new_full((len(lengths),), -torch.inf).scatter_reduce(0, self.row_of, scores, "amax")
        self.shift = highest[self.row_of].double()  # keeps exp in range; float64 leaves room for the scores of edited rows
        self.shares = torch.exp(scores.double() - self.shift)
        self.mass = torch.cat([self.shares[:, None] * self.states, self.shares[:, None]], dim=1)  # float64 [T, size + 1]
        self.sums = torch.cat([self.mass.new_zeros(1, self.mass.shape[1]), torch.cumsum(self.mass, 0)])
        self.totals = torch.zeros_like(self.mass).index_add(0, self.first, self.mass)  # at the first element of a row its sum

    def vectors(self) -> Tensor:
        """The vectors [rows, size] of the unedited rows."""
        return self.compiled.read.vectors if self.compiled is not None else self._vectors(self.totals[self.starts])

    def softmax(self) -> Tensor:
        """The attention [T] of the unedited rows, which sums to 1 in each of them."""
        if self.compiled is not None:
            return self.compiled.read.attention
        return (self.shares / self.totals[self.first, -1]).to(self.inputs.dtype)

    def half(self, way: int) -> Tensor:
        """States [T, H] of the forward (0) or the backward (1) direction."""
        return self.states[:, way * self.hidden : (way + 1) * self.hidden]

    def edit(self, places: Tensor, replacements: Tensor | None, following: Tensor | None, reach: int) -> Tensor:
        first, last = self.first[places], self.last[places]
        if self.level.gru is None:
            mass = self.sums[last + 1] - self.sums[first] - self.mass[places]
            if replacements is not None:
                mass += self._weighed(replacements, self.level.scores(replacements), places)
            return self._vectors(mass)
        if self.compiled is not None and replacements is None and following is None:
            return self._vectors(self.compiled.without((places, places), [], self, reach))
        end = places if following is None else torch.minimum(places + FOLLOWING, last)  # of what changes its input
        mass = self.sums.new_zeros(len(places), self.sums.shape[1])
        starts = [self._before(way, places) for way in (0, 1)]
        if replacements is not None:
            projected = torch.split(self.level.gru.project(replacements), 3 * self.hidden, dim=1)
            starts = [self._step(way, inputs, state) for way, (inputs, state) in enumerate(zip(projected, starts, strict=True))]
            states = torch.cat(starts, dim=1)
            mass += self._weighed(states, self.level.scores(states), places)
        if following is not None:
            starts = self._follow(following, places, end, starts[0], mass)
        if self.compiled is not None:
            return self._vectors(mass + self.compiled.without((end, places), starts, self, reach))
        low = torch.maximum(places - reach, first)
        high = torch.maximum(torch.minimum(places + reach, last), end)
        mass += self.sums[low] - self.sums[first] + self.sums[last + 1] - self.sums[high + 1]
        self._run(0, starts[0], end, high - end, mass)
        self._run(1, starts[1], places, places - low, mass)
        return self._vectors(mass)

    def _follow(self, following: Tensor, places: Tensor, end: Tensor, state: Tensor, mass: Tensor) -> list[Tensor]:
        """Add the elements after an edit to `mass`, with their new inputs. Returns the states [N, H] that leave them in both directions."""
        assert self.level.gru is not None  # noqa: S101
        projected = [torch.split(self.level.gru.project(new), 3 * self.hidden, dim=1) for new in following.unbind(1)]
        exists = [(places + number <= end)[:, None] for number in range(1, FOLLOWING + 1)]
        forwards, backwards = [state], [self._before(1, end)]
        for number in range(FOLLOWING):
            forwards.append(torch.where(exists[number], self._step(0, projected[number][0], forwards[-1]), forwards[-1]))
        for number in reversed(range(FOLLOWING)):
            backwards.append(torch.where(exists[number], self._step(1, projected[number][1], backwards[-1]), backwards[-1]))
        for number in range(FOLLOWING):
            states = torch.cat([forwards[number + 1], backwards[FOLLOWING - number]], dim=1)
            scores = self.level.scores(states)
            mass += self._weighed(states, scores, places) * exists[number]
        return [forwards[-1], backwards[-1]]

    def _before(self, way: int, places: Tensor) -> Tensor:
        """The state [N, H] that reaches each place in this direction: 0 at the end of a row."""
        neighbours = places - 1 if way == 0 else places + 1
        at_end = places == (self.first if way == 0 else self.last)[places]
        states = self.half(way)[neighbours.clamp(0, len(self.inputs) - 1)]
        return states.masked_fill(at_end[:, None], 0.0)

    def _step(self, way: int, projected: Tensor, state: Tensor) -> Tensor:
        """h_t of `torch.nn.GRU` from W_ih x + b_ih [N, 3H] and h_{t-1} [N, H]."""
        weight, bias = self.weights[way]
        hidden = self.hidden
        products = row_product(state, weight, bias)
        gates = torch.sigmoid(projected[:, : 2 * hidden] + products[:, : 2 * hidden])
        candidate = torch.tanh(torch.addcmul(projected[:, 2 * hidden :], gates[:, :hidden], products[:, 2 * hidden :]))
        return torch.lerp(candidate, state, gates[:, hidden:])

    def _run(self, way: int, state: Tensor, places: Tensor, num_steps: Tensor, mass: Tensor) -> None:
        """Add to `mass` the elements that follow the edit in this direction, with their new states."""
        order = torch.argsort(num_steps, descending=True)
        sign = 1 if way == 0 else -1
        own = slice(way * self.hidden, (way + 1) * self.hidden)
        other = slice((1 - way) * self.hidden, (2 - way) * self.hidden)
        sizes = [3 * self.hidden, len(self.level.context), self.hidden]
        state, places = state[order], places[order]
        sums = torch.zeros_like(mass)
        # How many edits still have an element at each distance: the edits are sorted, so these are the first ones.
        active = len(order) - torch.cumsum(torch.bincount(num_steps), 0)
        for distance, size in enumerate(active[:-1].tolist(), start=1):
            now = places[:size] + sign * distance
            projected, scored, other_state = torch.split(self.read[way].index_select(0, now), sizes, dim=1)
            state = self._step(way, projected, state[:size])
            scores = torch.addmm(scored, state, self.attention[way]).tanh_() @ self.level.context
            weights = torch.exp(scores.double() - self.shift.index_select(0, now))[:, None]
            sums[:size, own].addcmul_(weights, state)
            sums[:size, other].addcmul_(weights, other_state)
            sums[:size, -1:] += weights
        mass.index_add_(0, order, sums)

    def _weighed(self, states: Tensor, scores: Tensor, places: Tensor) -> Tensor:
        weights = torch.exp(scores.double() - self.shift[places])[:, None]
        return torch.cat([weights * states, weights], dim=1)

    def _vectors(self, mass: Tensor) -> Tensor:
        # A row without elements has the sums 0 and the vector 0.
        return (mass[:, :-1] / mass[:, -1:].clamp_min(torch.finfo(mass.dtype).tiny)).to(self.inputs.dtype)


class _CompiledRows:
    """The states of the unedited rows, and the sums of edited ones, from the compiled kernels."""

    def __init__(self, level: CompiledLevel, inputs_TE: Tensor, lengths: Tensor, first: Tensor, last: Tensor) -> None:
        """first, last: int64 [T], the first and the last element of each element's row."""
        self._level = level
        self._projected = level.project(inputs_TE)
        self.read = level(self._projected, np.arange(len(inputs_TE)), lengths, keep=True)
        self.states = torch.from_numpy(self.read.states)  # [T, 2H]
        attention, bias, _ = level.attention
        # tanh(W h + b) splits into the parts of the two directions, and an edit changes one of them.
        self._attention = attention.reshape(2, level.hidden, -1)
        self._scored = np.empty((2, len(inputs_TE) * len(bias)), bias.dtype)
        level.kernels.score_others(self.read.states, self._attention, bias, self._scored)
        shift, sums = np.empty(len(inputs_TE)), np.zeros((len(inputs_TE) + 1, 2 * level.hidden + 1))
        level.kernels.sum_rows(self.read.states, self.read.scores, first.numpy(), last.numpy(), shift, sums)
        self.shift, self.sums = torch.from_numpy(shift), torch.from_numpy(sums)

    def without(self, places: tuple[Tensor, Tensor], starts: Sequence[Tensor], rows: _Rows, reach: int) -> Tensor:
        """Sums, float64 [N, size + 1], of the elements beyond the places, in both directions.

        places: for both directions the last element [N] whose state is known; starts: the state [N, H] that it leaves; none if the element
        is taken out.
        """
        begin = torch.stack(list(starts)).numpy() if starts else np.empty((2, 0, rows.hidden), self.read.states.dtype)
        sums = np.zeros((len(places[0]), rows.sums.shape[1]))
        arrays = (self._projected, self.read.states, self._scored, rows.shift.numpy(), rows.sums.numpy())
        weights = (*self._level.recurrent, self._attention, self._level.attention[2], self._level.width)
        edits = (rows.first.numpy(), rows.last.numpy(), torch.stack(places).numpy(), begin, reach, SAME_STATE)
        run_in_threads(self._level.kernels.run_edits, 10 * len(places[0]), *arrays, *weights, *edits, after=(sums,))
        return torch.from_numpy(sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One forward pass, and how the evidence of each review changes with its sentence vectors."""

    word_vectors: Tensor  # [T, E]
    sentence_vectors: Tensor  # [S, D]
    gradients: Tensor  # [S, D], of the evidence
    labels: Tensor  # int64 [R]
    evidence: Tensor  # [R]
    sentence_of: Tensor  # int64 [T]
    review_of: Tensor  # int64 [S]


def _pass(network: HAN, batch: RaggedBatch) -> _Pass:
    with torch.no_grad():
        word_vectors = network.word_vectors(batch)
        sentence_vectors, _ = network.words(word_vectors, batch.sentence_lengths)
    sentence_vectors = sentence_vectors.detach().requires_grad_()
    with torch.enable_grad():
        logits = network.logits(network.sentences(sentence_vectors, batch.review_lengths)[0])
        labels = logits.argmax(dim=1)
        whole = evidence(logits, labels)
        (gradients,) = torch.autograd.grad(whole.sum(), sentence_vectors)
    device = batch.token_ids.device
    return _Pass(
        word_vectors=word_vectors,
        sentence_vectors=sentence_vectors.detach(),
        gradients=gradients,
        labels=labels,
        evidence=whole.detach(),
        sentence_of=torch.repeat_interleave(torch.arange(len(batch.sentence_lengths)), batch.sentence_lengths).to(device),
        review_of=torch.repeat_interleave(torch.arange(len(batch.review_lengths)), batch.review_lengths).to(device),
    )


@torch.no_grad()
def _left_out(network: HAN, batch: RaggedBatch) -> Tensor:
    whole = _pass(network, batch)
    places = torch.arange(len(batch.token_ids), device=batch.token_ids.device)
    following = _following(network, batch) if network.ngrams is not None else None
    without = edited(network.words, whole.word_vectors, batch.sentence_lengths, places, following=following)
    sentence_of, review_of = whole.sentence_of, whole.review_of[whole.sentence_of]
    arguments = (network.sentences, whole.sentence_vectors, batch.review_lengths)
    logits = network.logits(edited(*arguments, sentence_of, without))
    only_word = (batch.sentence_lengths.to(places.device) == 1)[sentence_of]
    if only_word.any():  # without its only word, the sentence is gone
        logits[only_word] = network.logits(edited(*arguments, sentence_of[only_word]))
        logits[only_word & (batch.review_lengths.to(places.device) == 1)[review_of]] = torch.nan
    return whole.evidence[review_of] - evidence(logits, whole.labels[review_of])


def _following(network: HAN, batch: RaggedBatch) -> Tensor:
    """The inputs [T, FOLLOWING, E] of the words after each word, if that word is taken out; 0 beyond the end of the sentence."""
    ends = torch.cumsum(batch.sentence_lengths, 0)
    last = torch.repeat_interleave(ends, batch.sentence_lengths)[:, None] - 1
    first = last + 1 - torch.repeat_interleave(batch.sentence_lengths, batch.sentence_lengths)[:, None]
    # An n-gram has at most ORDERS words, so FOLLOWING words before the gap and as many after it decide.
    around = torch.cat([torch.arange(-FOLLOWING, 0), torch.arange(1, FOLLOWING + 1)])
    near = torch.arange(len(last))[:, None] + around
    exists = (near >= first) & (near <= last)
    lengths = exists.sum(1)
    token_ids = batch.token_ids[near[exists].to(batch.token_ids.device)]
    whole = RaggedBatch(token_ids=token_ids, sentence_lengths=lengths[lengths > 0], review_lengths=torch.ones(1, dtype=torch.int64))
    inputs = network.word_vectors(whole)
    padded = inputs.new_zeros(*near.shape, inputs.shape[1])
    padded[exists.to(inputs.device)] = inputs
    return padded[:, FOLLOWING:]


@torch.no_grad()
def _attention(network: HAN, batch: RaggedBatch) -> Tensor:
    answer = network(batch)
    lengths = batch.sentence_lengths.to(answer.sentence_attention.device)
    attention: Tensor = answer.word_attention * torch.repeat_interleave(answer.sentence_attention, lengths)
    return attention


def _attention_share(network: HAN, batch: RaggedBatch) -> Tensor:
    """gradient . (v - v without the word), where v without the word is the mean of the other words' states: no state is recomputed."""
    whole = _pass(network, batch)
    with torch.no_grad():
        places = torch.arange(len(batch.token_ids), device=batch.token_ids.device)
        without = edited(network.words, whole.word_vectors, batch.sentence_lengths, places, reach=0)
        changes = whole.sentence_vectors[whole.sentence_of] - without
        return (changes * whole.gradients[whole.sentence_of]).sum(dim=1)


def _integrated_gradients(network: HAN, batch: RaggedBatch, *, steps: int, at_end: bool) -> Tensor:
    """Mean gradient on the straight line from zero vectors to the word vectors, at the middle of each step, times the word vectors."""
    with torch.no_grad():
        word_vectors = network.word_vectors(batch)
        labels = network(batch).logits.argmax(dim=1)
    total = torch.zeros_like(word_vectors)
    for step in range(steps):
        inputs = (word_vectors * (1.0 if at_end else (step + 0.5) / steps)).requires_grad_()
        with torch.enable_grad():
            sentences, _ = network.words(inputs, batch.sentence_lengths)
            logits = network.logits(network.sentences(sentences, batch.review_lengths)[0])
            total += torch.autograd.grad(evidence(logits, labels).sum(), inputs)[0]
    values: Tensor = (total * word_vectors).sum(dim=1) / steps
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Parts of one review whose removal changes its label."""

    parts: tuple[int, ...]  # indices of sentences, or of words within the review, ascending
    label: int  # the label of the rest
    exact: bool  # False: found greedily, a smaller set may exist


@torch.no_grad()
def flipping_sentences(network: HAN, vectors_SD: Tensor, *, subsets: int = SUBSETS) -> Flip | None:
    """The smallest set of sentences of one review without which its label is another, or None; at least one sentence stays.

    vectors_SD: the review's sentence vectors. All sets of one size are tried before larger ones, as long as at most `subsets` are tried
    in all; from there on the sentence with the largest effect on the rest is taken out, one after the other. Among sets of one size, the
    one with the least evidence left is returned.
    """
    num_sentences = len(vectors_SD)
    label = int(_label(network, vectors_SD, [list(range(num_sentences))])[0])
    tried = 0
    for size in range(1, num_sentences):
        tried += comb(num_sentences, size)
        if tried > subsets:
            return _greedy_flip(network, vectors_SD, label)
        flip = _first_flip(network, vectors_SD, label, [set(taken) for taken in combinations(range(num_sentences), size)])
        if flip is not None:
            return Flip(parts=tuple(sorted(flip[0])), label=flip[1], exact=True)
    return None


def _greedy_flip(network: HAN, vectors_SD: Tensor, label: int) -> Flip | None:
    kept = torch.arange(len(vectors_SD), device=vectors_SD.device)
    own = torch.tensor([label], device=vectors_SD.device)
    while len(kept) > 1:
        arguments = (network.sentences, vectors_SD[kept], torch.tensor([len(kept)]))
        logits = network.logits(edited(*arguments, torch.arange(len(kept), device=kept.device)))
        weakest = int(evidence(logits, own.expand(len(kept))).argmin())
        kept = torch.cat([kept[:weakest], kept[weakest + 1 :]])
        answer = int(logits[weakest].argmax())
        if answer != label:
            parts = sorted(set(range(len(vectors_SD))) - set(kept.tolist()))
            return Flip(parts=tuple(parts), label=answer, exact=False)
    return None


def _first_flip(network: HAN, vectors_SD: Tensor, label: int, removed: list[set[int]]) -> tuple[set[int], int] | None:
    kept = [[place for place in range(len(vectors_SD)) if place not in taken] for taken in removed]
    logits = _logits(network, vectors_SD, kept)
    left = evidence(logits, torch.full((len(kept),), label, device=logits.device))
    best = int(left.masked_fill(logits.argmax(dim=1) == label, torch.inf).argmin())
    answer = int(logits[best].argmax())
    return (removed[best], answer) if answer != label else None


def _label(network: HAN, vectors_SD: Tensor, kept: list[list[int]]) -> Tensor:
    return _logits(network, vectors_SD, kept).argmax(dim=1)


def _logits(network: HAN, vectors_SD: Tensor, kept: list[list[int]]) -> Tensor:
    """Logits [N, C] of one review with only the sentences `kept[n]`."""
    lengths = torch.tensor([len(places) for places in kept])
    places = torch.tensor([place for places in kept for place in places], device=vectors_SD.device)
    logits: Tensor = network.logits(network.sentences(vectors_SD[places], lengths)[0])
    return logits


@torch.no_grad()
def flipping_spans(network: HAN, batch: RaggedBatch, *, largest: int = LARGEST_SPAN) -> list[Flip]:
    """The shortest spans of consecutive words within a sentence, of one review, whose removal changes its label.

    Spans of one word are tried first, then of two, up to `largest`; all flipping spans of the shortest length are returned, the one with
    the least evidence left first. Every span is tried and scored exactly. Empty where no span flips the label. A span that is a whole
    sentence is left to `flipping_sentences`.
    """
    lengths = batch.sentence_lengths.tolist()
    whole = _pass(network, batch)
    label = int(whole.labels[0])
    for size in range(1, largest + 1):
        spans = _spans(lengths, size)
        if not spans:
            return []
        logits = _without_spans(network, batch, whole, spans, size)
        flips = (logits.argmax(dim=1) != label).nonzero()[:, 0]
        if len(flips):
            left = evidence(logits[flips], torch.full((len(flips),), label, device=logits.device))
            starts = [(spans[flips[place]][1], int(logits[flips[place]].argmax())) for place in torch.argsort(left).tolist()]
            return [Flip(parts=tuple(range(start, start + size)), label=answer, exact=True) for start, answer in starts]
    return []


def _spans(lengths: Sequence[int], size: int) -> list[tuple[int, int]]:
    """(sentence, first word within the review) of every span of `size` words in a longer sentence."""
    spans, first = [], 0
    for sentence, length in enumerate(lengths):
        if length > size:
            spans += [(sentence, first + offset) for offset in range(length - size + 1)]
        first += length
    return spans


def _without_spans(network: HAN, batch: RaggedBatch, whole: _Pass, spans: list[tuple[int, int]], size: int) -> Tensor:
    lengths = batch.sentence_lengths
    sentences, starts = torch.tensor(spans).T
    shorter = lengths[sentences] - size
    firsts = (torch.cumsum(lengths, 0) - lengths)[sentences]
    offsets = torch.arange(int(shorter.sum())) - torch.repeat_interleave(torch.cumsum(shorter, 0) - shorter, shorter)
    places = torch.repeat_interleave(firsts, shorter) + offsets
    places += size * (places >= torch.repeat_interleave(starts, shorter))
    places = places.to(whole.word_vectors.device)
    if network.ngrams is None:
        inputs = whole.word_vectors[places]
    else:
        inputs = network.word_vectors(RaggedBatch(token_ids=batch.token_ids[places], sentence_lengths=shorter, review_lengths=shorter))
    vectors, _ = network.words(inputs, shorter)
    place = sentences.to(vectors.device)
    logits: Tensor = network.logits(edited(network.sentences, whole.sentence_vectors, batch.review_lengths, place, vectors))
    return logits
