"""Words and phrases of scored reviews as flat arrays: counted, then summed. No Python code runs for a single review or word.

A word is a word of the scores (a token of the model), in lower case. Its effect is that of the scores: positive for the review's label. A
phrase is two or three words in a row inside a sentence; its effect is the sum of their effects. Punctuation ends a phrase, but words joined
by a mark count as one word of a phrase, and are also listed alone: don't, well-made, 10/10.

Two passes bound the memory. The first counts all in a `Sketch` of fixed size, whose counts are never too low. The second sums only what is
frequent in the sketch, so all figures are exact, and what is left out has fewer occurrences than `Frequent.at_least`. Words and phrases
are told apart by hashes of 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]
Rows: TypeAlias = NDArray[np.int64]
Numbers: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

LONGEST = 3  # words of a phrase
EXAMPLES = 3  # of a phrase, with the largest effects, from as many reviews
BUCKETS = 1 << 22  # of each row of a sketch: 67 MB for two kinds and two rows
MOST_FREQUENT = 1 << 18  # buckets of a kind that may be frequent: bounds the tables of the second pass
_JOINING = "'\u2019-/"
_BASE, _MIX, _NEXT = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # odd; the last two are splitmix64's


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """R reviews with T words, flat."""

    characters: NDArray[np.uint32]  # code points of all texts, end to end, in lower case
    begins: Rows  # [R], where a text begins
    labels: Rows  # [R], index of the predicted label
    reviews: Rows  # [T], ascending
    sentences: Rows  # [T], ascending
    starts: Rows  # [T], in `characters`
    ends: Rows  # [T]
    effects: Numbers  # [T], nats; NaN for the only word of a review
    methods: frozenset[str]  # names of the estimates of the effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrences:
    """N words or phrases where they stand. Those of one key are in the order of the reviews."""

    keys: Keys  # of the text alone
    reviews: Rows
    effects: Numbers
    first_effects: Numbers  # of the first word
    last_effects: Numbers  # of the last word
    starts: Rows  # in `Piece.characters`
    ends: Rows
    num_words: Rows  # words of the model, so don't has 3

    def where(self, chosen: Mask | Rows) -> Occurrences:
        return Occurrences(**{name: getattr(self, name)[chosen] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequent:
    """The words and the phrases that are frequent enough for a table."""

    buckets: Mask  # [2 kinds, 2 rows, BUCKETS]
    at_least: tuple[int, int]  # words and phrases with so many occurrences are all among them

    def mask(self, kind: int, keys: Keys) -> Mask:
        first, second = _buckets(keys)
        return np.asarray(self.buckets[kind, 0, first] & self.buckets[kind, 1, second])


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """N words and phrases of a label each, and their examples. Tables of different reviews can be combined."""

    keys: Keys  # [N], of text and label, ascending
    labels: Rows
    num_words: Rows
    sums: Numbers
    first_sums: Numbers  # of the effects of the first words
    last_sums: Numbers
    counts: Rows
    reviews: Rows  # that have it
    example_keys: Keys  # [M], ascending; at most EXAMPLES of a key, the largest effect first
    example_effects: Numbers  # the largest of its review
    example_rows: Rows  # of all scores
    example_starts: Rows  # in its own text
    example_ends: Rows
    num_reviews: Rows  # [C], by label
    methods: frozenset[str]


def read(table: pa.Table, *, text: str, labels: Sequence[str]) -> Piece:
    """The reviews of a table of scores. text: its column; labels: of the model, in their order."""
    texts = pc.fill_null(_array(table[text]).cast(pa.large_string()), "")
    lengths = np.asarray(pc.utf8_length(texts).to_numpy(), np.int64)
    joined = pc.utf8_lower(texts).buffers()[2]  # a code point stays one, unlike in str.lower
    sentences = _array(table["sentences"])
    num_sentences = pc.fill_null(pc.list_value_length(sentences), 0).to_numpy()
    words = sentences.flatten().field("words") if len(sentences) else pa.array([], pa.list_(pa.struct([])))
    num_words = pc.fill_null(pc.list_value_length(words), 0).to_numpy()
    sentence_of = np.repeat(np.arange(len(num_words)), num_words)
    review_of = np.repeat(np.arange(len(num_sentences)), num_sentences)[sentence_of]
    begins = np.cumsum(lengths) - lengths
    flat = words.flatten()
    methods = pc.unique(_array(table["effects"]).field("word_method")).to_pylist()
    return Piece(
        characters=np.frombuffer((joined.to_pybytes().decode() if joined else "").encode("utf-32-le"), np.uint32),
        begins=begins,
        labels=pc.index_in(_array(table["label"]), value_set=pa.array(labels)).to_numpy(zero_copy_only=False).astype(np.int64),
        reviews=review_of,
        sentences=sentence_of,
        starts=begins[review_of] + flat.field("start").to_numpy(),
        ends=begins[review_of] + flat.field("end").to_numpy(),
        effects=pc.fill_null(flat.field("effect"), np.nan).to_numpy().astype(np.float64),
        methods=frozenset(method for method in methods if method),
    )


def found(piece: Piece) -> tuple[Occurrences, Occurrences]:
    """All words that have an effect; and all phrases: words joined by a mark, then two and three words in a row."""
    hashed = _hashing(piece.characters)
    words = Occurrences(
        keys=hashed(piece.starts, piece.ends),
        reviews=piece.reviews,
        effects=piece.effects,
        first_effects=piece.effects,
        last_effects=piece.effects,
        starts=piece.starts,
        ends=piece.ends,
        num_words=np.ones(len(piece.starts), np.int64),
    )
    units, is_word, sentences = _units(piece, hashed)
    parts, keys, fits = [units.where(is_word & (units.num_words > 1))], units.keys, is_word
    for size in range(2, LONGEST + 1):
        keys = _mixed(keys[:-1] * np.uint64(_NEXT) + units.keys[size - 1 :])
        fits = fits[:-1] & is_word[size - 1 :] & (sentences[: len(fits) - 1] == sentences[size - 1 :])
        parts.append(
            Occurrences(
                keys=keys[fits],
                reviews=units.reviews[: len(fits)][fits],
                effects=_windows(units.effects, size)[fits],
                first_effects=units.effects[: len(fits)][fits],
                last_effects=units.effects[size - 1 :][fits],
                starts=units.starts[: len(fits)][fits],
                ends=units.ends[size - 1 :][fits],
                num_words=_windows(units.num_words, size)[fits],
            )
        )
    return words.where(~np.isnan(piece.effects)), _joined(parts)


class Sketch:
    """Counts of words and of phrases in arrays of fixed size (count-min with two rows): a count is exact or too large."""

    def __init__(self, counts: NDArray[np.uint32] | None = None) -> None:
        self._counts = np.zeros((2, 2, BUCKETS), np.uint32) if counts is None else counts

    def add(self, piece: Piece) -> None:
        for kind, occurrences in enumerate(found(piece)):
            for row, buckets in enumerate(_buckets(occurrences.keys)):
                np.add.at(self._counts[kind, row], buckets, np.uint32(1))

    def merged(self, others: Sequence[Sketch]) -> Sketch:
        counts = self._counts.copy()
        for other in others:
            counts += other._counts
        return Sketch(counts)

    def frequent(self, min_count: int) -> Frequent:
        """The words and phrases that may occur `min_count` times; a higher count is used if these are too many."""
        at_least = tuple(max(min_count, _least(self._counts[kind, 0])) for kind in (0, 1))
        buckets = np.stack([self._counts[kind] >= least for kind, least in enumerate(at_least)])
        return Frequent(buckets=buckets, at_least=(at_least[0], at_least[1]))


def merged(sketches: Sequence[Sketch]) -> Sketch:
    """The sketch of the reviews of all."""
    return sketches[0].merged(sketches[1:])


def tabled(piece: Piece, frequent: Frequent, *, first_row: int, num_labels: int) -> Table:
    """The frequent words and phrases of a piece. first_row: of the piece among all scores."""
    kept = _joined([each.where(frequent.mask(kind, each.keys)) for kind, each in enumerate(found(piece))])
    labels = piece.labels[kept.reviews]
    keys = _mixed(kept.keys + (labels.astype(np.uint64) + np.uint64(1)) * np.uint64(_BASE))
    order = np.argsort(keys, kind="stable")
    keys, labels, kept = keys[order], labels[order], kept.where(order)
    firsts = _firsts(keys)
    runs = np.flatnonzero(_changes(keys) | _changes(kept.reviews))  # the occurrences of a key in a review
    best = _best(kept.effects, runs)
    begins = piece.begins[kept.reviews[best]]
    examples = (keys[best], kept.effects[best], first_row + kept.reviews[best], kept.starts[best] - begins, kept.ends[best] - begins)
    return Table(
        keys=keys[firsts],
        labels=labels[firsts],
        num_words=kept.num_words[firsts],
        sums=_sums(kept.effects, firsts),
        first_sums=_sums(kept.first_effects, firsts),
        last_sums=_sums(kept.last_effects, firsts),
        counts=_sums(np.ones(len(keys), np.int64), firsts),
        reviews=_sums(np.bincount(runs, minlength=len(keys)), firsts),
        **_largest(*examples),
        num_reviews=np.bincount(piece.labels, minlength=num_labels),
        methods=piece.methods,
    )


def combined(tables: Sequence[Table]) -> Table:
    """One table of the reviews of all."""
    keys = np.concatenate([table.keys for table in tables])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    firsts = _firsts(keys)

    def ordered(name: str) -> Any:
        return np.concatenate([getattr(table, name) for table in tables])[order]

    summed = ("sums", "first_sums", "last_sums", "counts", "reviews")
    of_examples = ("example_keys", "example_effects", "example_rows", "example_starts", "example_ends")
    return Table(
        keys=keys[firsts],
        labels=ordered("labels")[firsts],
        num_words=ordered("num_words")[firsts],
        **{name: _sums(ordered(name), firsts) for name in summed},
        **_largest(*(np.concatenate([getattr(table, name) for table in tables]) for name in of_examples)),
        num_reviews=np.sum([table.num_reviews for table in tables], axis=0),
        methods=frozenset().union(*(table.methods for table in tables)),
    )


def empty(num_labels: int) -> Table:
    """The table of no review."""
    no_keys, no_rows, no_numbers = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.float64)
    return Table(
        keys=no_keys,
        labels=no_rows,
        num_words=no_rows,
        sums=no_numbers,
        first_sums=no_numbers,
        last_sums=no_numbers,
        counts=no_rows,
        reviews=no_rows,
        example_keys=no_keys,
        example_effects=no_numbers,
        example_rows=no_rows,
        example_starts=no_rows,
        example_ends=no_rows,
        num_reviews=np.zeros(num_labels, np.int64),
        methods=frozenset(),
    )


def _units(piece: Piece, hashed: Callable[[Rows, Rows], Keys]) -> tuple[Occurrences, Mask, Rows]:
    """The units of phrases: words, words joined by marks, and other marks; whether each is a word, and its sentence."""
    num = len(piece.starts)
    firsts = piece.characters[piece.starts]
    letters, place = np.unique(firsts, return_inverse=True)
    is_word = np.array([chr(letter).isalnum() or letter == ord("_") for letter in letters.tolist()], np.bool_)[place]
    touches = np.zeros(num + 1, np.bool_)  # the word before it; the last stands for the end
    touches[1:-1] = (piece.starts[1:] == piece.ends[:-1]) & (piece.sentences[1:] == piece.sentences[:-1])
    joins = np.isin(firsts, [ord(mark) for mark in _JOINING]) & (piece.ends - piece.starts == 1) & touches[:-1] & touches[1:]
    joins[1:-1] &= is_word[:-2] & is_word[2:]
    continues = joins.copy()
    continues[1:] |= joins[:-1]
    begins = np.flatnonzero(~continues)
    lasts = np.append(begins[1:], num)[: len(begins)] - 1
    starts, ends = piece.starts[begins], piece.ends[lasts]
    effects = _sums(piece.effects, begins)
    units = Occurrences(
        keys=hashed(starts, ends),
        reviews=piece.reviews[begins],
        effects=effects,
        first_effects=effects,
        last_effects=effects,
        starts=starts,
        ends=ends,
        num_words=lasts - begins + 1,
    )
    return units, is_word[begins], piece.sentences[begins]


def _windows(values: Any, size: int) -> Any:
    """Sums of `size` values in a row."""
    count = len(values) - size + 1
    return sum((values[shift : shift + count] for shift in range(1, size)), start=values[: max(count, 0)])


def _hashing(characters: NDArray[np.uint32]) -> Callable[[Rows, Rows], Keys]:
    """Hashes of slices of the text: a polynomial of their code points modulo 2**64, shifted to one power, then mixed."""
    powers = _powers(_BASE, len(characters))
    shifts = _powers(pow(_BASE, -1, 2**64), len(characters))
    sums = np.zeros(len(characters) + 1, np.uint64)
    np.cumsum((characters + np.uint64(1)) * powers, out=sums[1:])
    return lambda starts, ends: _mixed((sums[ends] - sums[starts]) * shifts[starts])


def _powers(base: int, count: int) -> Keys:
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)


def _mixed(keys: Keys) -> Keys:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(_MIX)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(_NEXT)
    return keys ^ (keys >> np.uint64(31))


def _buckets(keys: Keys) -> tuple[Rows, Rows]:
    mask = np.uint64(BUCKETS - 1)
    return (keys & mask).astype(np.int64), ((keys >> np.uint64(32)) & mask).astype(np.int64)


def _least(counts: NDArray[np.uint32]) -> int:
    """The smallest count that at most MOST_FREQUENT buckets reach."""
    return int(np.partition(counts, len(counts) - MOST_FREQUENT - 1)[len(counts) - MOST_FREQUENT - 1]) + 1


def _changes(values: NDArray[Any]) -> Mask:
    """Whether a value differs from the one before it; the first does."""
    changes = np.ones(len(values), np.bool_)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _firsts(values: NDArray[Any]) -> Rows:
    return np.flatnonzero(_changes(values))


def _sums(values: Any, firsts: Rows) -> Any:
    return np.add.reduceat(values, firsts) if len(firsts) else values[:0]


def _best(effects: Numbers, runs: Rows) -> Rows:
    """The place of the largest effect in each run; the first of equal ones."""
    if not len(runs):
        return runs
    run_of = np.cumsum(np.bincount(runs, minlength=len(effects))) - 1
    places = np.flatnonzero(effects == np.maximum.reduceat(effects, runs)[run_of])
    return places[_firsts(run_of[places])]


def _largest(keys: Keys, effects: Numbers, rows: Rows, starts: Rows, ends: Rows) -> dict[str, Any]:
    """The examples of a table: of each key those with the largest effects, and of equal ones those of the first rows."""
    order = np.lexsort((rows, -effects, keys))
    firsts = _changes(keys[order])
    rank = np.arange(len(order)) - np.maximum.accumulate(np.where(firsts, np.arange(len(order)), 0)) if len(order) else order
    order = order[rank < EXAMPLES]
    return {
        "example_keys": keys[order],
        "example_effects": effects[order],
        "example_rows": rows[order],
        "example_starts": starts[order],
        "example_ends": ends[order],
    }


def _joined(parts: Sequence[Occurrences]) -> Occurrences:
    return Occurrences(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Occurrences.__slots__})


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
