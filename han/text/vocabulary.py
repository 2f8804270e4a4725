"""Words and their row numbers. Row 0 is `<unk>`: a word outside the vocabulary keeps its place in the sentence."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from han.config import VocabConfig
from han.text.compiled import Chunk, word_table
from han.types import Int32s, UserError

if TYPE_CHECKING:
    from han.text.kernel import Words

UNKNOWN = "<unk>"


class Vocab:
    """V words; a word's place is its id."""

    def __init__(self, words: Iterable[str]) -> None:
        """A `UserError` is raised unless `words` begins with `<unk>` and has no word twice."""
        self.words = tuple(words)
        self._ids = {word: row for row, word in enumerate(self.words)}
        if not self.words or self.words[0] != UNKNOWN:
            raise UserError(f"a vocabulary begins with {UNKNOWN}, this one with {self.words[0] if self.words else 'nothing'!r}")
        if len(self._ids) != len(self.words):
            raise UserError(f"a vocabulary holds each word once, this one repeats {len(self.words) - len(self._ids)}")

    def __len__(self) -> int:
        return len(self.words)

    def __reduce__(self) -> tuple[type[Vocab], tuple[tuple[str, ...]]]:
        return Vocab, (self.words,)

    def ids(self, words: Sequence[str]) -> Int32s:
        """Lower-cased words to ids, int32 [T]; 0 for a word outside the vocabulary."""
        find = self._ids.get
        return np.array([find(word, 0) for word in words], dtype=np.int32)

    def ids_of(self, chunk: Chunk) -> Int32s:
        """The same for the tokens of a chunk, by the compiled loops."""
        return np.maximum(chunk.look_up(self._table), 0)

    @functools.cached_property
    def _table(self) -> Words:
        return word_table(self.words)

    def write(self, path: Path) -> None:
        """Write one word a line. No word has white space in it."""
        path.write_bytes("".join(f"{word}\n" for word in self.words).encode())

    @staticmethod
    def read(path: Path) -> Vocab:
        """Read what `write` wrote. A `UserError` is raised for any other file."""
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a vocabulary: {error}") from None
        return Vocab(text.removesuffix("\n").split("\n"))


def build(counts: Counter[str], config: VocabConfig) -> Vocab:
    """The most frequent words first, ties by spelling: at most `max_size` rows of words seen at least `min_count` times."""
    frequent = [(-count, word) for word, count in counts.items() if count >= config.min_count and word != UNKNOWN]
    return Vocab([UNKNOWN, *(word for _, word in sorted(frequent)[: config.max_size - 1])])


class Interner:
    """Ids for the words of a corpus that has no vocabulary yet: 1, 2, ... in order of first appearance. It grows with every new word."""

    def __init__(self) -> None:
        self.words = [UNKNOWN]  # a word's place is its id; no token is <unk>
        self._ids: dict[str, int] = {}

    def ids(self, words: Sequence[str]) -> Int32s:
        """Lower-cased words to ids, int32 [T], all >= 1."""
        return np.array([self._id(word) for word in words], dtype=np.int32)

    def ids_of(self, chunk: Chunk) -> Int32s:
        """The same for the tokens of a chunk, by the compiled loops."""
        words, numbers = chunk.intern()
        return self.ids(words)[numbers]

    def _id(self, word: str) -> int:
        number = self._ids.setdefault(word, len(self.words))
        if number == len(self.words):
            self.words.append(word)
        return number
