"""Hostile reviews, each with its expected outcome for every interface, and probes whose cost must grow linearly with their length.

Half of a surrogate pair cannot be written as UTF-8. Files and HTTP refuse it as `invalid_utf8`; a `Scorer` scores it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Expected: TypeAlias = Literal["scored", "empty_text", "too_long"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    name: str
    text: Callable[[int], str]  # takes the model's `max_characters`
    expected: Expected
    is_unicode: bool = True  # whether the text can be written as UTF-8; if not, files and HTTP refuse it as invalid_utf8


def _fixed(name: str, text: str, expected: Expected = "scored", *, is_unicode: bool = True) -> Hostile:
    return Hostile(name=name, text=lambda limit: text, expected=expected, is_unicode=is_unicode)


def _repeated(unit: str) -> Callable[[int], str]:
    """The unit repeated up to the limit, after one word."""
    return lambda limit: ("x" + unit * (limit // len(unit)))[:limit]


REVIEWS = [
    _fixed("nothing", "", "empty_text"),
    _fixed("white space", " \t\r\n\u00a0\u3000\u2028", "empty_text"),
    _fixed("punctuation", "...!?--()[]{}***", "empty_text"),
    _fixed("tags", "<br /><p></p><img src=x onerror=alert(1)>", "empty_text"),
    _fixed("zero width", "\u200b\u200c\u200d\u2060\ufeff", "empty_text"),
    _fixed("direction marks", "\u200b\u202e", "empty_text"),
    _fixed("underscores", "___", "empty_text"),
    _fixed("control characters", "".join(map(chr, range(32))), "empty_text"),
    _fixed("only NUL", "\x00", "empty_text"),
    _fixed("only half a surrogate pair", "\ud800", "empty_text", is_unicode=False),
    _fixed("half a surrogate pair", "good \ud800 film", is_unicode=False),
    _fixed("surrogates in the wrong order", "good \udc00\ud800 film. Fine.", is_unicode=False),
    _fixed("NUL", "good\x00film. \x00Fine."),
    _fixed("control characters among words", "good\x1b[31m\x07 film\x08. Bad\x7f \x85 one."),
    _fixed("separators that Python treats as line ends", "good\x1cfilm.\x1d Bad.\x1e One.\x0b Two.\x0c Three.\u2028Four.\u2029Five."),
    _fixed("text from right to left", "\u202egood film\u202c. \u2067\u05d8\u05d5\u05d1\u2069."),
    _fixed("byte order mark", "\ufeffgood film"),
    _fixed("Chinese", "\u597d\u770b\u7684\u7535\u5f71\u3002\u6211\u559c\u6b22\u3002"),
    _fixed("Arabic", "\u0641\u064a\u0644\u0645 \u062c\u064a\u062f\u061f \u0646\u0639\u0645."),
    _fixed("Thai", "\u0e2b\u0e19\u0e31\u0e07\u0e14\u0e35\u0e21\u0e32\u0e01"),
    _fixed("Turkish capital that becomes longer in lower case", "\u0130yi film. \u0130\u0130\u0130."),
    _fixed("words with unusual lower case", "STRASSE stra\u00dfe \ufb01lm \u1e9e \u01c5. \u03a3\u03a3\u03a3 \u03c2"),
    _fixed("emoji", "\U0001f600"),
    _fixed(
        "joined emoji and skin tones", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd. \U0001f1e9\U0001f1ea \u2764\ufe0f"
    ),
    _fixed("1,000 combining marks", "a" + "\u0301" * 1_000 + " film."),
    _fixed("combining marks on every letter", "".join(letter + "\u0335\u0353" for letter in "good film. ")),
    _fixed("mathematical letters", "\U0001d54f\U0001d557\U0001d55a. \uff27\uff4f\uff4f\uff44"),
    _fixed("noncharacters", "good \ufffe\uffff\U0010ffff film"),
    _fixed("private use", "good \ue000\U000f0000 film"),
    _fixed("digits of other scripts", "\u0661\u0662\u0663 \u00bd \u2168 10/10"),
    *[
        _fixed(f"markup: {text}", text)
        for text in (
            "<script>alert(1)</script>",
            "good <img src=x onerror=alert(1)> film",
            "</script><script>alert(1)</script>",
            "javascript:alert(1)",
            "{{7*7}} ${7*7} #{7*7}",
            "${jndi:ldap://127.0.0.1/a}",
            '"><svg/onload=alert(1)>good',
            "good]]><!--<b>",
            "=cmd|' /C calc'!A0",
            "@SUM(1+1)*cmd|' /C calc'!A0",
            "'; DROP TABLE reviews; --",
            "../../etc/passwd",
            "%00%0d%0aSet-Cookie:x=1",
            "{'text': None}",
            "\\ud800 \\x00 \\n",
        )
    ],
    _fixed("one letter", "a"),
    _fixed("a tag that is never closed", "good <br film"),
    _fixed("a heart", "I <3 it"),
    Hostile(name="one character below the limit", text=lambda limit: "a" * (limit - 1), expected="scored"),
    Hostile(name="at the limit", text=lambda limit: "a" * limit, expected="scored"),
    Hostile(name="one character over the limit", text=lambda limit: "a" * (limit + 1), expected="too_long"),
    Hostile(name="white space over the limit", text=lambda limit: " " * (limit + 1), expected="too_long"),
    Hostile(name="10 MB", text=lambda limit: "good film. " * 909_091, expected="too_long"),
    Hostile(name="10 MB in one word", text=lambda limit: "a" * 10_000_000, expected="too_long"),
    Hostile(name="a million sentences", text=lambda limit: "a. " * 1_000_000, expected="too_long"),
    Hostile(name="10 MB of open tags", text=lambda limit: "<a" * 5_000_000, expected="too_long"),
    Hostile(name="sentences up to the limit", text=lambda limit: ("a. " * limit)[:limit], expected="scored"),
    Hostile(name="words without a full stop up to the limit", text=lambda limit: ("a " * limit)[:limit], expected="scored"),
    Hostile(name="combining marks up to the limit", text=lambda limit: "a" + "\u0301" * (limit - 1), expected="scored"),
    Hostile(name="emoji up to the limit", text=lambda limit: ("\U0001f600 " * limit)[:limit], expected="scored"),
]

# Texts of about n characters on which a backtracking regular expression, or a scan from every character, would be slow.
PROBES: dict[str, Callable[[int], str]] = {
    name: _repeated(unit)
    for name, unit in {
        "one word": "a",
        "full stops": ".",
        "exclamation marks": "!",
        "question marks and words": "?x",
        "opening tags": "<",
        "tags never closed": "<br ",
        "short tags never closed": "<a",
        "closing tags never closed": "</",
        "ampersands": "&",
        "spaces": " ",
        "line ends": "\n",
        "numbers with commas": "1,",
        "numbers with stops": "1.1",
        "negative numbers": "-1,",
        "words with commas": "a,",
        "opening brackets": "(",
        "quotes": '"',
        "curly quotes": "\u201d",
        "dashes": "-",
        "dashes and words": "a-",
        "abbreviations": "a.b.",
        "spaced stops": ". ",
        "sentences": "a. ",
        "sentences on lines": "a.\n",
        "sentences in quotes": 'a." ',
        "sentences in curly quotes": "a.\u201d ",
        "stops in quotes": '."',
        "exclamations in quotes": '!" ',
        "exclamations in quotes on lines": "!'\n'",
        "stops, brackets and dashes": ".) --",
        "ellipses": ".. A",
        "spaced ellipses": "a . . . b",
        "stops and wide spaces": "a.\u3000",
        "stops and separators": "a.\x1c",
        "titles": "Mr. X. ",
        "all kinds of punctuation": 'Mr. X! ("Hm...") -- 3.5, \u201cno\u201d? ',
        "combining marks": "\u0301",
        "joined emoji": "\U0001f468\u200d",
        "zero width": "\u200b",
        "halves of surrogate pairs": "\ud800",
    }.items()
} | {
    "a stop, then spaces": lambda n: "a." + " " * (n - 3) + "b",
    "a stop, then only spaces": lambda n: "a." + " " * (n - 2),
    "a stop, then quotes": lambda n: "a." + '"' * (n - 3) + "b",
    "stops, then a word": lambda n: "." * (n - 1) + "x",
    "a tag of spaces": lambda n: "x<a" + " " * (n - 3),
    "digits, a stop, a capital": lambda n: "1" * (n - 3) + ". A",
    "dashes in a word, a stop, a capital": lambda n: ("a-" * n)[: n - 3] + ". A",
}
