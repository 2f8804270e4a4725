"""Shared by all drawings of a Score: the text in pieces, the scale of its shades, and numbers and facts as text.

A word's shade is its share of the whole review (word attention x sentence attention), divided by the largest such share in that review.
Spans are code points of the raw text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from han.text.raw import BREAK, TAG
from han.types import Effects, Removals, Score, Sentence, Word

# Controls, invisible and bidirectional format characters, lone surrogates. The joiners U+200C and U+200D stay: Persian and emoji need them.
ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_MOST_QUOTED, _QUOTED = 4, 60  # sentences, and characters of each, in a note

__all__ = [
    "BREAK",
    "ODD",
    "TAG",
    "balance",
    "facts",
    "label_class",
    "largest_effects",
    "largest_shares",
    "percent",
    "pieces",
    "removal_notes",
    "signed",
    "visible",
    "warnings",
]


def pieces(text: str, start: int, end: int, words: Iterable[Word]) -> Iterator[tuple[str, Word | None]]:
    """Yields text[start:end] in order: each word with its Word, and the text between words with None."""
    for word in words:
        if start < word.start:
            yield text[start : word.start], None
        yield text[word.start : word.end], word
        start = word.end
    if start < end:
        yield text[start:end], None


def largest_shares(sentences: Sequence[Sentence]) -> tuple[float, float]:
    """Returns the largest sentence attention and the largest share of the review: a word's, or a sentence's if there are no words."""
    largest_sentence = max(sentence.attention for sentence in sentences)
    word_shares = (word.attention * sentence.attention for sentence in sentences for word in sentence.words or ())
    return largest_sentence, max(word_shares, default=largest_sentence)


def largest_effects(sentences: Sequence[Sentence]) -> tuple[float, float]:
    """Returns the largest size of a sentence's effect and of a word's effect; 0 where there is none."""
    of_sentences = (abs(sentence.effect) for sentence in sentences if sentence.effect is not None)
    of_words = (abs(word.effect) for sentence in sentences for word in sentence.words or () if word.effect is not None)
    return max(of_sentences, default=0.0), max(of_words, default=0.0)


def signed(effect: float | None) -> str:
    """Returns an effect in nats with its sign and two decimals, a true minus sign, and a dash where there is none."""
    if effect is None:
        return "\u2013"
    return f"{effect:+.2f}".replace("-", "\u2212")


def balance(effects: Effects, label: str) -> str:
    """Returns how the effects add up to the evidence, as text."""
    evidence = f"evidence for {label} {signed(effects.evidence)}"
    if effects.sum is None:
        return f"{evidence}; a review of one sentence has no sentence effects"
    parts = f"{signed(effects.nothing)} without text, {signed(effects.sum)} from the sentences one by one"
    return f"{evidence} = {parts}, {signed(effects.interaction)} from their interaction (nats)"


def removal_notes(text: str, score: Score, removals: Removals) -> list[str]:
    """Returns the removals that change the label of the review, as sentences."""
    num_sentences = len(score.sentences or ())
    notes = []
    if removals.sentences is not None:
        spans = removals.sentences.spans
        parts = "this sentence" if len(spans) == 1 else f"these {len(spans)} sentences"
        limit = "No smaller set of sentences does that." if removals.sentences.smallest else "A smaller set may exist: not all were tried."
        notes.append(f"Without {parts} of {num_sentences} the label is {removals.sentences.label}: {_quoted(text, spans)}. {limit}")
    elif num_sentences > 1:
        tried = "Every choice was tried" if removals.all_sets_tried else "Not every choice was tried"
        notes.append(f"No removal of sentences was found that changes the label. {tried}; at least one sentence stays.")
    if removals.phrase is not None:
        notes.append(
            f"Without the words {_quoted(text, removals.phrase.spans)} the label is {removals.phrase.label}. No shorter phrase does that."
        )
    return notes


def _quoted(text: str, spans: Sequence[tuple[int, int]]) -> str:
    openings = [" ".join(TAG.sub(" ", text[start:end]).split()) for start, end in spans[:_MOST_QUOTED]]
    quoted = [
        f"\u201c{opening if len(opening) <= _QUOTED else opening[: _QUOTED - 1].rstrip() + chr(0x2026)}\u201d" for opening in openings
    ]
    return ", ".join(quoted) + (f" and {len(spans) - _MOST_QUOTED} more" if len(spans) > _MOST_QUOTED else "")


def facts(score: Score) -> list[str]:
    """Returns the counts of a Score as text; zero counts of unknown tokens and unread characters are left out."""
    shown = [f"{score.num_tokens:,} token{'s' * (score.num_tokens != 1)}"]
    if score.num_unknown:
        shown.append(f"{score.num_unknown:,} unknown")
    if score.num_characters_cut:
        shown.append(f"{score.num_characters_cut:,} character{'s' * (score.num_characters_cut != 1)} not read")
    return shown


def warnings(score: Score) -> list[str]:
    """Returns the reasons not to trust the answer, as sentences."""
    texts = []
    if score.unfamiliar:
        texts.append(f"{score.num_unknown:,} of {score.num_tokens:,} tokens are unknown to the model. Do not trust this answer.")
    if score.uncertain:
        texts.append("The model is uncertain about this review.")
    return texts


def label_class(label: str, labels: Sequence[str]) -> str:
    """Returns the class of the colour of a label: the same on the page, in HTML and in a notebook."""
    if label in ("negative", "positive"):
        return f"l{int(label == 'positive')}"
    return f"l{2 + list(labels).index(label) % 4}"


def percent(share: float) -> str:
    """Returns a share as a percentage with one decimal. Only 0 prints as 0.0, and only 1 prints as 100.0."""
    if 0 < share < 0.0005:
        return "<0.1"
    return ">99.9" if 0.9995 <= share < 1 else f"{100 * share:.1f}"


def visible(text: str) -> str:
    """Returns `text` on one line. Odd characters become their control picture (U+2400 to U+241F) or their code in brackets."""
    return re.sub(r"\s", " ", ODD.sub(lambda odd: chr(0x2400 + ord(odd[0])) if odd[0] < " " else f"[U+{ord(odd[0]):04X}]", text))
