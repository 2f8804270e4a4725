"""The rules for raw text, before it is tokenised: what is markup, and which texts are refused.

This is the one definition of an HTML tag, and of one that breaks a line. A tag is blanked before tokenising, and drawn in grey beside the
words.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from han.config import TagRule, TextConfig
from han.types import Refusal

# Every element of the HTML standard, obsolete ones included.
_NAMES: Final = (
    "a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink blockquote body br button canvas "
    "caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl dt em embed fieldset figcaption figure "
    "font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe image img input ins isindex kbd keygen label "
    "legend li link listing main map mark marquee math menu menuitem meta meter multicol nav nextid nobr noembed noframes noscript "
    "object ol optgroup option output p param picture plaintext pre progress q rb rp rt rtc ruby s samp script search section select "
    "slot small source spacer span strike strong style sub summary sup svg table tbody td template textarea tfoot th thead time title "
    "tr track tt u ul var video wbr xmp"
)
ELEMENTS: Final = frozenset(_NAMES.split())
DOCTYPE: Final = "!doctype"
# After the name: nothing, or at least one name=value. So "<a great film>" is text. Each search is linear: a tag holds neither < nor >.
_AFTER: Final = r"(?=[\t\n\f\r ]*/?>|[\t\n\f\r /][^<=>]*=)"
TAG: Final = re.compile(
    rf"<(?:{DOCTYPE}(?=[\t\n\f\r >])|/?(?:{'|'.join(sorted(ELEMENTS))}){_AFTER})[^<>]*>",
    re.ASCII | re.IGNORECASE,
)
BREAK: Final = re.compile(rf"<br{_AFTER}[^<>]*>", re.ASCII | re.IGNORECASE)  # the tags that break a line where a text is drawn
ANY_TAG: Final = re.compile(r"<[/!]?[A-Za-z][^<>]*>")  # the rule of version 0.1.0
WORD: Final = re.compile(r"[^\W_]")
EMPTY: Final = Refusal(reason="empty_text", message="no word in the text")


def blank_tags(text: str, rule: TagRule = "html") -> str:
    """The same text with every tag replaced by as many spaces. Spans into the result are spans into `text`."""
    pattern = TAG if rule == "html" else ANY_TAG
    return pattern.sub(lambda tag: " " * len(tag[0]), text) if "<" in text else text


def check_length(text: str, config: TextConfig) -> Refusal | None:
    """The refusal of a text longer than `max_characters`."""
    if len(text) <= config.max_characters:
        return None
    return Refusal(reason="too_long", message=f"{len(text):,} characters; max_characters is {config.max_characters:,}")


def check_words(text: str) -> Refusal | None:
    """The refusal of a text without a word. Tags are blanked already."""
    return None if has_word(text) else EMPTY


def has_word(text: str) -> bool:
    """Whether the text has a letter, a digit or a pictograph such as an emoji."""
    return WORD.search(text) is not None or any(unicodedata.category(character) == "So" for character in text)
