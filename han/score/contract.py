"""The contract of a scored row (see `scorer.schema`), checked on whole batches as arrays.

A check yields a problem and the rows of the batch that have it. A null in place of a number counts as a number that breaks the contract, so
a damaged file raises no error here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from han.types import AttentionDetail, EffectDetail, Float32s, Int32s, UserError

Rows: TypeAlias = NDArray[np.int64]  # ascending rows of a batch
Mask: TypeAlias = NDArray[np.bool_]
Broken: TypeAlias = Iterator[tuple[str, Rows]]

FLAGS = ("uncertain", "unfamiliar")  # columns that say how far an answer can be trusted
TOLERANCE = 1e-5  # of a sum of shares that must be 1,
_EFFECT_NUMBERS = ("evidence", "nothing", "sum", "interaction")
ROUNDING = 2.0**-24  # or this for each share, from float32: the shipped model is off by 1.4e-5 over a sentence of 9,000 equal words


def refuse_broken_probabilities(probabilities: Float32s, *, model: str) -> None:
    """[R, C]. A probability that is not a number from 0 to 1 is a `UserError` that names the model. Call it before answers are written."""
    if not are_probabilities(probabilities).all():
        raise UserError(f"model {model} gives probabilities that are not numbers from 0 to 1: its weights are broken. Use another --model")


def are_probabilities(values: Float32s) -> Mask:
    """[R], whether all C values of a row are numbers from 0 to 1."""
    return np.asarray(np.all((values >= 0) & (values <= 1), axis=1))


def broken_answers(batch: pa.RecordBatch, *, labels: Sequence[str], model: str) -> Broken:
    """The label is the most probable one; probabilities are valid; token counts are possible; the model is the same."""
    label = _integers(pc.index_in(batch["label"], value_set=pa.array(labels)))
    values = np.stack([_floats(column) for column in batch["probabilities"].flatten()], axis=1)  # [R, C]
    sound = are_probabilities(values)
    probabilities = np.where(sound[:, None], values, 0)
    of_label = probabilities[np.arange(len(label)), label]
    known = sound & (label >= 0)
    num_tokens, num_unknown, num_cut = (_integers(batch[name]) for name in ("num_tokens", "num_unknown", "num_characters_cut"))
    yield f"its model is not {model}", np.flatnonzero(~_mask(_filled(pc.equal(batch["model"].cast(pa.string()), model), False)))
    yield f"its label is none of {', '.join(labels)}", np.flatnonzero(label < 0)
    yield "its probabilities are not numbers from 0 to 1", np.flatnonzero(~sound)
    yield "its probabilities do not sum to 1", np.flatnonzero(sound & (abs(probabilities.sum(axis=1, dtype=np.float64) - 1) > TOLERANCE))
    yield "its label is not the most probable", np.flatnonzero(known & (of_label < probabilities.max(axis=1)))
    yield "its probability is not that of its label", np.flatnonzero(known & (of_label != _floats(batch["probability"])))
    yield "its num_tokens is below 1", np.flatnonzero(num_tokens < 1)
    yield "its num_unknown is not from 0 to num_tokens", np.flatnonzero((num_unknown < 0) | (num_unknown > num_tokens))
    yield "its num_characters_cut is below 0", np.flatnonzero(num_cut < 0)
    for flag in FLAGS:
        if flag in batch.schema.names:  # an older version did not write it
            yield f"its {flag} is null", np.flatnonzero(_mask(batch[flag].is_null()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """N lists of M spans, flat."""

    offsets: Rows  # [N + 1]
    starts: Int32s  # [M], -1 where null
    ends: Int32s  # [M], -1 where null
    attention: Float32s  # [M], NaN where null
    effects: Float32s  # [M], NaN where null, and in files of versions without effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """The S sentences of R reviews and their T words, flat. A null list is an empty one here."""

    null_reviews: Mask  # [R], whether the sentences are null
    null_sentences: Mask  # [S], whether the words are null
    sentences: Spans  # of reviews
    words: Spans  # of sentences
    offsets: Rows  # [R + 1], of words in reviews


def attended(sentences: pa.ListArray) -> Attended:
    of_reviews, words = _spans(sentences)
    assert words is not None  # noqa: S101 - the schema has them
    of_sentences, _ = _spans(words)
    return Attended(
        null_reviews=_mask(sentences.is_null()),
        null_sentences=_mask(words.is_null()),
        sentences=of_reviews,
        words=of_sentences,
        offsets=of_sentences.offsets[of_reviews.offsets],
    )


def broken_detail(batch: pa.RecordBatch, lists: Attended, *, attention: AttentionDetail) -> Broken:
    """Sentences and words are present or null exactly as the attention setting says; every token is a word."""
    if attention == "none":
        yield "it has sentences, but attention is none", np.flatnonzero(~lists.null_reviews)
        return
    yield f"its sentences are null, but attention is {attention}", np.flatnonzero(lists.null_reviews)
    if attention == "sentences":
        yield "a sentence has words, but attention is sentences", _owners(lists.sentences.offsets, ~lists.null_sentences)
    else:
        yield "the words of a sentence are null, but attention is words", _owners(lists.sentences.offsets, lists.null_sentences)
        yield "its num_tokens is not the number of its words", np.flatnonzero(_integers(batch["num_tokens"]) != np.diff(lists.offsets))


def broken_attention(lists: Attended) -> Broken:
    """Shares of a review over its sentences, and of a sentence over its words where it has any."""
    sentences, words = lists.sentences, lists.words
    not_whole = _not_whole(sentences) & ~lists.null_reviews
    yield "the attention of a sentence is not from 0 to 1", _owners(sentences.offsets, _not_shares(sentences.attention))
    yield "the attention of its sentences does not sum to 1", np.flatnonzero(not_whole)
    not_whole = _not_whole(words) & ~lists.null_sentences
    yield "the attention of a word is not from 0 to 1", _owners(lists.offsets, _not_shares(words.attention))
    yield "the attention of the words of a sentence does not sum to 1", _owners(sentences.offsets, not_whole)


def broken_effects(batch: pa.RecordBatch, lists: Attended, *, effects: EffectDetail) -> Broken:
    """Every sentence has an effect unless it is the only one of its review. evidence = nothing + sum + interaction, and sum is the sum."""
    sentences, words = lists.sentences, lists.words
    if effects == "none":
        yield "a sentence or a word has an effect, but effects is none", _owners(sentences.offsets, ~np.isnan(sentences.effects))
        yield "a sentence or a word has an effect, but effects is none", _owners(lists.offsets, ~np.isnan(words.effects))
        return
    evidence, nothing, total, interaction = (_floats(batch["effects"].field(name)) for name in _EFFECT_NUMBERS)
    counts = np.diff(sentences.offsets)
    only = np.repeat(counts == 1, counts)
    yield (
        "the effect of a sentence is not a number, or the only sentence has one",
        _owners(sentences.offsets, np.isfinite(sentences.effects) == only),
    )
    yield "its evidence is not a number", np.flatnonzero(~np.isfinite(evidence))
    several = counts > 1
    sums = np.bincount(np.repeat(np.arange(len(counts)), counts), weights=np.nan_to_num(sentences.effects), minlength=len(counts))
    size = np.bincount(np.repeat(np.arange(len(counts)), counts), weights=abs(np.nan_to_num(sentences.effects)), minlength=len(counts))
    with np.errstate(invalid="ignore"):
        yield "the sum of its effects is not their sum", np.flatnonzero(several & ~(abs(total - sums) <= TOLERANCE * (1 + size)))
        rest = abs(evidence.astype(np.float64) - nothing - total - interaction)
        yield "its evidence is not nothing + sum + interaction", np.flatnonzero(several & ~(rest <= TOLERANCE * (1 + size + abs(evidence))))
    if effects == "words" and len(words.effects):
        of_reviews = np.diff(lists.offsets)
        only_word = np.repeat(of_reviews == 1, of_reviews)
        yield "the effect of a word is not a number", _owners(lists.offsets, ~np.isfinite(words.effects) & ~only_word & _has_words(lists))


def _has_words(lists: Attended) -> Mask:
    return np.repeat(~lists.null_sentences, np.diff(lists.words.offsets))


def broken_spans(lists: Attended) -> Broken:
    """0 <= start < end; spans do not overlap; a sentence spans from its first word to its last."""
    sentences, words = lists.sentences, lists.words
    yield "a sentence is not 0 <= start < end", _owners(sentences.offsets, _not_spans(sentences))
    yield "a sentence starts before the one before it ends", _owners(sentences.offsets, _overlaps(sentences, sentences.offsets))
    yield "a word is not 0 <= start < end", _owners(lists.offsets, _not_spans(words))
    yield "a word starts before the one before it ends", _owners(lists.offsets, _overlaps(words, lists.offsets))
    filled = np.diff(words.offsets) > 0
    firsts, lasts = words.offsets[:-1][filled], words.offsets[1:][filled] - 1
    elsewhere = np.zeros(len(filled), np.bool_)
    elsewhere[filled] = (words.starts[firsts] != sentences.starts[filled]) | (words.ends[lasts] != sentences.ends[filled])
    yield "a sentence does not reach from its first word to its last", _owners(sentences.offsets, elsewhere)


def broken_slices(lists: Attended, *, texts: pa.StringArray, attention: AttentionDetail) -> Broken:
    """Spans are code points of the row's own text, and a word (or sentence) has no white space at its ends."""
    what, spans, offsets = "word", lists.words, lists.offsets
    if attention == "sentences":
        what, spans, offsets = "sentence", lists.sentences, lists.sentences.offsets
    texts = _filled(texts, "")
    lengths, counts = _integers(pc.utf8_length(texts)), np.diff(offsets)
    outside = (spans.starts < 0) | (spans.ends > np.repeat(lengths, counts))
    yield f"a {what} is outside its text", _owners(offsets, outside)
    together = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts), "")[0].as_py()
    code_points = np.frombuffer(f"{together}.".encode("utf-32-le"), np.uint32)  # never none
    begins = np.repeat(np.cumsum(lengths, dtype=np.int64) - lengths, counts)
    firsts, lasts = (code_points.take(begins + places, mode="clip") for places in (spans.starts, spans.ends - 1))
    blank = _SPACE.take(firsts, mode="clip") | _SPACE.take(lasts, mode="clip")
    yield f"a {what} begins or ends with white space", _owners(offsets, blank & ~outside)


def _spans(lists: pa.ListArray) -> tuple[Spans, pa.Array | None]:
    """The spans of all lists, and the words of their elements."""
    lengths = _filled(pc.list_value_length(lists), 0).to_numpy()
    elements = lists.flatten()
    fields = {field.name: column for field, column in zip(elements.type, elements.flatten(), strict=True)}
    effects = _floats(fields["effect"]) if "effect" in fields else np.full(len(elements), np.nan, np.float32)
    spans = Spans(
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        starts=_integers(fields["start"]),
        ends=_integers(fields["end"]),
        attention=_floats(fields["attention"]),
        effects=effects,
    )
    return spans, fields.get("words")


def _not_spans(spans: Spans) -> Mask:
    return (spans.starts < 0) | (spans.starts >= spans.ends)


def _overlaps(spans: Spans, groups: Rows) -> Mask:
    """[M], whether a span starts before the one before it in its group ends; `groups` are offsets."""
    overlaps = np.zeros(len(spans.starts), np.bool_)
    overlaps[1:] = spans.starts[1:] < spans.ends[:-1]
    overlaps[groups[:-1][np.diff(groups) > 0]] = False
    return overlaps


def _not_shares(attention: Float32s) -> Mask:
    return ~((attention >= 0) & (attention <= 1 + TOLERANCE))


def _not_whole(spans: Spans) -> Mask:
    """[N], whether the shares of a list do not sum to 1."""
    counts = np.diff(spans.offsets)
    filled = counts > 0
    sums = np.zeros(len(filled))
    if filled.any():
        with np.errstate(invalid="ignore"):  # infinities of a damaged file
            sums[filled] = np.add.reduceat(spans.attention, spans.offsets[:-1][filled], dtype=np.float64)
    return ~(abs(sums - 1) <= np.maximum(TOLERANCE, ROUNDING * counts))


def _owners(offsets: Rows, elements: Mask) -> Rows:
    """The lists that hold any of the elements."""
    return np.unique(np.searchsorted(offsets, np.flatnonzero(elements), side="right") - 1)


_SPACE = np.array([chr(code_point).isspace() for code_point in range(0x3002)])  # U+3000 is the last white space


def _mask(column: pa.Array) -> Mask:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.bool_)


def _integers(column: pa.Array) -> Int32s:
    return np.asarray(_filled(column, -1).to_numpy())


def _floats(column: pa.Array) -> Float32s:
    return np.asarray(_filled(column, np.nan).to_numpy())


def _filled(column: pa.Array, value: float | str) -> pa.Array:
    return pc.fill_null(column, value) if column.null_count else column
