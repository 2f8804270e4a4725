"""Values that cross packages, each with its dtype, shape and unit.

Letters in shapes: T tokens, S sentences, R reviews, E embedding, H hidden, D = 2H, A attention, C classes, V vocabulary.
A token is a word or a run of punctuation; id 0 is `<unk>`. Nothing is padded, so no value has a pad id or a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

if TYPE_CHECKING:  # a tokenising worker never loads torch
    from torch import Tensor

Int32s: TypeAlias = NDArray[np.int32]
Float32s: TypeAlias = NDArray[np.float32]
AttentionDetail: TypeAlias = Literal["none", "sentences", "words"]
EffectDetail: TypeAlias = Literal["none", "sentences", "words", "exact_words"]  # see `Effects.word_method` for the last two
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
Reason: TypeAlias = Literal["empty_text", "too_long"]


class UserError(ValueError):
    """A user's mistake. The message is one line: what is wrong, the value seen, the value wanted, what to do."""


class TooManyBad(Exception):
    """More records cannot be scored than `--max-bad-ratio` allows. One line, like a `UserError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a text is not scored; the same rule on every path (see `encode`)."""

    reason: Reason
    message: str  # one line that does not repeat the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One review cut into sentences of tokens, before any vocabulary."""

    words: list[str]  # [T], lower-cased, nothing dropped
    spans: Int32s  # [T, 2], start and end (exclusive) in code points of the raw text
    sentence_lengths: Int32s  # [S], tokens in each sentence, all >= 1
    num_characters_cut: int  # code points of the raw text that `max_sentences` and `max_tokens` left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One review as numbers: all that the network reads, and the spans in the raw text."""

    token_ids: Int32s  # [T], 0 is <unk>
    spans: Int32s  # [T, 2], as in Tokens
    sentence_lengths: Int32s  # [S], all >= 1
    num_characters_cut: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """N texts as numbers: the R reviews that are not refused, end to end in the order of the texts."""

    kept: NDArray[np.int64]  # [R], places of the reviews among the N texts
    refused: tuple[tuple[int, Refusal], ...]  # [N - R], places of the other texts, and why
    token_ids: Int32s  # [T], 0 is <unk>
    spans: Int32s  # [T, 2], as in Tokens
    sentence_lengths: Int32s  # [S], tokens in each sentence, all >= 1
    review_lengths: Int32s  # [R], sentences in each review, all >= 1
    num_tokens: Int32s  # [R], all >= 1
    num_unknown: Int32s  # [R], tokens whose id is 0
    num_characters_cut: Int32s  # [R], as in Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedBatch:
    """R reviews of many lengths, stored flat. A dataclass, because Ray cannot rebuild a tuple of tensors."""

    token_ids: Tensor  # int64 [T], 0 is <unk>
    sentence_lengths: Tensor  # int64 [S], tokens in each sentence, all >= 1, always on the CPU
    review_lengths: Tensor  # int64 [R], sentences in each review, all >= 1, always on the CPU
    ngrams: Tensor | None = None  # float32 [T, F], inputs from n-grams; None: the network looks them up, if it has a table

    @property
    def num_reviews(self) -> int:
        return len(self.review_lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The outputs of the network for a RaggedBatch."""

    logits: Tensor  # float [R, C]
    word_attention: Tensor  # float [T], sums to 1 in each sentence
    sentence_attention: Tensor  # float [S], sums to 1 in each review
    sentence_vectors: Tensor  # float [S, D], the outputs of the word level


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    start: int
    """code point in the text"""
    end: int
    """exclusive"""
    attention: Share
    """share of its sentence"""
    effect: float | None = None
    """nats, as of a sentence; null if not computed, and for the only word of a review"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    start: int
    """start of its first word, a code point in the text"""
    end: int
    """end of its last word, exclusive"""
    attention: Share
    """share of its review"""
    words: tuple[Word, ...] | None
    """null unless word attention was requested"""
    effect: float | None = None
    """evidence of the review minus that without the sentence, in nats; null if not computed, and for the only sentence of a review"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """The evidence of a review for its label, and what its sentences contribute: evidence = nothing + sum + interaction, in nats.

    It is computed from the calibrated logits. See `model.effects`.
    """

    evidence: float
    """log-odds of the label, ln(p / (1 - p))"""
    nothing: float
    """evidence of a review without any sentence"""
    sum: float | None
    """sum of the effects of the sentences; null for a review of one sentence"""
    interaction: float | None
    """the part of the evidence that the effects do not explain; null for a review of one sentence"""
    method: str
    """of the sentences: leave_one_out, exact by definition"""
    word_method: str | None
    """of the words: leave_one_out (exact) or the name of an estimate; null without effects of words"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The answer for one review; the same names, units and nulls in Parquet, JSON and Python."""

    label: str
    probability: Share
    """of the label"""
    probabilities: dict[str, Share]
    """of each label; they sum to 1"""
    sentences: tuple[Sentence, ...] | None
    """in reading order; null without attention"""
    num_tokens: int
    num_unknown: int
    """tokens that are not in the vocabulary of the model"""
    num_characters_cut: int
    """code points that the limits of the model cut"""
    unfamiliar: bool
    """too many tokens are unknown: the model cannot read this text, do not trust the answer"""
    uncertain: bool
    """the probability is below the threshold of the model; always false for a model without one"""
    model: str
    """fingerprint of the model"""
    effects: Effects | None = None
    """null if not computed"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Parts of a review without which the network gives another label."""

    spans: tuple[tuple[int, int], ...]  # of sentences, or one of consecutive words: code points of the raw text, end exclusive
    label: str  # of the rest
    smallest: bool  # False: found greedily, a smaller set may exist


@dataclass(frozen=True, slots=True, kw_only=True)
class Removals:
    """Removals that change the label of one review (see `model.effects`)."""

    sentences: Removal | None  # the smallest set of sentences; None if none was found
    all_sets_tried: bool  # where `sentences` is None: whether no set exists
    phrase: Removal | None  # the shortest span of words within a sentence, never the whole sentence; None if there is none
