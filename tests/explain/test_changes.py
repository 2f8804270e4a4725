"""Two models on the same reviews: counts, the table, the marked sentences, and a page that runs nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect, sync_playwright

from han.config import TextConfig
from han.explain import changes
from han.explain.changes import Change
from han.model import artifact
from han.text.encode import Encoder
from han.text.vocabulary import Vocab
from han.types import Effects, Score, Sentence, UserError
from jobs import explain
from tests.conftest import WORDS, tiny_network
from tests.helpers.scores import scored

TEXT = "A good film. <script>alert(1)</script> A slow end."
SPANS = ((0, 12), (13, 34), (39, 50))


def answer(label: str, probability: float, effects: tuple[float, float, float], *, spans: tuple[tuple[int, int], ...] = SPANS) -> Score:
    sentences = tuple(
        Sentence(start=start, end=end, attention=1 / 3, words=(), effect=effect)
        for (start, end), effect in zip(spans, effects, strict=True)
    )
    other = {"positive": "negative", "negative": "positive"}[label]
    evidence = Effects(evidence=2.0, nothing=0.0, sum=1.0, interaction=1.0, method="leave_one_out", word_method=None)
    probabilities = {label: probability, other: 1 - probability}
    return dataclasses.replace(scored(TEXT, sentences), label=label, probability=probability, probabilities=probabilities, effects=evidence)


def change(before: Score, after: Score, label: str | None = None) -> Change:
    return Change(review_id="<b>one</b>", text=TEXT, label=label, before=before, after=after)


POSITIVE, NEGATIVE = answer("positive", 0.9, (2.0, 0.1, -1.0)), answer("negative", 0.8, (-2.0, -0.1, 3.0))
SAME, FLIPPED = change(POSITIVE, POSITIVE, "positive"), change(POSITIVE, NEGATIVE, "negative")


def test_changed_labels_come_first_and_the_evidence_is_for_the_first_label() -> None:
    assert changes.order([SAME, FLIPPED]) == [1, 0]
    assert SAME.shift == 0
    assert FLIPPED.shift == pytest.approx(-1.386294 - 2.0, abs=1e-5)


def test_the_sentences_that_moved_most_are_marked_with_the_sign_of_the_first_label() -> None:
    assert changes.moved(FLIPPED) == ((39, 50),)  # from -1 to -3; the others stay where they were
    assert changes.moved(SAME) == ()


def test_the_summary_counts_labels_that_became_right_and_wrong() -> None:
    first, second = changes.summary([SAME, FLIPPED])
    assert first.startswith("1 of 2 reviews changed the label: 50.0%")
    assert "1 became right and 0 became wrong: accuracy 50.0% before, 100.0% after" in second
    assert len(changes.summary([change(POSITIVE, NEGATIVE)])) == 1


def test_the_table_has_null_where_one_model_cuts_the_text_elsewhere() -> None:
    joined = answer("positive", 0.9, (1.0, 1.0, 1.0), spans=((0, 12), (13, 38), (39, 50)))
    (row,) = changes.table([change(POSITIVE, joined)]).to_pylist()
    assert [(each["start"], each["end"]) for each in row["sentences"]] == [(0, 12), (13, 34), (13, 38), (39, 50)]
    assert [each["effect_after"] for each in row["sentences"]] == [1.0, None, 1.0, 1.0]
    assert (row["label_before"], row["changed"]) == ("positive", False)


def test_the_page_draws_both_answers_and_runs_nothing() -> None:
    drawn = changes.page([FLIPPED], changes.summary([FLIPPED]), title="Changes")
    assert "<script" not in drawn
    assert "<b>one" not in drawn
    assert drawn.count("<h2") == 2
    assert drawn.count('class="row marked"') == 2


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: install one (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as started:
        yield started


def written(folder: Path) -> str:
    both = [FLIPPED, SAME]
    (folder / "page.html").write_text(changes.page(both, changes.summary(both), title="Changes"), encoding="utf-8")
    return (folder / "page.html").as_uri()


@in_a_browser
def test_a_page_of_changes_shows_both_answers_and_switches_to_effects_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    with browser.new_context() as context:
        opened, complaints = context.new_page(), []
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("dialog", lambda dialog: complaints.append(dialog.message))
        opened.goto(written(tmp_path))
        assert [label.split() for label in opened.locator("h2 bdi").all_inner_texts()[:2]] == [["positive"], ["negative"]]
        expect(opened.locator("article").first.locator(".id").first).to_have_text(
            "<b>one</b>: positive to negative; its label is negative; shift of the evidence for positive \u22123.39 nats"
        )
        assert "<script>alert(1)</script>" in opened.locator(".raw").all_inner_texts()[1]
        effects = opened.locator("article").first.locator(".share.of-effect .number")
        expect(effects.first).to_be_hidden()
        opened.locator("input.effects").check()
        assert effects.all_inner_texts() == ["+2.00", "+0.10", "\u22121.00", "\u22122.00", "\u22120.10", "+3.00"]
        assert complaints == []


@in_a_browser
@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_problem_in_a_page_of_changes(browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"], width: int) -> None:
    size = {"width": width, "height": 900}
    with browser.new_context(bypass_csp=True, color_scheme=scheme, viewport=size) as context:  # axe is a script
        opened = context.new_page()
        opened.goto(written(tmp_path))
        for _ in ("attention", "effects"):
            assert [found["id"] for found in Axe().run(opened).response["violations"]] == []
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            opened.locator("input.effects").check()


def save(folder: Path, *, seed: int, labels: tuple[str, ...]) -> Path:
    network = tiny_network(num_classes=len(labels), seed=seed)
    encoder = Encoder(TextConfig(max_characters=5_000), None, Vocab(WORDS))
    artifact.save(folder, encoder=encoder, network=network, labels=labels, metrics={"temperature": 1.0}, provenance={"data": "random"})
    return folder


def test_the_job_writes_a_page_and_a_table_and_refuses_other_labels(tmp_path: Path) -> None:
    first, second, other = (
        save(tmp_path / name, seed=seed, labels=labels)
        for name, seed, labels in (
            ("first", 1, ("negative", "positive")),
            ("second", 2, ("negative", "positive")),
            ("other", 1, ("bad", "fair", "good")),
        )
    )
    job = explain.Explain(
        input="sample", model=str(first), against=str(second), out=str(tmp_path / "page.html"), candidates=40, num_reviews=5
    )
    explain.main(job)
    assert (tmp_path / "page.html").read_text().count("<article") == 5
    assert pq.read_table(tmp_path / "page.parquet").num_rows == 40
    explain.main(job)  # its own table is replaced
    pq.write_table(pa.table({"text": ["mine"]}), tmp_path / "page.parquet")
    with pytest.raises(UserError, match=r"page\.parquet, the file for the table of changes, exists and is not such a table"):
        explain.main(job)
    assert pq.read_table(tmp_path / "page.parquet").num_rows == 1
    (tmp_path / "page.parquet").write_text("notes")
    with pytest.raises(UserError, match=r"page\.parquet, the file for the table of changes, exists and is not such a table"):
        explain.main(job)
    with pytest.raises(UserError, match="give two models with the same labels"):
        explain.main(dataclasses.replace(job, against=str(other)))
