"""Check a score: its spans are in order and within the text, attention and probabilities sum to 1, and all numbers are finite."""

from __future__ import annotations

import itertools
import math

from han.types import Score

TOLERANCE = 1e-5


def is_sound(score: Score, text: str) -> bool:
    sentences = score.sentences or ()
    words = [word for sentence in sentences for word in sentence.words or ()]
    spans = [(word.start, word.end) for word in words]
    ends = list(itertools.chain.from_iterable(spans))
    return (
        len(words) == score.num_tokens
        and ends == sorted(ends)
        and ends[0] >= 0
        and ends[-1] <= len(text)
        and all(text[start:end] and not any(map(str.isspace, text[start:end].strip("\x1c\x1d\x1e\x1f"))) for start, end in spans)
        and all(
            sentence.words and sentence.start == sentence.words[0].start and sentence.end == sentence.words[-1].end
            for sentence in sentences
        )
        and all(_is_one(sum(word.attention for word in sentence.words or ())) for sentence in sentences)
        and _is_one(sum(sentence.attention for sentence in sentences))
        and _is_one(sum(score.probabilities.values()))
        and all(math.isfinite(value) and 0 <= value <= 1 for value in score.probabilities.values())
    )


def _is_one(total: float) -> bool:
    return abs(total - 1) <= TOLERANCE
