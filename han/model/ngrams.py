"""Weights of uni-, bi- and trigrams for a label, which the network reads in addition to the word vectors.

An n-gram is at most `ORDERS` consecutive words of one sentence. It is known by a 32-bit hash of its word ids, so the table needs no text.
Of every token, the inputs are the weights of the n-grams that end at it: first of the unigram, for each column, then of the bigram, then
of the trigram. A column is a label, or label 1 against label 0 where there are two. An n-gram outside the table has weight 0, and so has
one with `<unk>`. Two n-grams share a hash by chance: with 400,000 in the table, one unknown n-gram in 10,000 gets a weight.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from han.model.gru import compiled
from han.types import Float32s, Int32s

ORDERS = 3
UNKNOWN_NGRAM = 0  # the hash of what is no n-gram: it would begin in another sentence, or it has <unk>
FOLDS = 5
BUCKET_BITS = 16  # the first bits of a hash choose its bucket, which then holds a few n-grams

Hashes: TypeAlias = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramTable:
    """N n-grams and their weights."""

    hashes: Hashes  # [N], ascending, each once, none of them 0
    weights: Float32s  # [N, K], K = number of columns
    bucket_starts: Int32s  # [2^16 + 1], the first n-gram of each bucket

    @classmethod
    def of(cls, hashes: Hashes, weights: Float32s) -> NgramTable:
        """hashes: [N], ascending, each once; weights: float [N, K]."""
        edges = np.arange((1 << BUCKET_BITS) + 1, dtype=np.uint64) << np.uint64(32 - BUCKET_BITS)
        starts = np.searchsorted(hashes.astype(np.uint64), edges).astype(np.int32)
        return cls(hashes=hashes, weights=np.ascontiguousarray(weights, dtype=np.float32), bucket_starts=starts)

    @property
    def num_inputs(self) -> int:
        """F, the inputs of a token: ORDERS x K."""
        return ORDERS * int(self.weights.shape[1])

    def inputs(self, token_ids: NDArray[np.int64], sentence_lengths: NDArray[np.int64], *, left_out: int = 0) -> Float32s:
        """The inputs of T tokens, float32 [T, F]. token_ids: int64 [T]; sentence_lengths: int64 [S], sum T.

        left_out: shortest n-grams whose inputs are not returned: 1 leaves out those of the unigrams.
        """
        first = left_out * int(self.weights.shape[1])
        kernels = compiled()
        if kernels is None:
            return self._inputs_without_compiler(token_ids, sentence_lengths)[:, first:]
        inputs = np.empty((len(token_ids), self.num_inputs - first), np.float32)
        kernels.ngram_inputs(token_ids, sentence_lengths, self.hashes, self.bucket_starts, self.weights, left_out, inputs)
        return inputs

    def unigrams(self, word_ids: NDArray[np.int64]) -> Float32s:
        """The inputs of the unigrams alone, float32 [N, K]."""
        return self.inputs(word_ids, np.ones(len(word_ids), np.int64))[:, : self.weights.shape[1]]

    def _inputs_without_compiler(self, token_ids: NDArray[np.int64], sentence_lengths: NDArray[np.int64]) -> Float32s:
        hashes = ngram_hashes(token_ids, sentence_lengths)
        places = np.minimum(np.searchsorted(self.hashes, hashes), max(0, len(self.hashes) - 1))
        if not len(self.hashes):
            return np.zeros((len(token_ids), self.num_inputs), np.float32)
        known = self.hashes[places] == hashes
        weights: Float32s = self.weights[places] * known[:, :, None]
        return weights.reshape(len(token_ids), -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """The folds of the training reviews. Copies of a review share a fold."""

    keys: Hashes  # [N], ascending, of reviews that follow another review
    numbers: NDArray[np.uint8]  # [N], their folds

    def of(self, token_ids: Int32s) -> int:
        """The fold of a training review: that of the review that it follows, or the one of its own key."""
        key = review_key(token_ids)
        place = np.searchsorted(self.keys, np.uint32(key))
        return int(self.numbers[place]) if place < len(self.keys) and self.keys[place] == key else key % FOLDS


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramTables:
    """The tables of a training. A review never reads weights that were fitted on it."""

    whole: NgramTable  # fitted on all training reviews; the table of the artifact
    by_fold: tuple[NgramTable, ...]  # [FOLDS], fitted without one fold of the training reviews
    folds: Folds

    def inputs(self, token_ids: Int32s, sentence_lengths: Int32s, *, labelled: bool) -> Float32s:
        """The inputs [T, F] of one review in training. labelled: whether it is a training review with a label."""
        table = self.by_fold[self.folds.of(token_ids)] if labelled else self.whole
        return table.inputs(token_ids.astype(np.int64), sentence_lengths.astype(np.int64))


def review_key(token_ids: Int32s) -> int:
    """A checksum of an encoded review."""
    return zlib.crc32(np.ascontiguousarray(token_ids).tobytes())


def ngram_hashes(token_ids: NDArray[np.int64], sentence_lengths: NDArray[np.int64]) -> Hashes:
    """The hashes of the n-grams that end at each token, uint32 [T, ORDERS]; 0 for what is no n-gram."""
    ids = token_ids.astype(np.uint64)
    starts = np.cumsum(sentence_lengths) - sentence_lengths
    place = np.arange(len(ids)) - np.repeat(starts, sentence_lengths)
    hashes = np.zeros((len(ids), ORDERS), np.uint32)
    whole = np.ones(len(ids), np.bool_)  # all words of the n-gram are in this sentence and in the vocabulary
    mixed = np.zeros(len(ids), np.uint64)
    for order in range(ORDERS):
        before = np.zeros_like(ids)
        before[order:] = ids[: len(ids) - order]
        whole &= (place >= order) & (before > 0)
        mixed = _mix(mixed + before)
        hashes[:, order] = np.where(whole, np.maximum(mixed >> np.uint64(32), 1), UNKNOWN_NGRAM)
    return hashes


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One round of SplitMix64 (Steele et al. 2014); multiplication wraps."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
