"""The terminal shows the text and its shares, and no text can act as a control sequence."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings

from han.explain.terminal import terminal
from han.types import Removal, Removals, Score
from tests.helpers.scores import LONG_TEXT_UNITS, REVIEW, read, scored, seconds, sentence_of, texts_and_scores, with_effects

ESCAPE_CODE = re.compile(r"\x1b\[[0-9;]*m")


@settings(deadline=None)
@given(texts_and_scores())
def test_without_colour_the_only_control_characters_are_line_ends(pair: tuple[str, Score]) -> None:
    text, score = pair
    assert not controls(terminal(text, score, width=80, colour=False))


@settings(deadline=None)
@given(texts_and_scores())
def test_with_colour_the_only_control_sequences_are_colours(pair: tuple[str, Score]) -> None:
    text, score = pair
    assert not controls(ESCAPE_CODE.sub("", terminal(text, score, width=80, colour=True)))


def controls(printed: str) -> set[str]:
    return {character for character in printed if unicodedata.category(character) in ("Cc", "Cs")} - {"\n"}


def test_an_escape_code_in_the_text_is_shown_as_a_symbol() -> None:
    text = "red \x1b[31m and \x9b31m"
    assert "red ␛[31m and [U+009B]31m" in terminal(text, scored(text, None), width=80, colour=True)


def test_an_escape_code_in_a_label_is_shown_as_a_symbol() -> None:
    score = replace(scored("x", None), label="\x1b[2J", probabilities={"\x1b[2J": 1.0}, model="\x1b]0;")
    assert "\x1b" not in terminal("x", score, width=80, colour=False)


def test_each_sentence_is_shown_beside_its_share() -> None:
    printed = terminal(REVIEW, read(REVIEW), width=80, colour=False)
    assert re.search(r"^ 50\.0% █{8} I LOVED it, twice!$", printed, re.MULTILINE)
    assert re.search(r"^ 50\.0% █{8} Not dull &amp; never slow\.$", printed, re.MULTILINE)


def test_without_colour_the_most_attended_words_are_listed() -> None:
    assert "↳ ! 28.6% · twice 23.8% · , 19.0%" in terminal(REVIEW, read(REVIEW), width=80, colour=False)


def test_colour_marks_the_most_attended_word() -> None:
    assert "\x1b[38;5;16;48;5;39m!\x1b[0m" in terminal(REVIEW, read(REVIEW), width=80, colour=True)


def test_colour_does_not_change_the_text() -> None:
    score = read(REVIEW)
    plain = terminal(REVIEW, score, width=80, colour=False).splitlines()
    coloured = ESCAPE_CODE.sub("", terminal(REVIEW, score, width=80, colour=True)).splitlines()
    assert coloured == [line for line in plain if "↳" not in line]


@pytest.mark.parametrize("width", [40, 61, 200])
def test_lines_fit_the_width_of_the_terminal(width: int) -> None:
    text = " ".join(["word", "y" * 300, "don't!", "漢字" * 50] * 3) + "."
    lines = terminal(text, read(text), width=width, colour=False).splitlines()
    assert max(sum(1 + (unicodedata.east_asian_width(character) == "W") for character in line) for line in lines) <= width


def test_a_wrapped_line_does_not_start_with_a_space() -> None:
    lines = terminal("", scored("", None), width=40, colour=False).splitlines()
    text = " ".join(["x" * 40, "word", "y" * 120, "word"])
    assert terminal(text, scored(text, None), width=40, colour=False).splitlines()[len(lines) - 1 :] == [
        "x" * 40,
        "word",
        *["y" * 40] * 3,
        "word",
    ]


def test_drawing_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [terminal(REVIEW, read(REVIEW), width=80, colour=colour) for colour in (False, True)]
    for name, value in {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "10", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    assert [terminal(REVIEW, read(REVIEW), width=80, colour=colour) for colour in (False, True)] == drawn


@pytest.mark.parametrize("unit", LONG_TEXT_UNITS)
def test_drawing_time_is_linear_in_the_length_of_the_text(unit: str) -> None:
    short, long = (seconds(lambda text, score: terminal(text, score, width=80, colour=True), "x " + unit * count) for count in (500, 4_000))
    assert long < 0.02 + 24 * short  # 8 times the text: linear time gives 8, quadratic time 64


def test_an_unfamiliar_review_has_a_warning_below_its_probabilities() -> None:
    drawn = terminal(REVIEW, replace(read(REVIEW), unfamiliar=True), width=100, colour=False)
    assert "! 2 of " in drawn
    assert "Do not trust this answer." in drawn
    assert "uncertain" not in drawn


def test_effects_are_shown_beside_attention_with_their_bars_and_their_sum() -> None:
    score = with_effects()
    plain = terminal("A b. C.", score, width=80, colour=False)
    assert " 75.0%  +1.25 ████████ A b." in plain
    assert " 25.0%  \u22120.50 ███▎     C." in plain
    assert "b +0.75" in plain
    assert "evidence for positive +1.00 = +0.10 without text, +0.75 from the sentences one by one, +0.15" in plain.replace("\n", " ")


def test_the_bar_of_an_effect_has_the_colour_of_its_sign() -> None:
    drawn = terminal("A b. C.", with_effects(), width=80, colour=True)
    assert "\x1b[38;5;32m████████\x1b[0m" in drawn
    assert "\x1b[38;5;208m███▎    \x1b[0m" in drawn


def test_what_has_to_be_taken_out_for_another_label_is_a_note() -> None:
    text = "A b. C. D e f."
    spans = ((0, 4), (5, 7))
    removals = Removals(
        sentences=Removal(spans=spans, label="negative", smallest=True),
        all_sets_tried=True,
        phrase=Removal(spans=((8, 11),), label="negative", smallest=True),
    )
    drawn = " ".join(terminal(text, read(text), width=200, colour=False, removals=removals).split())
    assert "Without these 2 sentences of 3 the label is negative: \u201cA b.\u201d, \u201cC.\u201d. No smaller set" in drawn
    assert "Without the words \u201cD e\u201d the label is negative. No shorter phrase does that." in drawn
    greedy = replace(removals, sentences=Removal(spans=spans, label="negative", smallest=False))
    assert "A smaller set may exist: not all were tried." in terminal(text, read(text), width=200, colour=False, removals=greedy)
    none = Removals(sentences=None, all_sets_tried=False, phrase=None)
    assert "Not every choice was tried" in terminal(text, read(text), width=200, colour=False, removals=none)


@pytest.mark.parametrize(("between", "num_blank"), [("<br /><br />", 1), ("<br great film><br great film>", 0)])
def test_a_paragraph_is_a_blank_line_and_text_in_angle_brackets_is_none(between: str, num_blank: int) -> None:
    """An artifact of version 0.1.0 does not read the second."""
    text = f"Good.{between}Bad."
    start = len(text) - 4
    sentences = (sentence_of([(0, 4), (4, 5)], 0.5), sentence_of([(start, start + 3), (start + 3, start + 4)], 0.5))
    lines = terminal(text, scored(text, sentences), width=80, colour=False).splitlines()
    first, second = (next(number for number, line in enumerate(lines) if line.endswith(sentence)) for sentence in ("Good.", "Bad."))
    assert lines[first:second].count("") == num_blank
