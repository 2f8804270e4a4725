"""The bridge between Python and the compiled loops: their inputs from strings and settings, their answers as arrays.

Nothing here imports numba before the first use.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from itertools import accumulate, chain
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from han.config import TextConfig
from han.text.characters import character_table
from han.text.raw import DOCTYPE, ELEMENTS
from han.types import Int32s

if TYPE_CHECKING:
    from han.text.kernel import Punkt, Rules, Words

log = logging.getLogger(__name__)
NO_LIMIT = 2**31 - 1
NUMBER = "##number##"  # Punkt's type of every number


@functools.cache
def load_kernel() -> ModuleType | None:
    """The compiled loops, or None with one warning where numba does not work. A fresh installation compiles for some seconds."""
    try:
        from han.text import kernel

        empty = knowledge(None)
        Chunk(["Try."], rules(TextConfig()), empty).look_up(empty.words)
    except Exception as error:  # numba is missing, or does not support this Python or this processor
        reason = str(error).partition("\n")[0]
        log.warning("Tokenising without compiled loops, about 30 times slower: %s: %s", type(error).__name__, reason)
        return None
    return kernel


class Chunk:
    """R reviews cut into sentences of words, which have no ids yet."""

    def __init__(self, texts: Sequence[str], rules: Rules, knowledge: Punkt) -> None:
        """R >= 1. Numba must work (see `load_kernel`)."""
        from han.text import kernel

        self.texts = texts
        self.chars, self.offsets = _code_points(texts)
        self.pieces = kernel.cut(self.chars, self.offsets, rules, knowledge)
        self.for_oracle: list[int] = np.flatnonzero(self.pieces.states == kernel.FOR_ORACLE).tolist()  # reviews that are not cut

    def look_up(self, words: Words) -> Int32s:
        """The row of each token's lower-cased word in `words`, int32 [T]; -1 for other words."""
        from han.text import kernel

        return kernel.look_up(self.chars, self.offsets, self.pieces, character_table(), words)  # type: ignore[no-any-return]

    def intern(self) -> tuple[list[str], Int32s]:
        """The U different lower-cased words in order of first appearance, and the place of each token's word among them, int32 [T]."""
        from han.text import kernel

        numbers, places = kernel.intern(self.chars, self.offsets, self.pieces, character_table())
        joined = "".join(self.texts)
        return [joined[start:end].lower() for start, end in places.tolist()], numbers


def word_table(words: Sequence[str]) -> Words:
    """Distinct words for the compiled loops."""
    from han.text import kernel

    return kernel.build_words(*_code_points(words), character_table())  # type: ignore[no-any-return]


def rules(config: TextConfig) -> Rules:
    """Text settings for the compiled loops."""
    from han.text import kernel

    names = [*ELEMENTS, DOCTYPE] if config.tags == "html" else []
    return kernel.Rules(
        characters=character_table(),
        tag_names=np.array(sorted(map(_name_as_number, names)), dtype=np.int64),
        doctype=_name_as_number(DOCTYPE),
        max_sentences=NO_LIMIT if config.max_sentences is None else config.max_sentences,
        max_tokens=NO_LIMIT if config.max_tokens is None else config.max_tokens,
    )


def knowledge(punkt: dict[str, Any] | None) -> Punkt:
    """Punkt's parameters for the compiled loops."""
    from han.text import kernel

    learnt = punkt or {"abbreviations": [], "collocations": [], "sentence_starters": [], "orthography": {}}
    known: dict[str, int] = {NUMBER: 0}
    for word, contexts in learnt["orthography"].items():
        known[word] = contexts
    for kind, words in (
        (kernel.ABBREVIATION, learnt["abbreviations"]),
        (kernel.STARTER, learnt["sentence_starters"]),
        (0, chain.from_iterable(learnt["collocations"])),
    ):
        for word in words:
            known[word] = known.get(word, 0) | kind
    rows = {word: row for row, word in enumerate(known)}
    pairs = {(rows[first], rows[second]) for first, second in learnt["collocations"]}
    return kernel.Punkt(
        words=word_table(list(known)),
        known=np.array(list(known.values()), dtype=np.uint8),
        collocations=kernel.build_pairs(np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)),
        number=rows[NUMBER],
    )


def _code_points(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The texts end to end as code points, and where each begins, [R + 1]."""
    joined = bytearray("".join(texts).encode("utf-32-le", "surrogatepass"))
    return np.frombuffer(joined, np.uint32), np.array([0, *accumulate(map(len, texts))], dtype=np.int64)


def _name_as_number(name: str) -> int:
    """The name of a tag as the compiled loops read it: in base 38, with a to z as 1 to 26, 0 to 9 as 27 to 36, and ! as 37."""
    digits = "abcdefghijklmnopqrstuvwxyz0123456789!"
    return functools.reduce(lambda number, character: 38 * number + digits.index(character) + 1, name, 0)
