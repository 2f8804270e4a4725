"""The choice and order of the reviews on a page."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from han.explain.gallery import choose
from han.explain.html import page
from han.types import Score, Sentence
from tests.helpers.scores import REVIEW, read


def score(probability: float, effect: float = 0.0) -> Score:
    sentence = Sentence(start=0, end=1, attention=1.0, words=None, effect=effect)
    return dataclasses.replace(read(REVIEW), probability=probability, sentences=(sentence,))


SCORES = [score(0.6, 1.0), score(0.9, -3.0), score(0.7, 2.0), score(0.8)]
LABELS = ["positive", "negative", "negative", None]


def test_the_most_and_the_least_confident_predictions_come_first() -> None:
    assert choose(SCORES, LABELS, order="surest", number=2) == [1, 3]
    assert choose(SCORES, LABELS, order="least_sure", number=2) == [0, 2]


def test_wrong_predictions_come_first_by_confidence() -> None:
    assert choose(SCORES, LABELS, order="wrong", number=9) == [1, 2]


def test_the_review_with_the_largest_sentence_effect_comes_first() -> None:
    assert choose(SCORES, LABELS, order="most_changed", number=9) == [1, 2, 0, 3]


def test_a_random_order_is_a_permutation_that_depends_on_the_seed() -> None:
    orders = [choose(SCORES * 5, LABELS * 5, order="random", number=20, seed=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(20))


def test_wrong_predictions_are_marked_and_a_switch_hides_the_others() -> None:
    drawn = page([("a", REVIEW, read(REVIEW)), ("b", REVIEW, read(REVIEW))], title="Two", labels=["negative", "positive"])
    assert drawn.count('<span class="wrong">labelled <bdi>negative</bdi></span>') == 2  # in the index and at the review
    assert "Show only the 1 wrong of 2 labelled answers." in drawn
    assert drawn.count('<article class="han right"') == 1


def test_no_prediction_is_marked_without_labels() -> None:
    drawn = page([("a", REVIEW, read(REVIEW))], title="One")
    assert 'class="wrong"' not in drawn
    assert 'class="errors"' not in drawn


def test_markup_in_a_label_stays_text() -> None:
    drawn = page([("a", REVIEW, read(REVIEW))], title="One", labels=["<script>alert(1)</script>"])
    assert "<script" not in drawn


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: install one (Debian: apt-get install chromium)")
ANSWERS = [
    ("a", "The plot is thin.", score(0.6, 1.0)),
    ("b", "The CAST  is fine.<script>alert(1)</script>", score(0.9, -3.0)),
    ("c", "The cast is good.", score(0.7, 2.0)),
]


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as started:
        yield started


def written(folder: Path) -> str:
    (folder / "page.html").write_text(page(ANSWERS, title="Three", labels=LABELS[:3], places=[2, 0, 1]), encoding="utf-8")
    return (folder / "page.html").as_uri()


def captions(opened: Page, part: str) -> list[str]:
    """The texts of the visible elements from the top of the page to its end."""
    elements = opened.locator(part).filter(visible=True).all()
    tops = [each.evaluate("element => element.getBoundingClientRect().top") for each in elements]
    return [each.inner_text().strip() for _, each in sorted(zip(tops, elements, strict=True), key=lambda pair: pair[0])]


@in_a_browser
def test_a_page_is_searched_and_sorted_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    opened, complaints = browser.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(dialog.message))
    opened.goto(written(tmp_path))
    opened.fill(".find input", "cast is")
    expect(opened.locator(".find output")).to_have_text("2 of 3 match")
    assert captions(opened, "article .id") == captions(opened, ".index tbody td:first-child") == ["b", "c"]
    opened.fill(".find input", "")
    expect(opened.locator(".find output")).to_have_text("")
    orders = {"-probability": "bca", "probability": "acb", "-effect": "bca", "place": "bca", "": "abc"}
    for key, expected in orders.items():
        opened.select_option(".find select", key)
        assert captions(opened, "article .id") == captions(opened, ".index tbody td:first-child") == list(expected)
    assert complaints == []


@in_a_browser
def test_a_gallery_of_thousands_of_reviews_is_searched_and_sorted_without_a_hang(browser: Browser, tmp_path: Path) -> None:
    number, patience_ms = 2_000, 60_000  # catches a hang: a busy machine takes seconds
    texts = [f"Review number {place} is fine. {REVIEW}" for place in range(number)]
    answers = [
        (f"r{place}", text, dataclasses.replace(read(text), probability=0.5 + place / (2 * number))) for place, text in enumerate(texts)
    ]
    (tmp_path / "page.html").write_text(page(answers, title="Many"), encoding="utf-8")
    opened = browser.new_page()
    opened.set_default_timeout(patience_ms)
    opened.goto((tmp_path / "page.html").as_uri())
    opened.fill(".find input", "number 17 is")
    expect(opened.locator(".find output")).to_have_text("1 of 2,000 match", timeout=patience_ms)
    expect(opened.locator("article:not([hidden]) .id")).to_have_text("r17", timeout=patience_ms)
    opened.fill(".find input", "")
    expect(opened.locator(".find output")).to_have_text("", timeout=patience_ms)
    opened.select_option(".find select", "-probability")
    rows = opened.locator(".index tbody td:first-child")
    expect(rows.first).to_have_text("r1999", timeout=patience_ms)
    assert rows.count() == number
    expect(rows.last).to_have_text("r0", timeout=patience_ms)
    assert opened.locator("#review-2000").evaluate("article => article.style.order") == "1"


@in_a_browser
def test_a_page_without_scripts_shows_all_reviews_and_no_search(browser: Browser, tmp_path: Path) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        opened = context.new_page()
        opened.goto(written(tmp_path))
        assert captions(opened, "article .id") == ["a", "b", "c"]
        expect(opened.locator(".find")).to_be_hidden()


@in_a_browser
@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_problem_in_a_gallery(browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"], width: int) -> None:
    size = {"width": width, "height": 900}
    with browser.new_context(bypass_csp=True, color_scheme=scheme, viewport=size) as context:  # axe is a script
        opened = context.new_page()
        opened.goto(written(tmp_path))
        assert [found["id"] for found in Axe().run(opened).response["violations"]] == []
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
