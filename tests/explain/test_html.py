"""The HTML shows all of the raw text, and the text cannot become markup or script."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings

from han.explain.html import fragment, page
from han.types import Score, Sentence, Word
from tests.helpers.scores import LONG_TEXT_UNITS, REVIEW, read, scored, seconds, texts_and_scores, with_effects

HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "</style><style>*{display:none}</style>",
    "</p></article></main><svg/onload=alert(1)>",
    "\"'> <a href='javascript:alert(1)'>x</a>",
    "<!-- --> <![CDATA[ ]]> &lt;script&gt; &#0; {{7*7}}",
]
BREAK = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
# All elements and attributes that the HTML may contain. None of them runs, loads or sends anything.
ELEMENTS = {
    "article",
    "header",
    "div",
    "h2",
    "p",
    "ul",
    "ol",
    "li",
    "span",
    "i",
    "strong",
    "svg",
    "rect",
    "input",
    "label",
    "bdi",
    "br",
    "code",
}
ATTRIBUTES = {"class", "id", "dir", "title", "type", "width", "height", "aria-label", "aria-hidden", "data-word", "data-review"}


class Drawn(HTMLParser):
    """Parses the HTML: its elements and attributes, the text of the reviews, and the text of each word."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.raw = ""
        self.words: list[str] = []
        self.shades: list[int] = []
        self.greys: list[str] = []
        self._inside: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag in ("br", "input", "meta"):
            self.raw += "<br>" if tag == "br" else ""
            return
        classes = (dict(attrs).get("class") or "").split()
        self._inside.append(next((kind for kind in ("raw", "w", "odd", "unread") if kind in classes), ""))
        if "w" in classes:
            self.words.append("")
            self.shades.append(next((int(name[1:]) for name in classes if name[0] == "a"), 0))
        if "unread" in classes and "raw" in self._inside:
            self.greys.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._inside.pop()

    def handle_data(self, data: str) -> None:
        if "raw" not in self._inside:
            return
        text = chr(int(data, 16)) if self._inside[-1] == "odd" else data
        self.raw += text
        if "w" in self._inside:
            self.words[-1] += text
        if "unread" in self._inside:
            self.greys[-1] += text


def drawn(text: str, score: Score) -> Drawn:
    html = fragment(text, score)
    return Drawn(html[html.index("</style>") + len("</style>") :])


def sliced(text: str, score: Score) -> list[str]:
    return [text[word.start : word.end] for sentence in score.sentences or () for word in sentence.words or ()]


@settings(deadline=None)  # the machine may be busy
@given(texts_and_scores())
def test_a_drawn_review_without_its_markup_is_the_raw_text(pair: tuple[str, Score]) -> None:
    text, score = pair
    assert BREAK.sub("<br>", drawn(text, score).raw) == BREAK.sub("<br>", text)


@settings(deadline=None)
@given(texts_and_scores())
def test_every_word_is_drawn_once_and_in_order(pair: tuple[str, Score]) -> None:
    text, score = pair
    assert drawn(text, score).words == sliced(text, score)


@settings(deadline=None)
@given(texts_and_scores())
def test_every_page_can_be_encoded_as_utf_8(pair: tuple[str, Score]) -> None:
    text, score = pair
    assert page([(text, text, score)], title=text).encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_text_becomes_markup(text: str) -> None:
    text = f"Dull {text}"
    result = drawn(text, read(text))
    assert set(result.elements) <= ELEMENTS
    assert {name for name, _ in result.attributes} <= ATTRIBUTES
    assert result.raw == text


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_caption_a_title_a_label_or_a_fingerprint_becomes_markup(text: str) -> None:
    score = replace(read(REVIEW), label=text, probabilities={text: 0.9, "other": 0.1}, model=text)
    plain = replace(read(REVIEW), label="x", probabilities={"x": 0.9, "other": 0.1}, model="x")
    hostile_page = Drawn(page([(text, REVIEW, score)] * 2, title=text))
    assert hostile_page.elements == Drawn(page([("x", REVIEW, plain)] * 2, title="x")).elements


def test_sentences_without_word_attention_are_drawn_as_a_whole() -> None:
    score = read(REVIEW)
    assert score.sentences is not None
    coarse = replace(score, sentences=tuple(replace(sentence, words=None) for sentence in score.sentences))
    result = drawn(REVIEW, coarse)
    assert BREAK.sub("<br>", REVIEW) == result.raw
    assert ("class", "s a20") in result.attributes
    assert "input" not in result.elements


def test_a_score_without_attention_shows_only_the_text() -> None:
    result = drawn(REVIEW, scored(REVIEW, None))
    assert BREAK.sub("<br>", REVIEW) == result.raw
    assert result.greys == ["<i>", "</i>"]
    assert result.words == []


def test_a_line_break_in_the_text_is_shown() -> None:
    assert drawn(REVIEW, read(REVIEW)).elements.count("br") == 2


def test_text_that_the_network_did_not_read_is_grey() -> None:
    text = "Good film. <b>This</b> was cut"
    assert drawn(text, replace(read("Good film. "), num_characters_cut=19)).greys == ["<b>", "This", "</b>", " was cut"]


def test_a_shade_is_relative_to_the_largest_share_of_the_review() -> None:
    a, b, c = (Word(start=start, end=start + 1, attention=attention) for start, attention in ((0, 0.8), (2, 0.2), (4, 1.0)))
    sentences = (Sentence(start=0, end=3, attention=0.75, words=(a, b)), Sentence(start=4, end=5, attention=0.25, words=(c,)))
    result = drawn("a b c", scored("a b c", sentences))
    assert result.shades == [20, 5, round(20 * 0.25 / 0.6)]


def test_a_word_carries_its_share_of_its_sentence_and_of_the_review() -> None:
    dull, so = (
        Sentence(start=start, end=start + 4, attention=0.5, words=(Word(start=start, end=start + 4, attention=1.0),)) for start in (0, 5)
    )
    attributes = drawn("Dull. So.", scored("Dull. So.", (dull, so))).attributes
    assert attributes.count(("data-word", "100.0")) == 2
    assert attributes.count(("data-review", "50.0")) == 2


def test_a_share_is_never_rounded_to_0_or_to_100_percent() -> None:
    score = replace(scored("x", None), probability=0.99996, probabilities={"positive": 0.99996, "negative": 0.00004})
    html = fragment("x", score)
    assert "&gt;99.9%" in html
    assert "&lt;0.1%" in html


def test_every_class_has_a_bar() -> None:
    stars = {f"{number} stars": 0.1 for number in range(10)}
    html = fragment("x", replace(scored("x", None), label="3 stars", probability=0.1, probabilities=stars))
    assert html.count("<rect") == 10
    assert all(label in html for label in stars)


def test_invisible_and_bidirectional_characters_are_shown_by_their_code() -> None:
    html = fragment("a\u202eb\u200bc\x00d", scored("", None))
    assert not {"\u202e", "\u200b", "\x00"} & set(html)
    assert "right-to-left override" in html


def test_joined_emoji_stay_joined() -> None:
    assert "👨‍👩‍👧" in fragment("👨‍👩‍👧", scored("", None))


def test_a_sentence_sets_its_own_direction() -> None:
    assert drawn(REVIEW, read(REVIEW)).attributes.count(("dir", "auto")) == 2


def test_a_page_names_no_other_host_or_file() -> None:
    html = page([("a", REVIEW, read(REVIEW)), ("b", REVIEW, read(REVIEW))], title="Two reviews")
    assert not re.search(r"https?:|//[a-z]|\burl\(|@import|\bsrc=|<link|\bstyle=|\bimport\b", html)


def test_a_page_of_several_reviews_allows_its_own_script_and_nothing_else() -> None:
    html = page([("a", REVIEW, read(REVIEW)), ("</script><script>alert(1)</script>", REVIEW, read(REVIEW))], title="Two reviews")
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"; script-src 'sha256-{digest}'; base-uri 'none'" in html
    assert "<script" not in page([("a", REVIEW, read(REVIEW))], title="One review")


def test_a_page_allows_its_own_style_and_nothing_else() -> None:
    html = page([("a", REVIEW, read(REVIEW))], title="One review")
    style = html[html.index("<style>") + len("<style>") : html.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'" in html
    assert html.count("<style") == 1


def test_an_index_links_every_review_of_a_page() -> None:
    html = page([("first", REVIEW, read(REVIEW)), ("second", REVIEW, read(REVIEW))], title="Two reviews")
    attributes = Drawn(html).attributes
    assert [value for name, value in attributes if name == "href"] == ["#review-1", "#review-2"]
    assert [value for name, value in attributes if name == "id"] == ["review-1", "review-2"]


def test_a_page_of_one_review_has_no_index() -> None:
    assert "<table" not in page([("a", REVIEW, read(REVIEW))], title="One review")


def test_a_page_of_one_model_names_it_once() -> None:
    assert page([("a", REVIEW, read(REVIEW))] * 3, title="t").count("3fa9c1d2") == 1


def test_a_page_of_two_models_names_each_beside_its_review() -> None:
    other = replace(read(REVIEW), model="another")
    html = page([("a", REVIEW, read(REVIEW)), ("a", REVIEW, other)], title="t")
    assert (html.count("3fa9c1d2"), html.count("another")) == (1, 1)


def test_the_number_of_characters_cut_is_shown_only_if_some_were_cut() -> None:
    score = read(REVIEW)
    assert "not read</p>" not in fragment(REVIEW, score)
    assert "1,204 characters not read" in fragment(REVIEW, replace(score, num_characters_cut=1204))


def test_a_page_states_that_attention_is_not_an_explanation() -> None:
    assert "not why it decided" in page([("a", REVIEW, read(REVIEW))], title="t")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_text_is_legible_on_every_shade(theme: int) -> None:
    style = fragment("x", scored("x", None))
    ink, paper, *others = (
        hexadecimal(re.findall(rf"--{name}: #(\w{{6}})", style)[theme]) for name in ("ink", "paper", "quiet", "faint", "bar")
    )
    red, green, blue = map(int, re.findall(r"--shade: (\d+) (\d+) (\d+)", style)[theme])
    assert contrast(ink, (red, green, blue)) >= 4.5
    assert min(contrast(colour, paper) for colour in (ink, *others)) >= 4.5


def hexadecimal(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour))


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Returns the contrast ratio of two sRGB colours, as WCAG 2.2 defines it."""
    dark, light = sorted(luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: tuple[int, ...]) -> float:
    red, green, blue = ((c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("unit", LONG_TEXT_UNITS)
def test_drawing_time_is_linear_in_the_length_of_the_text(unit: str) -> None:
    short, long = (seconds(fragment, "x " + unit * count) for count in (500, 4_000))
    assert long < 0.02 + 24 * short  # 8 times the text: linear time gives 8, quadratic time 64


def test_an_unfamiliar_or_uncertain_review_has_a_visible_warning() -> None:
    plain = fragment(REVIEW, read(REVIEW))
    assert 'class="warning"' not in plain
    drawn = fragment(REVIEW, replace(read(REVIEW), unfamiliar=True, uncertain=True))
    assert "tokens are unknown to the model. Do not trust this answer." in drawn
    assert "The model is uncertain about this review." in drawn


def test_effects_are_drawn_signed_in_two_colours_behind_a_switch() -> None:
    drawn = page([("one", "A b. C.", with_effects())], title="Effects")
    assert '<input type="checkbox" class="effects">' in drawn
    assert '<span class="number">+1.25</span><svg class="bar for"' in drawn
    assert '<span class="number">\u22120.50</span><svg class="bar against"' in drawn
    assert 'data-effect="+0.75"' in drawn
    assert "+0.15 from their interaction" in drawn


def test_a_review_without_effects_has_no_switch() -> None:
    assert 'class="effects"' not in page([("one", REVIEW, read(REVIEW))], title="No effects")
