"""A review becomes sentences of words, each a span into the very same string.

Sentences are NLTK Punkt's and words are NLTK WordPunct's: runs of word characters and runs of punctuation, nothing dropped. HTML tags are
blanked to equal length first, so offsets survive; Punkt sees the original case, which is half of its evidence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import regex
from nltk.tokenize import WordPunctTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, PunktToken, PunktTrainer

from han.config import TextConfig
from han.types import Refusal, Tokens

TAG = re.compile(r"<[/!]?[A-Za-z][^<>]*>")  # linear: neither < nor > may recur inside
WORD = re.compile(r"[^\W_]")
DIGIT = regex.compile(r"\d")  # NLTK's regular expressions are of this library, whose digits are those of a newer Unicode
# What a corpus of reviews does not teach Punkt, since its writers leave the stop out as often as not ("Mr Smith").
TITLES = ("mr", "mrs", "ms", "dr", "st", "jr", "sr", "prof", "lt", "col", "gen", "sgt", "capt", "rev", "hon")
ABBREVIATIONS = {*TITLES, "vs", "etc", "esp", "approx", "vol", "fig", "ltd", "inc"}


class Tokeniser:
    """Cuts reviews into sentences of words. Plain data inside, so it travels to Ray workers."""

    def __init__(self, config: TextConfig, punkt: dict[str, Any] | None) -> None:
        """`punkt` is what `learn_punkt` returned; None is Punkt as it comes, which knows no abbreviation."""
        self.config = config
        self.punkt = punkt
        self._sentences = PunktSentenceTokenizer(_parameters(punkt), token_cls=_Token)
        self._words = WordPunctTokenizer()

    def tokenise(self, text: str) -> Tokens | Refusal:
        """All words of a review with their spans, or why there are none: the one rule of refusal, applied before Punkt sees the text."""
        if len(text) > self.config.max_characters:
            return Refusal(reason="too_long", message=f"{len(text):,} characters; max_characters is {self.config.max_characters:,}")
        text = blank_tags(text)
        if not has_word(text):
            return Refusal(reason="empty_text", message="no word in the text")
        words: list[str] = []
        spans: list[tuple[int, int]] = []
        lengths: list[int] = []
        characters_cut = 0
        for index, (first, last) in enumerate(self._sentences.span_tokenize(text)):
            sentence = text[first:last]
            if self.config.max_sentences is not None and index >= self.config.max_sentences:
                characters_cut += last - first
                continue
            found = list(self._words.span_tokenize(sentence))
            kept = found[: self.config.max_tokens]
            characters_cut += found[-1][1] - kept[-1][1]
            words += [sentence[start:end].lower() for start, end in kept]
            spans += [(first + start, first + end) for start, end in kept]
            lengths.append(len(kept))
        return Tokens(
            words=words,
            spans=np.array(spans, dtype=np.int32).reshape(-1, 2),
            sentence_lengths=np.array(lengths, dtype=np.int32),
            num_characters_cut=characters_cut,
        )


def blank_tags(text: str) -> str:
    """The same text with every HTML tag replaced by as many spaces."""
    return TAG.sub(lambda tag: " " * len(tag[0]), text) if "<" in text else text


def has_word(text: str) -> bool:
    """Whether anything in the text can carry meaning: a letter, a digit, or a pictograph such as an emoji."""
    return WORD.search(text) is not None or any(unicodedata.category(character) == "So" for character in text)


def learn_punkt(texts: Iterable[str]) -> dict[str, Any]:
    """What Punkt learns of a corpus's abbreviations (Kiss and Strunk 2006), and ours, as JSON-ready lists. About 5 ms a review."""
    trainer = PunktTrainer()
    for text in texts:
        trainer.train(blank_tags(text), finalize=False)
    trainer.finalize_training()
    learnt = trainer.get_params()
    return {
        "abbreviations": sorted(ABBREVIATIONS.union(learnt.abbrev_types)),
        "collocations": sorted([first, second] for first, second in learnt.collocations),
        "sentence_starters": sorted(learnt.sent_starters),
        "orthography": dict(sorted(learnt.ortho_context.items())),
    }


class _Token(PunktToken):  # type: ignore[misc]  # NLTK has no types
    """NLTK's token, which searches only where there is something to find: its two searches are a quarter of Punkt's time."""

    __slots__ = ()

    def _get_type(self, tok: str) -> str:
        return str(super()._get_type(tok)) if DIGIT.search(tok) else tok.lower()

    @property
    def is_ellipsis(self) -> bool:
        return self.tok.startswith("..") and bool(super().is_ellipsis)


class _Orthography(dict[str, int]):
    """How Punkt has seen words written. A look-up inserts nothing, as NLTK's defaultdict does, so texts cannot make a process grow."""

    def __missing__(self, word: str) -> int:
        return 0


def _parameters(punkt: dict[str, Any] | None) -> PunktParameters:
    parameters = PunktParameters()
    parameters.ortho_context = _Orthography()
    if punkt is not None:
        parameters.abbrev_types = set(punkt["abbreviations"])
        parameters.collocations = {(first, second) for first, second in punkt["collocations"]}
        parameters.sent_starters = set(punkt["sentence_starters"])
        parameters.ortho_context.update(punkt["orthography"])
    return parameters
