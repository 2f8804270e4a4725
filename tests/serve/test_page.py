"""The page in a headless Chromium, on the service in one process: it draws like the library, and text is never markup."""

from __future__ import annotations

import base64
import random
import re
import shutil
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright

import han
import serve
from han.explain.html import fragment
from han.explain.pieces import signed
from han.model import artifact
from han.model.artifact import Artifact
from han.score.scorer import Scorer
from han.types import Score
from serve.options import Options
from tests.helpers import local_service

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: install one (Debian: apt-get install chromium)")

MIXED = (
    "The trailer promised a thriller, and for an hour I got a lecture. The dialogue is wooden, the music never stops, and Mr. Kell looks "
    "as lost as I was.\n\nThen the last act arrives. It is quiet, patient and beautifully acted, and it moved me more than anything I have "
    "seen this year! Not a perfect film, but I may see it again."
)
MARKED_UP = "I LOVED it, twice!<br /><br />Not  dull &amp; <i>never</i>\tslow.\n\n <b>Well acted</b>, &lt;really&gt;. "
EMOJI = "👨\u200d👩\u200d👧 loved it 👍🏽! A cafe\u0301 in हिन्दी, \U0001d4d6ood 🇫🇮 fun. 漢字の映画。 Dull end 😴."
RIGHT_TO_LEFT = "السيناريو رائع جدا. הסרט הזה היה נהדר, really. می\u200cخواهم فیلم!"  # noqa: RUF001
INVISIBLE = (
    "Good " + " film ".join(map(chr, [0, 1, 0x1B, 0x7F, 0x9B, 0xAD, 0x200B, 0x202E, 0x2028, 0x2066, 0xFEFF, 0xFFF9, 0xE0041])) + " dull."
)
HOSTILE = [
    "<script>window.__xss = 1; alert(1)</script>",
    '<img src=x onerror="window.__xss = 1; alert(1)">',
    "</p></textarea></script><svg/onload=alert(1)>",
    '"><svg/onload=alert(1)> \'"` onfocus=alert(1) autofocus ',
    "<iframe srcdoc='<script>parent.__xss = 1</script>'></iframe><style>*{display:none}</style>",
    "<a href='javascript:alert(1)'>javascript:alert(1)</a> <base href=//example.com> <form action=//example.com>",
    "{{7*7}} ${jndi:ldap://example.com/x} __proto__ constructor &lt;script&gt; &#0; <!-- --> <![CDATA[ ]]>",
    "='cmd'|' /C calc'!A0",
    "Z\u0335\u0321a\u0338\u0328l" + "\u0334" * 300 + "go. " + "\u202e\u2066\u200b\u200f" * 20 + " evil",
]
PATIENT = Options(deadline_s=30)  # a busy machine must not turn an answer into a 504
# Text, tint and kind of all that is drawn. The library says a shade by a class, the page by a property.
DRAWN = """rows => rows.map(row => [row.textContent, ...[...row.querySelectorAll(".w, .unread, .odd, br")].map(part => [
    part.matches(".w") ? "word" : part.className, part.textContent,
    Number(/\\ba(\\d+)/.exec(part.className)?.[1] ?? Math.round(20 * part.style.getPropertyValue("--a")))])])"""


@pytest.fixture(scope="module")
def model() -> Artifact:
    return artifact.load(artifact.find("imdb"))


@pytest.fixture(scope="module")
def scorer(model: Artifact) -> Scorer:
    return Scorer(model)


@pytest.fixture(scope="module")
def address(model: Artifact) -> Iterator[str]:
    yield from serving(model, PATIENT)


@pytest.fixture(scope="module")
def locked(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that requires a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("correct-horse-battery\n")
    yield from serving(model, PATIENT.model_copy(update={"api_keys_file": str(keys)}))


def serving(model: Artifact, options: Options) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(local_service.app(model, options), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with watched(browser, address) as page:
        yield page


@contextmanager
def watched(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """The open page. At the end, check that there was no error, no dialog and no request to another host."""
    with browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options) as context:
        page, faults = context.new_page(), []
        page.set_default_timeout(10_000)

        def console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
                faults.append(message.text)

        def request(sent: Request) -> None:
            if not sent.url.startswith(address):
                faults.append(sent.url)

        page.on("console", console)
        page.on("request", request)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.add_init_script("addEventListener('securitypolicyviolation', event => console.error(event.violatedDirective))")
        page.goto(address)
        expect(page.locator("#counter")).to_have_text("0 of 50,000 characters")
        yield page
        assert page.evaluate("window.__xss") is None
        assert faults == []


def ask(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.click("#score")
    settled(page)


def settled(page: Page) -> None:
    """Wait for the result. Muting waits a moment before its request and fades the numbers meanwhile."""
    answered_or_not = page.locator("#answer:not(.waiting), #trouble")
    answered_or_not.filter(visible=True).first.wait_for()
    expect(page.locator("#trouble p")).to_be_hidden()
    page.locator("body:not(.busy)").wait_for()


def answered(scorer: Scorer, text: str) -> Score:
    [score] = scorer.score([text])
    assert isinstance(score, Score)
    return score


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def drawn(page: Page) -> list[Any]:
    return page.locator(".raw").evaluate_all(DRAWN)


def test_a_review_is_drawn_like_in_the_library(page: Page, scorer: Scorer, browser: Browser) -> None:
    oracle = browser.new_page()  # in a window of its own: what is in a background tab is slow
    numbers = ".sentences .share .number, .verdict .number, .classes .number"
    for text in [MIXED, MARKED_UP, EMOJI, RIGHT_TO_LEFT, INVISIBLE, *(f"Dull {hostile}" for hostile in HOSTILE)]:
        ask(page, text)
        oracle.set_content(f"<!DOCTYPE html><meta charset=utf-8>{fragment(text, answered(scorer, text))}")
        assert drawn(page) == drawn(oracle)
        assert page.locator(numbers).all_text_contents() == oracle.locator(numbers).all_text_contents()
    oracle.close()


def test_effects_equal_those_of_the_scorer_and_of_muting(page: Page, scorer: Scorer) -> None:
    text = "The first hour is slow. Then the last act is beautifully acted. I loved it!"
    ask(page, text)
    page.click("#view")
    settled(page)
    [score] = scorer.score([text], effects="exact_words")
    assert isinstance(score, Score)
    assert score.sentences
    shown = [signed(sentence.effect) for sentence in score.sentences]
    assert page.locator(".sentences .share .number").all_text_contents() == shown
    expect(page.locator("#balance")).to_contain_text("from their interaction")
    page.locator(".w", has_text="loved").hover()
    loved = next(word for word in score.sentences[2].words or () if text[word.start : word.end] == "loved")
    expect(page.locator("#tip")).to_have_text(f"effect {signed(loved.effect)} nats")
    [rest] = scorer.score([text[: score.sentences[0].start] + " " * score.sentences[0].end + text[score.sentences[0].end :]])
    assert isinstance(rest, Score)
    assert score.effects
    left = np.log(rest.probabilities[score.label]) - np.log1p(-rest.probabilities[score.label])
    assert score.sentences[0].effect == pytest.approx(score.effects.evidence - left, abs=1e-5)
    page.click("#view")
    settled(page)
    assert page.locator(".sentences .share .number").first.text_content() == percent(score.sentences[0].attention)


def test_muting_a_sentence_changes_the_answer_by_its_shown_effect(page: Page) -> None:
    ask(page, MIXED)
    page.click("#view")
    settled(page)
    numbers = page.locator(".sentences .share .number")
    with page.expect_response("**/v1/score") as answer:  # the same answer again: now the test sees what the page holds
        page.click("#score")
    settled(page)
    whole = answer.value.json()["results"][0]
    assert numbers.all_text_contents() == [signed(sentence["effect"]) for sentence in whole["sentences"]]
    for number, sentence in enumerate(whole["sentences"]):
        with page.expect_response("**/v1/score") as answer:
            page.locator(".share").nth(number).click()
        settled(page)
        rest = answer.value.json()["results"][0]
        expect(page.locator(".verdict")).to_have_text(f"{rest['label']} {percent(rest['probability'])}")
        sign = 1 if rest["label"] == whole["label"] else -1
        change = whole["effects"]["evidence"] - sign * rest["effects"]["evidence"]
        assert change == pytest.approx(sentence["effect"], abs=1e-5)
        page.click("#unmute")
        settled(page)


def test_every_word_is_the_slice_of_its_span(page: Page, scorer: Scorer) -> None:
    for text in (MIXED, MARKED_UP, EMOJI, RIGHT_TO_LEFT):
        ask(page, text)
        sentences = answered(scorer, text).sentences or ()
        assert page.locator(".raw .w").all_text_contents() == [text[word.start : word.end] for row in sentences for word in row.words or ()]


def test_text_is_never_interpreted_as_markup(page: Page) -> None:
    for text in HOSTILE:
        ask(page, f"Dull {text}")
        page.locator("#as-table").evaluate("details => { details.open = true }")
        elements = page.locator("#answer :is(.raw, tbody) *")
        assert set(elements.evaluate_all("all => all.map(one => one.localName)")) <= {"span", "i", "br", "tr", "th", "td", "bdi"}
        attributes = elements.evaluate_all("all => all.flatMap(one => one.getAttributeNames())")
        assert set(attributes) <= {"class", "style", "title", "tabindex", "scope", "data-sentence", "data-review"}


def test_a_lone_surrogate_is_scored_as_a_replacement_character(page: Page) -> None:
    page.evaluate("document.getElementById('text').value = 'Good \\ud800 film.'")
    page.click("#score")
    settled(page)
    assert drawn(page)[0][0] == "Good \ufffd film."


def test_characters_are_counted_like_in_the_model(page: Page) -> None:
    page.fill("#text", "👍🏽 e\u0301")
    expect(page.locator("#counter")).to_have_text("5 of 50,000 characters")


def test_the_longest_review_is_drawn(page: Page) -> None:
    ask(page, ("It is a film. " * 4_000)[:50_000])
    assert page.locator(".row").count() > 3_000


def test_unknown_words_are_counted_and_explained(page: Page) -> None:
    ask(page, "A zzyzxq film.")
    expect(page.locator("#facts")).to_contain_text("1 unknown")
    expect(page.locator(".if-unknown")).to_be_visible()


@pytest.mark.parametrize("text", ["😍😍😍", "Der Film war leider sehr langweilig, und die Handlung ist vorhersehbar."])
def test_a_text_that_the_model_cannot_read_has_a_visible_warning(page: Page, text: str) -> None:
    ask(page, text)
    expect(page.locator(".warning").first).to_contain_text("tokens are unknown to the model. Do not trust this answer.")
    expect(page.locator("#said")).to_contain_text("Do not trust this answer.")
    ask(page, MIXED)
    expect(page.locator(".warning")).to_have_count(0)


def test_a_random_review_shows_its_label(page: Page) -> None:
    page.click("#random")
    settled(page)
    expect(page.locator("#caption")).to_have_text(re.compile(r"^sample/\d{4}, written as (positive|negative)$"))
    assert "".join(row[0] for row in drawn(page)) == page.input_value("#text")
    page.press("#text", "!")
    page.click("#score")
    settled(page)
    expect(page.locator("#caption")).to_be_hidden()


def test_the_user_text_returns_after_a_random_review(page: Page) -> None:
    page.fill("#text", MIXED)
    page.click("#random")
    settled(page)
    page.click("#random")
    settled(page)
    page.click("#back")
    expect(page.locator("#text")).to_have_value(MIXED)


def test_a_muted_sentence_is_blanked_and_the_rest_is_scored(page: Page, scorer: Scorer) -> None:
    ask(page, MIXED)
    before = answered(scorer, MIXED)
    page.locator(".raw").nth(3).click()
    settled(page)
    sentence = (before.sentences or ())[3]
    after = answered(scorer, MIXED[: sentence.start] + " " * (sentence.end - sentence.start) + MIXED[sentence.end :])
    move = f"1 sentence muted: positive {percent(before.probability)} → {percent(after.probabilities['positive'])}"
    expect(page.locator("#move")).to_contain_text(move)
    expect(page.locator("#move")).to_contain_text("points, now negative")
    expect(page.locator(".verdict")).to_have_text(f"negative {percent(after.probability)}")
    shares = [percent(sentence.attention) for sentence in after.sentences or ()]
    assert page.locator(".share .number").all_text_contents() == [*shares[:3], "muted", *shares[3:]]


def test_muting_keeps_the_positions_of_characters(page: Page) -> None:
    ask(page, EMOJI)
    rows = [row[0] for row in drawn(page)]
    page.locator(".share").first.click()
    settled(page)
    assert [row[0] for row in drawn(page)] == rows


def test_several_sentences_may_be_muted_and_unmuted_at_once(page: Page) -> None:
    ask(page, MIXED)
    before = drawn(page)
    for number in (0, 2, 4):
        page.locator(".share").nth(number).click()
    settled(page)
    expect(page.locator("#move")).to_contain_text("3 sentences muted: positive")
    page.click("#unmute")
    settled(page)
    assert drawn(page) == before
    expect(page.locator(".muted")).to_have_count(0)


def test_consecutive_clicks_send_one_request(page: Page) -> None:
    ask(page, MIXED)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.evaluate("for (const share of [...document.querySelectorAll('.share')].slice(0, 3)) share.click()")
    settled(page)
    assert len(sent) == 1


def test_a_fully_muted_text_is_not_an_error_of_the_server(page: Page) -> None:
    ask(page, "Dull.")
    page.locator(".share").click()
    expect(page.locator("#trouble p")).to_have_text("There is no word to read in this text.")
    page.locator(".share").click()
    settled(page)
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_newer_request_cancels_the_older_one(page: Page) -> None:
    held: list[Route] = []
    failed: list[str | None] = []
    page.on("requestfailed", lambda request: failed.append(request.failure))
    page.route("**/v1/score", lambda route: route.continue_() if held else held.append(route))
    page.fill("#text", "An older, awful film.")
    page.click("#score")
    ask(page, "A newer, lovely film.")
    assert drawn(page)[0][0] == "A newer, lovely film."
    assert failed == ["net::ERR_ABORTED"]


def test_a_link_shows_the_same_review_to_everyone(page: Page, address: str) -> None:
    ask(page, EMOJI)
    page.click("#copy")
    expect(page.locator("#shared")).to_contain_text("Copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{address}#t=")
    other = page.context.new_page()
    other.goto(link)
    settled(other)
    assert other.input_value("#text") == EMOJI
    assert drawn(other) == drawn(page)


def test_a_link_keeps_the_muted_sentences(page: Page, address: str) -> None:
    ask(page, MIXED)
    for number in (1, 3):
        page.locator(".share").nth(number).click()
    settled(page)
    page.click("#copy")
    expect(page.locator("#shared")).to_contain_text("Copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.endswith("&m=1,3")
    other = page.context.new_page()
    other.goto(link)
    settled(other)
    expect(other.locator("#move")).to_contain_text("2 sentences muted: positive")
    assert drawn(other) == drawn(page)


@pytest.mark.parametrize("muted", ["99", "", "0,99"])
def test_a_link_that_mutes_sentences_that_do_not_exist_shows_its_text(page: Page, muted: str) -> None:
    page.evaluate("hash => { location.hash = hash }", f"t={packed(b'A lovely film. A dull end.')}&m={muted}")
    settled(page)
    expect(page.locator(".muted")).to_have_count(muted.count("0,"))


def test_an_error_removes_the_previous_result(page: Page) -> None:
    ask(page, MIXED)
    expect(page.locator(".verdict")).to_be_visible()
    page.fill("#text", " ... ")
    page.click("#score")
    expect(page.locator("#trouble p")).to_have_text("There is no word to read in this text.")
    expect(page.locator("#answer")).to_be_hidden()
    ask(page, MIXED)
    expect(page.locator(".verdict")).to_be_visible()


def test_the_attention_is_in_view_after_scoring_on_a_laptop(browser: Browser, address: str) -> None:
    with watched(browser, address, viewport={"width": 1366, "height": 650}) as page:  # what a browser leaves of 768
        ask(page, MIXED)
        expect(page.locator(".verdict")).to_be_in_viewport(ratio=1)
        for number in range(3):
            expect(page.locator(".sentences .row").nth(number)).to_be_in_viewport(ratio=1)


def test_the_empty_box_shows_an_example(page: Page) -> None:
    assert page.get_attribute("#text", "placeholder").startswith("For example: ")  # type: ignore[union-attr]


def test_a_link_opened_in_the_same_tab_is_scored(page: Page) -> None:
    page.evaluate("hash => { location.hash = hash }", f"t={packed(b'A lovely film.')}")
    settled(page)
    assert drawn(page)[0][0] == "A lovely film."


def test_a_long_review_gets_no_link(page: Page, address: str) -> None:
    draw = random.Random(1)
    ask(page, "".join(draw.choice("abcdefghijklmnopqrstuvwxyz    ") for _ in range(20_000)))
    page.click("#copy")
    expect(page.locator("#shared")).to_have_text("This review is too long for a link.")
    assert page.url == address


@pytest.mark.parametrize("damage", ["no base64", "no deflate", "no UTF-8", "a bomb", "no numbers"])
def test_a_damaged_link_is_an_error(page: Page, damage: str) -> None:
    code = {
        "no base64": "%%%",
        "no deflate": "AAAA",
        "no UTF-8": packed(b"\xff"),
        "a bomb": packed(b" " * 20_000_000),
        "no numbers": packed(b"good") + "&m=x",
    }[damage]
    page.evaluate("hash => { location.hash = hash }", f"t={code}")
    expect(page.locator("#trouble p")).to_have_text("This link is damaged: its text cannot be read.")


def packed(text: bytes) -> str:
    squeezed = zlib.compressobj(9, wbits=-15)
    return base64.urlsafe_b64encode(squeezed.compress(text) + squeezed.flush()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("status", "code", "words", "may_help_to_repeat"),
    [
        (408, "slow_upload", "did not answer in time", True),
        (413, "too_long", "longer than the server takes", False),
        (422, "invalid_request", "refused this text (422, invalid_request, request abc)", False),
        (429, "too_many_requests", "busy. Your text is still here: try again in 7 seconds.", True),
        (500, "internal", "failed (500, internal, request abc)", True),
        (503, "unavailable", "not ready", True),
        (504, "deadline", "did not answer in time", True),
    ],
)
def test_an_error_is_explained_and_the_text_is_kept(page: Page, status: int, code: str, words: str, may_help_to_repeat: bool) -> None:
    problem = {"error": {"code": code, "message": "m", "field": None}, "request_id": "abc"}
    page.route("**/v1/score", lambda route: route.fulfill(status=status, json=problem, headers={"Retry-After": "7"}))
    page.fill("#text", MIXED)
    page.click("#score")
    expect(page.locator("#trouble p")).to_contain_text(words)
    expect(page.locator("#text")).to_have_value(MIXED)
    page.unroute("**/v1/score")
    if may_help_to_repeat:
        page.click("#trouble button")
        settled(page)
        expect(page.locator("#trouble")).to_be_hidden()
    else:
        expect(page.locator("#trouble button")).to_be_hidden()


def test_a_response_that_is_not_json_is_shown_as_an_error(page: Page) -> None:
    page.route("**/v1/score", lambda route: route.fulfill(status=502, body="<html>Bad gateway</html>"))
    page.fill("#text", MIXED)
    page.click("#score")
    expect(page.locator("#trouble p")).to_contain_text("failed (502)")


def test_a_server_that_cannot_be_reached_is_an_error(page: Page) -> None:
    page.route("**/v1/score", lambda route: route.abort())
    page.fill("#text", MIXED)
    page.click("#score")
    expect(page.locator("#trouble p")).to_contain_text("cannot be reached")
    page.unroute("**/v1/score")
    page.click("#trouble button")
    settled(page)


@pytest.mark.parametrize(("text", "words"), [(" \n ", "no word to read"), ("x" * 50_001, "longer than the server takes")])
def test_a_review_that_cannot_be_scored_is_an_error(page: Page, text: str, words: str) -> None:
    page.fill("#text", text)
    page.click("#score")
    expect(page.locator("#trouble p")).to_contain_text(words)
    expect(page.locator("#text")).to_have_value(text)


def test_a_key_is_requested_and_kept_only_in_the_tab(browser: Browser, locked: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.goto(locked)
        page.fill("#text", MIXED)
        page.fill("#key", "a-key-that-is-wrong")
        page.press("#key", "Enter")
        expect(page.locator("#trouble p")).to_have_text("The server did not accept this key.")
        page.fill("#key", "correct-horse-battery")
        page.press("#key", "Enter")
        expect(page.locator("#ask-key")).to_be_hidden()
        expect(page.locator("#counter")).to_contain_text("of 50,000")
        page.click("#score")
        settled(page)
        expect(page.locator("#text")).to_have_value(MIXED)
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [["correct-horse-battery"], 0, ""]
        page.reload()
        ask(page, MIXED)


def test_a_request_that_needs_a_key_is_sent_again_with_it(browser: Browser, locked: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.goto(f"{locked}#t={packed(MIXED.encode())}")
        page.fill("#key", "correct-horse-battery")
        page.press("#key", "Enter")
        settled(page)
        expect(page.locator("#counter")).to_contain_text("of 50,000")


def test_everything_works_from_the_keyboard(page: Page) -> None:
    keys = page.keyboard
    while page.evaluate("document.activeElement.id") != "text":
        keys.press("Tab")
    keys.type("It is dull. But the end is superb!")
    keys.press("Control+Enter")
    settled(page)
    while "share" not in page.evaluate("document.activeElement.className"):
        keys.press("Tab")
    keys.press("ArrowDown")
    for _ in range(5):
        keys.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "superb"
    tip = page.locator("#tip.shown")
    expect(tip).to_have_text(re.compile(r"^[\d.]+% of its sentence · [\d.]+% of the review$"))
    expect(page.locator(".w[aria-describedby=tip]")).to_have_text("superb")
    keys.press("Escape")
    expect(tip).to_have_count(0)
    keys.press("Enter")
    settled(page)
    expect(page.locator("#move")).to_contain_text("1 sentence muted")
    assert page.evaluate("document.activeElement.ariaPressed") == "true"
    keys.press("Space")
    settled(page)
    expect(page.locator("#move")).not_to_contain_text("muted")
    while page.evaluate("document.activeElement.localName") != "summary":
        keys.press("Tab")
    keys.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(2)


def test_a_word_under_the_pointer_shows_its_numbers(page: Page, scorer: Scorer) -> None:
    ask(page, MIXED)
    sentence = (answered(scorer, MIXED).sentences or ())[0]
    word = (sentence.words or ())[2]
    page.locator(".w").nth(2).hover()
    numbers = f"{percent(word.attention)} of its sentence · {percent(word.attention * sentence.attention)} of the review"
    expect(page.locator("#tip.shown")).to_have_text(numbers)
    page.locator("h1").hover()
    expect(page.locator("#tip.shown")).to_have_count(0)


def test_the_table_has_the_drawn_values(page: Page, scorer: Scorer) -> None:
    ask(page, MIXED)
    page.click("summary")
    sentence = (answered(scorer, MIXED).sentences or ())[0]
    top = sorted(sentence.words or (), key=lambda word: -word.attention)[:3]
    named = ", ".join(f"{MIXED[word.start : word.end]} {percent(word.attention)}" for word in top)
    cells = page.locator("tbody tr").first.locator("th, td").all_text_contents()
    assert cells == [MIXED[sentence.start : sentence.end], percent(sentence.attention), named]


def test_the_table_has_a_column_of_effects_while_they_are_shown(page: Page, scorer: Scorer) -> None:
    ask(page, MIXED)
    page.click("summary")
    heads, cells = page.locator("thead th").filter(visible=True), page.locator("tbody tr").first.locator("th, td")
    assert heads.all_inner_texts() == ["Sentence", "Attention", "Words it looked at most"]
    page.click("#view")
    settled(page)
    assert heads.all_inner_texts() == ["Sentence", "Effect (nats)", "Attention", "Words of the largest effect"]
    [score] = scorer.score([MIXED], effects="exact_words")
    assert isinstance(score, Score)
    assert score.sentences
    sentence = score.sentences[0]
    top = sorted(sentence.words or (), key=lambda word: -abs(word.effect or 0))[:3]
    named = ", ".join(f"{MIXED[word.start : word.end]} {signed(word.effect)}" for word in top)
    row = [MIXED[sentence.start : sentence.end], signed(sentence.effect), percent(sentence.attention), named]
    assert cells.all_text_contents() == row
    page.locator(".share").nth(1).click()
    settled(page)
    assert heads.all_inner_texts() == ["Sentence", "Effect (nats)", "Attention", "Words it looked at most"]
    assert page.locator("tbody tr").nth(1).locator("td.number").all_text_contents() == ["muted", "muted"]
    page.click("#unmute")
    settled(page)
    assert cells.all_text_contents() == row
    page.click("#view")
    assert cells.all_text_contents()[1] == percent(sentence.attention)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 360])
def test_axe_finds_no_accessibility_problem(browser: Browser, address: str, theme: Any, width: int) -> None:
    with watched(browser, address, viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce") as page:
        assert violations(page) == []
        ask(page, MARKED_UP + EMOJI + RIGHT_TO_LEFT + INVISIBLE)
        page.locator(".share").first.click()
        settled(page)
        page.click("summary")
        page.locator(".w").first.hover()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_axe_finds_no_accessibility_problem_in_the_view_of_effects(browser: Browser, address: str, theme: Any, width: int) -> None:
    with watched(browser, address, viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce") as page:
        ask(page, MIXED + MARKED_UP)
        page.click("#view")
        settled(page)
        page.click("summary")
        page.locator(".w").first.hover()
        assert violations(page) == []
        page.locator(".share").first.click()  # without effects of words, sentences are tinted
        settled(page)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def violations(page: Page) -> list[tuple[str, str]]:
    found = Axe().run(page).response["violations"]
    return [(violation["id"], node["html"]) for violation in found for node in violation["nodes"]]


def test_the_switch_is_remembered(page: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.click("#theme")
    dark = page.evaluate(paper)
    page.reload()
    assert page.evaluate(paper) == dark != light


def test_reduced_motion_disables_animations(browser: Browser, address: str) -> None:
    with watched(browser, address, reduced_motion="reduce") as page:
        ask(page, MIXED)
        moving = "all => all.filter(one => parseFloat(getComputedStyle(one).transitionDuration) > 0).length"
        assert page.locator("*").evaluate_all(moving) == 0


def test_the_page_has_the_same_colours_as_the_offline_page() -> None:
    offline = (Path(han.__file__).parent / "explain" / "page.css").read_text()
    style = (Path(serve.__file__ or "").parent / "page" / "page.css").read_text()
    for name in ("paper", "ink", "quiet", "faint", "rule", "track", "bar", "rest"):
        light, dark = re.findall(rf"--{name}: (#\w+)", offline)[:2]  # and white for paper, in print
        assert f"--{name}: light-dark({light}, {dark});" in style
    light, dark = re.findall(r"--shade: ([\d ]+);", offline)
    assert f"--shade: light-dark(rgb({light}), rgb({dark}))" in style
