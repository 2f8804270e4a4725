import time

import pytest

from han.text.raw import BREAK, TAG, blank_tags


@pytest.mark.parametrize(
    "tag",
    [
        "<br>",
        "<br/>",
        "<br />",
        "<BR>",
        "</p>",
        "<h1\n>",
        "<a href='x'>",
        "<img src=x/>",
        "<td nowrap align=left>",
        "<!DOCTYPE html>",
        "<i >",
    ],
)
def test_a_tag_of_html_is_blanked(tag: str) -> None:
    assert blank_tags(f"a{tag}b") == f"a{' ' * len(tag)}b"


@pytest.mark.parametrize(
    "text",
    [
        *("Score <what a wonderful cast> 5", "I <3 it", "<sigh>", "</spoiler>", "<http://example.com>", "<a great film>", "<i loved it>"),
        *("a < b > c", "<>", "</>", "< br>", "<br", "<b <", "<brr>", "<-- x -->", "<!-- x -->", "<\u212abd>", "<\u017f>", "<o:p>", "<1>"),
    ],
)
def test_text_that_is_not_an_html_tag_keeps_its_words(text: str) -> None:
    assert blank_tags(text) == text


def test_the_rule_of_version_0_1_0_blanks_everything_like_a_tag() -> None:
    assert blank_tags("5 <what a cast></x><!y> <3 <!-- x", "any") == "5" + " " * 22 + " <3 <!-- x"


@pytest.mark.parametrize("piece", ["<", "<a ", "<a =", "<a  ", "<br/", "</", "<a =x "])
def test_the_search_for_tags_is_linear(piece: str) -> None:
    began = time.process_time()
    assert TAG.search(piece * 20_000) is None
    assert TAG.search("<a " + piece[1:] * 50_000) is None
    assert time.process_time() - began < 1


@pytest.mark.parametrize("tag", ["<br>", "<BR/>", "<br />", '<br clear="all">', "<br class=x/>"])
def test_a_tag_that_breaks_a_line_is_a_tag(tag: str) -> None:
    assert BREAK.fullmatch(tag)
    assert TAG.fullmatch(tag)


@pytest.mark.parametrize("text", ["<br great film>", "<br-x>", "<b>", "<broken>", "</br>", "<br"])
def test_other_tags_and_text_break_no_line(text: str) -> None:
    assert not BREAK.fullmatch(text)
