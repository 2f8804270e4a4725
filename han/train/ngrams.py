"""Weights of n-grams: logistic regression over NB-weighted uni-, bi- and trigrams (Wang and Manning 2012), and its table for a network.

An n-gram of a review counts once. With two labels there is one column, label 1 against label 0; with more, each label against the others.
A network that learnt from a review's own weights would trust them too much. So a training review reads weights that were fitted without
its fold, and all other reviews read the weights of all training reviews.

Reviews of one film, product or place share its rare names. In different folds, they would tell each other's labels by these names, and the
network would trust n-grams more than reviews of something new deserve. So reviews with similar rare words share a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from scipy import optimize, sparse, special

from han.model.ngrams import FOLDS, ORDERS, Folds, Hashes, NgramTable, NgramTables, ngram_hashes, review_key
from han.storage import replace_file
from han.train.encoded import EncodedFolder, read_windows
from han.train.learn import SoftLabels
from han.types import Float32s, Int32s

MIN_COUNTS = (3, 3, 4)  # of a unigram, bigram and trigram in all text
STRENGTH = 0.5  # C of the logistic regression; 0.3 to 1 give the same log loss on IMDB within 0.0001
SOFT_STRENGTH = 0.02  # on soft labels, which are often wrong
SOFT_REVIEWS = 50_000  # unlabelled reviews that are enough, which bounds the memory
IN_NETWORK = 400_000  # n-grams with the largest weights; on IMDB they hold 98% of the sum of all weights
ITERATIONS = 100
RARE = (4, 30)  # training reviews that have a rare word, at least and at most
RARE_SHARE = 0.05  # of the training reviews, at most: among few reviews common words have small numbers too
SIMILARITY = 0.3  # cosine of the rare words of two reviews, from which they share a fold
LARGEST_GROUP = 60  # reviews that share a fold because they are similar: a chain of similar pairs could become long
SIMILAR_ROWS = 2_000  # reviews that are compared with all others at once, which bounds the memory

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramModel:
    """The logistic regression: part 0 is fitted on all training reviews, part 1 + f without fold f."""

    hashes: Hashes  # [N], ascending
    weights: Float32s  # [1 + FOLDS, N, K]
    biases: Float32s  # [1 + FOLDS, K]
    fold_keys: Hashes = field(default_factory=lambda: np.empty(0, np.uint32))  # `Folds`; files of older versions have none
    fold_numbers: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def logits(self, table: pa.Table) -> Float32s:
        """Logits [R, C] of encoded reviews by part 0."""
        scores = _presence(table, self.hashes) @ self.weights[0] + self.biases[0]
        return scores if scores.shape[1] > 1 else np.concatenate([-scores / 2, scores / 2], axis=1)

    def tables(self) -> NgramTables:
        """The tables for a network: the largest weights, divided by their standard deviation and rounded to float16."""
        largest = np.abs(self.weights[0]).max(axis=1)
        kept = np.sort(np.argsort(-largest, kind="stable")[:IN_NETWORK])
        scale = self.weights[0][largest > 0].std()
        scaled = (self.weights[:, kept] / scale).astype(np.float16).astype(np.float32)
        whole, *folds = (NgramTable.of(self.hashes[kept], part) for part in scaled)
        return NgramTables(whole=whole, by_fold=tuple(folds), folds=Folds(keys=self.fold_keys, numbers=self.fold_numbers))

    def write(self, path: Path) -> None:
        arrays = asdict(self)
        replace_file(path, lambda temporary: temporary.write_bytes(save(arrays)))

    @staticmethod
    def read(path: Path) -> NgramModel:
        return NgramModel(**load_file(path))


def fit_ngrams(folder: EncodedFolder, report: Callable[[int, int], None], *, soft: SoftLabels | None = None) -> NgramModel:
    """Fit on the training reviews; counts of n-grams include the unlabelled reviews. report: fits done and all fits.

    soft: labels of the unlabelled reviews, which are fitted too, with their most probable label. Then no review reads weights without its
    fold: a weight is the work of many reviews.
    """
    train = pa.concat_tables(read_windows(folder, "train")).combine_chunks()
    if soft is not None:
        train = pa.concat_tables([train, *_first(read_windows(folder, "unlabelled", seed=0), SOFT_REVIEWS)]).combine_chunks()
    hashes = _frequent(read_windows(folder, "train+unlabelled"))
    hashes = np.intersect1d(hashes, _distinct(train), assume_unique=True)  # a weight needs a label
    presence = _presence(train, hashes)
    columns = [1] if len(folder.labels) == 2 else list(range(len(folder.labels)))
    weights = np.zeros((1 + FOLDS, len(hashes), len(columns)), np.float32)
    biases = np.zeros((1 + FOLDS, len(columns)), np.float32)
    if soft is not None:
        labels = soft.of(train).argmax(axis=1)
        for place, label in enumerate(columns):
            weights[:, :, place], biases[:, place] = _fit(presence, labels == label, SOFT_STRENGTH)
            report(place + 1, len(columns))
        return NgramModel(hashes=hashes, weights=weights, biases=biases)
    labels = train["label"].to_numpy()
    token_ids = [row.values.to_numpy() for row in train["token_ids"]]
    similar = similar_folds(token_ids)
    folds = np.array([similar.of(ids) for ids in token_ids])
    for part in range(1 + FOLDS):
        rows = np.flatnonzero(folds != part - 1)
        for place, label in enumerate(columns):
            weights[part, :, place], biases[part, place] = _fit(presence[rows], labels[rows] == label, STRENGTH)
            report(part * len(columns) + place + 1, weights.shape[0] * len(columns))
    return NgramModel(hashes=hashes, weights=weights, biases=biases, fold_keys=similar.keys, fold_numbers=similar.numbers)


def _first(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The first tables, up to so many rows."""
    for table in tables:
        yield table.slice(0, num_rows)
        num_rows -= len(table)
        if num_rows <= 0:
            return


def similar_folds(token_ids: Sequence[Int32s]) -> Folds:
    """Folds in which similar reviews are together. Pairs are joined in the order of their similarity, into groups of limited size."""
    leaders, sizes = np.arange(len(token_ids)), np.ones(len(token_ids), np.int64)

    def leader(row: int) -> int:
        while leaders[row] != row:
            leaders[row] = row = leaders[leaders[row]]
        return row

    rows, others, similarities = _similar_pairs(token_ids)
    for pair in np.argsort(-similarities, kind="stable"):
        one, other = sorted((leader(rows[pair]), leader(others[pair])))
        if one != other and sizes[one] + sizes[other] <= LARGEST_GROUP:
            leaders[other] = one
            sizes[one] += sizes[other]
    followers = [row for row in range(len(token_ids)) if leader(row) != row]
    keys = np.array([review_key(token_ids[row]) for row in followers], np.uint32)
    numbers = np.array([review_key(token_ids[leader(row)]) % FOLDS for row in followers], np.uint8)
    distinct, first = np.unique(keys, return_index=True)
    return Folds(keys=distinct, numbers=numbers[first])


def _similar_pairs(token_ids: Sequence[Int32s]) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Pairs of reviews whose rare words, weighted by their rarity, have at least the cosine `SIMILARITY`: rows, other rows, cosines."""
    distinct = [np.unique(ids) for ids in token_ids]
    words = np.concatenate([np.empty(0, np.int32), *distinct])
    numbers = np.bincount(words)
    most = min(RARE[1], int(RARE_SHARE * len(distinct)))
    rare = (numbers[words] >= RARE[0]) & (numbers[words] <= most) & (words > 0)
    reviews = np.repeat(np.arange(len(distinct)), [len(ids) for ids in distinct])[rare]
    rarity = np.log(len(distinct) / numbers[words[rare]])
    norms = np.sqrt(np.bincount(reviews, rarity**2, minlength=len(distinct)))
    matrix = sparse.csr_matrix((rarity / norms[reviews], (reviews, words[rare])), shape=(len(distinct), len(numbers)))
    rows, others, cosines = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for first in range(0, len(distinct), SIMILAR_ROWS):
        products = sparse.triu(matrix[first : first + SIMILAR_ROWS] @ matrix.T, k=first + 1).tocoo()
        close = products.data >= SIMILARITY
        rows.append(products.row[close] + first)
        others.append(products.col[close])
        cosines.append(products.data[close])
    return np.concatenate(rows).astype(np.int64), np.concatenate(others).astype(np.int64), np.concatenate(cosines)


def _fit(presence: sparse.csr_matrix, truth: NDArray[np.bool_], strength: float) -> tuple[Floats, float]:
    """Weights [N] and the bias: logistic regression on r * x, where r is the NB log-ratio, as weights of x."""
    of_true = presence.T @ truth.astype(np.float64) + 1
    of_false = presence.T @ (~truth).astype(np.float64) + 1
    ratios = np.log(of_true / of_true.sum()) - np.log(of_false / of_false.sum())
    signs = np.where(truth, 1.0, -1.0)

    def loss(values: Floats) -> tuple[float, Floats]:
        margins = signs * (presence @ (ratios * values[:-1]) + values[-1])
        slopes = -signs * special.expit(-margins)
        gradient = np.append(ratios * (presence.T @ slopes), slopes.sum()) + values / strength
        return float(np.logaddexp(0, -margins).sum() + values @ values / (2 * strength)), gradient

    start = np.zeros(len(ratios) + 1)
    result: Any = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS, "ftol": 1e-7})
    return ratios * result.x[:-1], float(result.x[-1])


def _presence(table: pa.Table, hashes: Hashes) -> sparse.csr_matrix:
    """Whether a review has an n-gram: 1.0 or 0.0, [R, N]."""
    reviews, places = [], []
    for number, ngrams in enumerate(_hashes_by_review(table)):
        distinct = np.unique(ngrams)
        place = np.minimum(np.searchsorted(hashes, distinct), len(hashes) - 1)
        place = place[hashes[place] == distinct]
        places.append(place)
        reviews.append(np.full(len(place), number))
    indices = np.concatenate(places)
    return sparse.csr_matrix((np.ones(len(indices)), (np.concatenate(reviews), indices)), shape=(len(table), len(hashes)))


def _frequent(tables: Iterable[pa.Table]) -> Hashes:
    """The n-grams that occur often enough, ascending."""
    hashes = [np.empty(0, np.uint32) for _ in range(ORDERS)]
    counts = [np.empty(0, np.int64) for _ in range(ORDERS)]
    for table in tables:
        ngrams = _hashes(table)
        for order in range(ORDERS):
            distinct, number = np.unique(ngrams[:, order], return_counts=True)
            joined, places = np.unique(np.concatenate([hashes[order], distinct]), return_inverse=True)
            counts[order] = np.bincount(places, weights=np.concatenate([counts[order], number])).astype(np.int64)
            hashes[order] = joined
    kept = [hashes[order][counts[order] >= least] for order, least in enumerate(MIN_COUNTS)]
    return np.setdiff1d(np.concatenate(kept), np.zeros(1, np.uint32))


def _distinct(table: pa.Table) -> Hashes:
    return np.unique(_hashes(table))


def _hashes(table: pa.Table) -> Hashes:
    """The hashes [T, ORDERS] of all tokens of encoded reviews."""
    token_ids, sentence_lengths = (table[name].combine_chunks().flatten().to_numpy() for name in ("token_ids", "sentence_lengths"))
    return ngram_hashes(token_ids.astype(np.int64), sentence_lengths.astype(np.int64))


def _hashes_by_review(table: pa.Table) -> list[Hashes]:
    num_tokens = table["token_ids"].combine_chunks().value_lengths().to_numpy()
    return np.split(_hashes(table), np.cumsum(num_tokens)[:-1])
