"""The slow reference: one review through NLTK's own Punkt and WordPunct.

`Tokeniser` returns the same for every text. It uses the oracle for the texts that its compiled loops leave out, and for all texts where
numba does not work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import regex
from nltk.tokenize import WordPunctTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, PunktToken

from han.config import TextConfig
from han.text.raw import blank_tags, check_length, check_words
from han.types import Refusal, Tokens

DIGIT = regex.compile(r"\d")  # NLTK uses this package, whose Unicode is newer than Python's


class Oracle:
    """NLTK's sentences and words of a review. It holds plain data only."""

    def __init__(self, config: TextConfig, punkt: dict[str, Any] | None) -> None:
        """`punkt` is the result of `learn_punkt`; with None Punkt knows no abbreviation."""
        self.config = config
        self._sentences = PunktSentenceTokenizer(_parameters(punkt), token_cls=_Token)
        self._words = WordPunctTokenizer()

    def tokenise(self, text: str) -> Tokens | Refusal:
        """All words of a review with their spans, or the refusal."""
        if refusal := check_length(text, self.config):
            return refusal
        text = blank_tags(text, self.config.tags)
        if refusal := check_words(text):
            return refusal
        words: list[str] = []
        spans: list[tuple[int, int]] = []
        lengths: list[int] = []
        characters_cut = 0
        for index, (first, last) in enumerate(self._sentences.span_tokenize(text)):
            sentence = text[first:last]
            if self.config.max_sentences is not None and index >= self.config.max_sentences:
                characters_cut += last - first
                continue
            all_spans = list(self._words.span_tokenize(sentence))
            kept = all_spans[: self.config.max_tokens]
            characters_cut += all_spans[-1][1] - kept[-1][1]
            words += [sentence[start:end].lower() for start, end in kept]
            spans += [(first + start, first + end) for start, end in kept]
            lengths.append(len(kept))
        return Tokens(
            words=words,
            spans=np.array(spans, dtype=np.int32).reshape(-1, 2),
            sentence_lengths=np.array(lengths, dtype=np.int32),
            num_characters_cut=characters_cut,
        )


class _Token(PunktToken):  # type: ignore[misc]  # NLTK has no types
    """NLTK's token without its needless searches, which take a quarter of Punkt's time."""

    __slots__ = ()

    def _get_type(self, tok: str) -> str:
        return str(super()._get_type(tok)) if DIGIT.search(tok) else tok.lower()

    @property
    def is_ellipsis(self) -> bool:
        return self.tok.startswith("..") and bool(super().is_ellipsis)


class _Orthography(dict[str, int]):
    """Punkt's orthographic contexts. A look-up inserts nothing; NLTK's defaultdict would grow with every new word."""

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
