"""A review becomes sentences of words, each a span into the very same string.

Sentences are those of NLTK's Punkt and words those of NLTK's WordPunct: runs of word characters and runs of punctuation, none dropped.
HTML tags are replaced by as many spaces first, so spans stay valid. Punkt reads the text with its capitals.

Many reviews at a time go through compiled loops (kernel.py). The oracle (oracle.py) takes the others: texts with a character whose lower
case depends on its neighbours (capital sigma) or has two code points (dotted capital I), and all texts where numba does not work.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from han.config import TextConfig
from han.text.compiled import Chunk, knowledge, load_kernel, rules
from han.text.raw import EMPTY, check_length
from han.text.raw import blank_tags as blank_tags
from han.text.vocabulary import Interner
from han.types import EncodedBatch, Int32s, Refusal, Tokens

if TYPE_CHECKING:  # both are slow to import
    from han.text.kernel import Cut, Punkt, Rules
    from han.text.oracle import Oracle

CHUNK_CHARACTERS = 1 << 18  # of a call to the compiled loops: their arrays fit a processor's cache
# Punkt learns few of these from reviews, because writers often omit the period ("Mr Smith").
TITLES = ("mr", "mrs", "ms", "dr", "st", "jr", "sr", "prof", "lt", "col", "gen", "sgt", "capt", "rev", "hon")
ABBREVIATIONS = {*TITLES, "vs", "etc", "esp", "approx", "vol", "fig", "ltd", "inc"}


class Numbering(Protocol):
    """The ids of words: a vocabulary's, or those of an `Interner`."""

    def ids(self, words: Sequence[str]) -> Int32s:
        """Ids of lower-cased words."""

    def ids_of(self, chunk: Chunk) -> Int32s:
        """The same for the tokens of a chunk."""


class Tokeniser:
    """Cuts reviews into sentences of words. A copy in another process is built from the same settings."""

    def __init__(self, config: TextConfig, punkt: dict[str, Any] | None) -> None:
        """`punkt` is the result of `learn_punkt`; with None Punkt knows no abbreviation."""
        self.config = config
        self.punkt = punkt

    def __reduce__(self) -> tuple[type[Tokeniser], tuple[TextConfig, dict[str, Any] | None]]:
        return Tokeniser, (self.config, self.punkt)

    def tokenise(self, text: str) -> Tokens | Refusal:
        """All words of a review with their spans, or the refusal."""
        words = Interner()
        batch = self.tokenise_batch([text], words)
        if batch.refused:
            return batch.refused[0][1]
        return Tokens(
            words=[words.words[number] for number in batch.token_ids.tolist()],
            spans=batch.spans,
            sentence_lengths=batch.sentence_lengths,
            num_characters_cut=int(batch.num_characters_cut[0]),
        )

    def tokenise_batch(self, texts: Sequence[str], numbering: Numbering) -> EncodedBatch:
        """All words of many reviews as ids of `numbering`. A refused text has a `Refusal`; words that a limit cuts are counted."""
        refused = {place: refusal for place, text in enumerate(texts) if (refusal := check_length(text, self.config))}
        places = np.array([place for place in range(len(texts)) if place not in refused], dtype=np.int64)
        parts = [_part(), *(part for some in _groups([texts[place] for place in places]) for part in self._parts(some, numbering))]
        token_ids, spans, sentence_lengths, num_tokens, review_lengths, num_characters_cut = map(np.concatenate, zip(*parts, strict=True))
        has_words = num_tokens > 0
        refused |= dict.fromkeys(places[~has_words].tolist(), EMPTY)
        num_tokens = num_tokens[has_words]
        unknown_before = np.searchsorted(np.flatnonzero(token_ids == 0), np.cumsum(np.concatenate([[0], num_tokens])))
        return EncodedBatch(
            kept=places[has_words],
            refused=tuple(sorted(refused.items(), key=lambda row: row[0])),
            token_ids=token_ids,
            spans=spans,
            sentence_lengths=sentence_lengths,
            review_lengths=review_lengths[has_words],
            num_tokens=num_tokens,
            num_unknown=np.diff(unknown_before).astype(np.int32),
            num_characters_cut=num_characters_cut[has_words],
        )

    def _parts(self, texts: Sequence[str], numbering: Numbering) -> Iterator[_Part]:
        """The compiled loops' reviews, between them those of the oracle."""
        if load_kernel() is None:
            yield from (self._by_oracle(text, numbering) for text in texts)
            return
        chunk = Chunk(texts, self._rules, self._knowledge)
        rows = _Rows(chunk.pieces, numbering.ids_of(chunk))
        done = 0
        for row in chunk.for_oracle:
            yield rows.part(done, row)
            yield self._by_oracle(texts[row], numbering)
            done = row + 1
        yield rows.part(done, len(texts))

    def _by_oracle(self, text: str, numbering: Numbering) -> _Part:
        tokens = self._oracle.tokenise(text)
        if isinstance(tokens, Refusal):
            return _part(num_tokens=[0], review_lengths=[0], num_characters_cut=[0])
        return _part(
            token_ids=numbering.ids(tokens.words),
            spans=tokens.spans,
            sentence_lengths=tokens.sentence_lengths,
            num_tokens=[len(tokens.words)],
            review_lengths=[len(tokens.sentence_lengths)],
            num_characters_cut=[tokens.num_characters_cut],
        )

    @functools.cached_property
    def _oracle(self) -> Oracle:
        from han.text.oracle import Oracle

        return Oracle(self.config, self.punkt)

    @functools.cached_property
    def _rules(self) -> Rules:
        return rules(self.config)

    @functools.cached_property
    def _knowledge(self) -> Punkt:
        return knowledge(self.punkt)


def learn_punkt(texts: Iterable[str]) -> dict[str, Any]:
    """Punkt's parameters for a corpus (Kiss and Strunk 2006) and ABBREVIATIONS, as JSON-ready lists. It takes 5 ms a review."""
    from nltk.tokenize.punkt import PunktTrainer

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


class _Part(NamedTuple):
    """Reviews as numbers, end to end; a refused one has no token."""

    token_ids: Int32s
    spans: Int32s
    sentence_lengths: Int32s
    num_tokens: Int32s
    review_lengths: Int32s
    num_characters_cut: Int32s


def _part(**columns: Sequence[int] | Int32s) -> _Part:
    arrays = {name: np.asarray(columns.get(name, ()), dtype=np.int32) for name in _Part._fields}
    return _Part(**arrays | {"spans": arrays["spans"].reshape(-1, 2)})


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in groups of about CHUNK_CHARACTERS, at least one text each."""
    first, size = 0, 0
    for place, text in enumerate(texts):
        size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield texts[first : place + 1]
            first, size = place + 1, 0
    if first < len(texts):
        yield texts[first:]


class _Rows:
    """The result of the compiled loops, to be read in ranges of reviews."""

    def __init__(self, pieces: Cut, token_ids: Int32s) -> None:
        self.pieces, self.token_ids = pieces, token_ids
        self.tokens = np.concatenate([[0], np.cumsum(pieces.num_tokens)])
        self.sentences = np.concatenate([[0], np.cumsum(pieces.review_lengths)])

    def part(self, first: int, last: int) -> _Part:
        tokens = slice(self.tokens[first], self.tokens[last])
        sentences = slice(self.sentences[first], self.sentences[last])
        pieces = self.pieces
        return _Part(
            token_ids=self.token_ids[tokens],
            spans=pieces.spans[tokens],
            sentence_lengths=pieces.sentence_lengths[sentences],
            num_tokens=pieces.num_tokens[first:last],
            review_lengths=pieces.review_lengths[first:last],
            num_characters_cut=pieces.num_characters_cut[first:last],
        )
