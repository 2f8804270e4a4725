import re
import unicodedata

import regex

from han.text import characters
from han.text.characters import CASE_SHIFT, CODE_POINTS, character_table


def test_every_code_point_has_the_classes_of_python_and_regex() -> None:
    table = character_table().tolist()
    text = "".join(map(chr, range(CODE_POINTS)))
    for kind, pattern in ((characters.WORD, r"\w"), (characters.SPACE, r"\s"), (characters.DIGIT, r"\d")):
        matched = {match.start() for match in regex.finditer(pattern, text)}
        assert matched == {code for code, entry in enumerate(table) if entry & kind}
    for kind, holds in (
        (characters.STRIPPED, str.isspace),
        (characters.UPPER, str.isupper),
        (characters.LOWER, str.islower),
        (characters.MEANING, lambda one: re.match(r"[^\W_]", one) or unicodedata.category(one) == "So"),
    ):
        assert all(bool(entry & kind) == bool(holds(one)) for one, entry in zip(text, table, strict=True))


def test_lower_case_equals_that_of_python_unless_it_is_marked_unsure() -> None:
    table = character_table().tolist()
    unsure = [chr(code) for code, entry in enumerate(table) if entry & characters.UNSURE]
    assert unsure == ["\u0130", "\u03a3"]
    for code, entry in enumerate(table):
        if chr(code) not in unsure:
            assert chr(entry >> CASE_SHIFT) == chr(code).lower()
            assert table[entry >> CASE_SHIFT] >> CASE_SHIFT == entry >> CASE_SHIFT
