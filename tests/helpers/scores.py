"""Scores of texts without a model, with sentences, words and attention that a test can compute."""

from __future__ import annotations

import dataclasses
import re
import time
import timeit
from collections.abc import Callable
from itertools import pairwise

from hypothesis import strategies as st

from han.text.raw import blank_tags
from han.types import Effects, Score, Sentence, Word

REVIEW = "I LOVED it, twice!<br /><br />Not  dull &amp; <i>never</i> slow."
LONG_TEXT_UNITS = ["good film. ", "<", "<a", "<br", "&", "\u202e", "é", " ", "a. "]  # a test repeats one of them


def scored(text: str, sentences: tuple[Sentence, ...] | None) -> Score:
    probabilities = {"negative": 0.066, "positive": 0.934}
    return Score(
        label="positive",
        probability=0.934,
        probabilities=probabilities,
        sentences=sentences,
        num_tokens=len(text.split()),
        num_unknown=2,
        num_characters_cut=0,
        unfamiliar=False,
        uncertain=False,
        model="3fa9c1d2",
    )


def read(text: str) -> Score:
    """Returns a score with a sentence up to each full stop. Tags are blank, and the attention grows from word to word."""
    blanked = blank_tags(text)
    spans = [token.span() for token in re.finditer(r"\w+|[^\w\s]+", blanked)]
    ends = [index + 1 for index, (start, _) in enumerate(spans) if text[start] in ".!?"]
    cuts = sorted({0, *ends, len(spans)})
    sentences = [sentence_of(spans[start:end], 1 / (len(cuts) - 1)) for start, end in pairwise(cuts)]
    return scored(text, tuple(sentences))


def sentence_of(spans: list[tuple[int, int]], attention: float) -> Sentence:
    total = len(spans) * (len(spans) + 1) / 2
    words = tuple(Word(start=start, end=end, attention=(index + 1) / total) for index, (start, end) in enumerate(spans))
    return Sentence(start=spans[0][0], end=spans[-1][1], attention=attention, words=words)


def with_effects() -> Score:
    """Returns a score of the text "A b. C." whose first sentence supports the label and whose second contradicts it."""
    first = sentence_of([(0, 1), (2, 3), (3, 4)], 0.75)
    words = tuple(dataclasses.replace(word, effect=effect) for word, effect in zip(first.words or (), (0.5, 0.75, -0.1), strict=True))
    second = sentence_of([(5, 6), (6, 7)], 0.25)
    effects = Effects(evidence=1.0, nothing=0.1, sum=0.75, interaction=0.15, method="leave_one_out", word_method="leave_one_out")
    sentences = (dataclasses.replace(first, words=words, effect=1.25), dataclasses.replace(second, effect=-0.5))
    return dataclasses.replace(scored("A b. C.", sentences), effects=effects)


@st.composite
def texts_and_scores(draw: st.DrawFn) -> tuple[str, Score]:
    """Draws any text, with any words in order, in any sentences."""
    pieces = [
        "<br />",
        "<BR>",
        "<b>",
        "</p>",
        "&amp;",
        "<",
        "\x1b[31m",
        "\u202e",
        "\u200b",
        "\ud800",
        "\r\n",
        "é",
        "שלום",
        "👍🏽",
        " ",
        ". ",
    ]
    text = draw(st.lists(st.one_of(st.sampled_from(pieces), st.text(max_size=6)), min_size=1, max_size=30).map("".join).filter(bool))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=20)))
    spans = list(pairwise(cuts))[:: draw(st.sampled_from([1, 2]))]
    groups = sorted({0, len(spans), *draw(st.sets(st.integers(0, len(spans)), max_size=4))})
    return text, scored(text, tuple(sentence_of(spans[start:end], 1 / (len(groups) - 1)) for start, end in pairwise(groups)))


def seconds(draw: Callable[[str, Score], str], text: str) -> float:
    """Returns the processor time of the fastest of three drawings, without garbage collection, whose time depends on the whole process."""
    score = read(text)
    return min(timeit.repeat(lambda: draw(text, score), timer=time.process_time, repeat=3, number=1))
