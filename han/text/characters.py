"""The properties of each code point that the tokeniser uses, as one table of numbers.

The low 11 bits of an entry are the classes below, the other 21 are the code point in lower case. `\\w`, `\\s` and `\\d` are those of the
`regex` package, which NLTK uses; case and white space are Python's. The classes of punctuation repeat the patterns of
`nltk.tokenize.punkt.PunktLanguageVars`.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

import numpy as np
import regex
from numpy.typing import NDArray

CODE_POINTS: Final = 0x110000
WORD: Final = 1  # \w
SPACE: Final = 2  # \s
DIGIT: Final = 4  # \d
STRIPPED: Final = 8  # str.strip removes it
UPPER: Final = 16  # str.isupper
LOWER: Final = 32  # str.islower
MEANING: Final = 64  # a review with such a character is not empty
UNSURE: Final = 128  # its lower case has two code points, or depends on its neighbours
ENDS_WORD: Final = 256  # a word of Punkt ends before it
CLOSES: Final = 512  # after a full stop it belongs to the sentence before
STARTS_NO_WORD: Final = 1024  # a word of Punkt is this character alone
CASE_SHIFT: Final = 11  # bits of classes

PUNCTUATION: Final = {
    ENDS_WORD: ")\";}]*:@'({[\u2018\u2019\u201c\u201d\xab\xbb?!",
    CLOSES: "\"')]}\u2018\u2019\u201c\u201d\xab\xbb",
    STARTS_NO_WORD: '("`{[:;&#*@)}]-,',
}
PATTERNS: Final = {
    WORD: regex.compile(r"\w+"),
    SPACE: regex.compile(r"\s+"),
    DIGIT: regex.compile(r"\d+"),
    STRIPPED: re.compile(r"\s+"),
    MEANING: re.compile(r"[^\W_]+"),
}
PICTOGRAPH: Final = "So"  # the Unicode category of emoji
# Planes 0 to 3 and 14. The others hold unassigned and private code points, which have no class and no case.
_ASSIGNED: Final = (range(0x40000), range(0xE0000, 0xF0000))


@functools.cache
def character_table() -> NDArray[np.uint32]:
    """uint32 [0x110000], indexed by code point. The first call takes 0.1 s."""
    table = np.arange(CODE_POINTS, dtype=np.uint32) << np.uint32(CASE_SHIFT)
    for planes in _ASSIGNED:
        _describe(planes, table[planes.start : planes.stop])
    for kind, characters in PUNCTUATION.items():
        table[[ord(character) for character in characters]] |= np.uint32(kind)
    return table


def _describe(planes: range, rows: NDArray[np.uint32]) -> None:
    """Fill in the rows of these code points."""
    text = np.arange(planes.start, planes.stop, dtype=np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
    for kind, pattern in PATTERNS.items():
        for run in pattern.finditer(text):
            rows[run.start() : run.end()] |= np.uint32(kind)
    _mark(rows, UPPER, map(str.isupper, text))
    _mark(rows, LOWER, map(str.islower, text))
    _mark(rows, MEANING, (category == PICTOGRAPH for category in map(unicodedata.category, text)))
    for row, (character, lower) in enumerate(zip(text, map(str.lower, text), strict=True)):
        if lower != character:
            if len(lower) > 1 or f"a{character}".lower() != f"a{lower}":
                rows[row] |= np.uint32(UNSURE)
            else:
                rows[row] = int(rows[row]) % (1 << CASE_SHIFT) | ord(lower) << CASE_SHIFT


def _mark(rows: NDArray[np.uint32], kind: int, has: Iterable[bool]) -> None:
    rows[np.fromiter(has, bool, len(rows))] |= np.uint32(kind)
