"""The page of a sweep: its content for all kinds of studies, and the escaping of their texts."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from axe_playwright_python.sync_playwright import Axe
from optuna.trial import TrialState
from playwright.sync_api import sync_playwright

from han.explain.charts import Scale, scale
from han.tune.report import report

DEFAULT = {"model.sentence_encoder": True, "model.sentence_hidden": 50, "train.learning_rate": 1e-3}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
VOID = ("meta", "circle", "rect", "path", "polyline")


def sweep(*trials: tuple[str, list[float]], name: str = "small", **attributes: Any) -> optuna.Study:
    """A study of one objective: each trial's state, and its score by epoch."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for key, value in {"epochs": 3, "metric": "development accuracy", **attributes}.items():
        study.set_user_attr(key, value)
    study.enqueue_trial(DEFAULT)
    for state, scores in trials:
        trial = study.ask()
        if trial.suggest_categorical("model.sentence_encoder", [True, False]):
            trial.suggest_int("model.sentence_hidden", 16, 100, log=True)
        trial.suggest_float("train.learning_rate", 1e-4, 1e-2, log=True)
        for epoch, score in enumerate(scores, 1):
            trial.report(score, epoch)
        trial.set_user_attr("epochs", len(scores))
        trial.set_user_attr("train_s", 4.1 * len(scores))
        if state == "FAIL":
            trial.set_user_attr("reason", "ValueError: <b>it</b> & \x1b[31mdiverged\u202e")
        if state == "COMPLETE":
            study.tell(trial, max(scores))
        elif state != "RUNNING":
            study.tell(trial, state=TrialState[state])
    return study


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    return sweep(
        ("COMPLETE", [0.80, 0.83, 0.84]),
        ("PRUNED", [0.70]),
        ("COMPLETE", [0.81, 0.85, 0.87]),
        ("FAIL", [0.60, math.nan]),
        ("PRUNED", [0.78, 0.79]),
        ("COMPLETE", [0.82, 0.84, 0.86]),
        ("COMPLETE", [0.80, 0.81, 0.82]),
    )


class Page(HTMLParser):
    """A page's text, its tags by name, and whether all of them are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open, self.tags, self.ids, self.links = "", [], [], set[str](), set[str]()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.ids |= {attributes["id"] or ""} if "id" in attributes else set()
        self.links |= {attributes["href"] or ""} if "href" in attributes else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + " "


def rows(html: str) -> dict[int, str]:
    """The table's rows by trial, as text."""
    found = re.findall(r'<tr id="trial-(\d+)".*?</tr>', html, flags=re.DOTALL)
    bodies = re.findall(r'<tr id="trial-\d+".*?</tr>', html, flags=re.DOTALL)
    return {int(number): " ".join(Page(body).text.split()) for number, body in zip(found, bodies, strict=True)}


def section(html: str, title: str) -> str:
    (found,) = re.findall(rf"<h2>{title}</h2>(.*?)</section>", html, flags=re.DOTALL)
    return str(found)


def test_the_page_shows_the_trials_and_the_best_one(study: optuna.Study) -> None:
    text = Page(report(study)).text
    assert "7 trials: 4 done, 2 stopped early, 1 failed" in text
    assert re.search(r"development accuracy 87\.00% +trial +2", text)
    assert re.search(r"The default, trial +0 +, reached 84\.00%", text)
    assert "15 of 18 epochs were run: 17% saved" in text


def test_the_page_warns_that_the_best_of_many_is_optimistic(study: optuna.Study) -> None:
    text = Page(report(study)).text
    assert "The figure of the best of 6 trials is optimistic." in text
    assert "The development reviews chose the trial and its epoch" in text
    assert "--retrain 3" in text
    assert "No test review was used" in text


def test_retrained_seeds_are_shown_with_mean_and_spread() -> None:
    again = {"scores": [0.85, 0.86], "mean": 0.855, "spread": 0.00707}
    text = Page(report(sweep(("COMPLETE", [0.8]), ("COMPLETE", [0.9]), retrained=again))).text
    assert "over 2 other seeds, its settings reached 85.50% on average, standard deviation 0.71 points" in text
    assert "(85.00%, 86.00%)" in text
    assert "--retrain" not in text


def test_every_trial_has_a_row_with_state_value_cost_and_changed_settings(study: optuna.Study) -> None:
    table = rows(report(study))
    assert list(table) == [2, 5, 0, 6, 1, 4, 3]  # the best first, then those stopped, then the failed
    assert table[0] == "0 done 84.00% 3 - 12.3 - the default"
    assert table[2].startswith("2 done, best 87.00% 3 - 12.3 - ")
    assert f"train.learning_rate {study.trials[2].params['train.learning_rate']:.3g}" in table[2]
    assert table[4].startswith("4 stopped early 79.00% 2 ")
    assert table[3].startswith("3 failed - 2 ")
    assert table[3].endswith("ValueError: <b>it</b> & [31mdiverged")


def test_a_setting_that_a_trial_does_not_have_is_marked_unused(study: optuna.Study) -> None:
    html = report(study)
    (without, *_) = [trial.number for trial in study.trials if "model.sentence_hidden" not in trial.params]
    assert "model.sentence_hidden not used" in rows(html)[without]
    if any("model.sentence_hidden" not in trial.params for trial in study.trials if trial.state == TrialState.COMPLETE):
        assert "not used" in section(html, "All settings of a trial at once")


def test_charts_are_drawn_only_if_they_have_data(study: optuna.Study) -> None:
    html = report(study)
    for title in ("History", "Early stopping", "Which settings mattered", "All settings of a trial at once", "Setting by setting"):
        for drawn in re.findall(r"<svg.*?</svg>", section(html, title), flags=re.DOTALL):
            ElementTree.fromstring(drawn)  # noqa: S314  # our own
            assert "nan" not in drawn
            assert "inf" not in drawn
        assert "<svg" in section(html, title)
    assert "<h2>Development against cost</h2>" not in html


def test_importances_use_all_trials_with_a_result() -> None:
    stopped = [("PRUNED", [0.5 + number / 100]) for number in range(6)]
    drawn = section(report(sweep(("COMPLETE", [0.9]), ("COMPLETE", [0.8]), ("FAIL", []), *stopped)), "Which settings mattered")
    assert "the best quarter of 8 trials" in drawn
    assert "train.learning_rate" in drawn


def test_every_mark_links_to_the_row_of_its_trial(study: optuna.Study) -> None:
    page = Page(report(study))
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    history = Page(section(report(study), "History"))
    assert history.links == {f"#trial-{trial.number}" for trial in study.trials}


def test_the_page_makes_no_request_and_runs_no_script(study: optuna.Study) -> None:
    html = report(study)
    assert not re.search(r"https?://|<script|<img|<link|@import|url\(|javascript:", html)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    (style,) = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    assert f"style-src 'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not [tag for tag, attributes in Page(html).tags if any(name == "style" or name.startswith("on") for name in attributes)]


def test_no_text_of_a_study_becomes_markup() -> None:
    evil = '"><script>alert(1)</script>'
    study = optuna.create_study(study_name=evil, direction="maximize")
    study.set_user_attr("metric", evil)
    for value in (0.5, 0.6, 0.7, 0.8):
        trial = study.ask()
        trial.suggest_categorical(evil, [evil, "b"])
        trial.report(value, 1)
        trial.set_user_attr("reason", evil)
        study.tell(trial, value)
    html = report(study)
    assert "<script" not in html
    ours = {"html", "head", "title", "style", "body", "main", "section", "h1", "h2", "p", "bdi", "span", "strong", "code", "a", "b", *VOID}
    ours |= {"dl", "dt", "dd", "div", "svg", "text", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in Page(html).tags} <= ours


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        ((), "1 trial: 1 waiting"),
        ((("COMPLETE", [0.8]),), "1 trial: 1 done"),
        ((("FAIL", []),), "1 trial: 1 failed"),
        ((("FAIL", [math.nan]), ("FAIL", [math.inf])), "2 trials: 2 failed"),
        ((("PRUNED", [0.5]), ("RUNNING", [0.6])), "2 trials: 1 stopped early, 1 running"),
        ((("COMPLETE", [0.8, 0.8]), ("COMPLETE", [0.8, 0.8])), "2 trials: 2 done"),
        ((("COMPLETE", [0.0]), *[("COMPLETE", [0.0])] * 5), "6 trials: 6 done"),
    ],
)
def test_any_study_has_a_page(trials: tuple[tuple[str, list[float]], ...], said: str) -> None:
    html = report(sweep(*trials))
    page = Page(html)
    assert said in page.text
    assert len(rows(html)) == max(1, len(trials))
    assert ("No trial completed" in page.text) == ("COMPLETE" not in [state for state, _ in trials])


def test_two_objectives_have_a_pareto_front() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.set_user_attr("metrics", ["development log loss", "ms of training a review"])
    for values in ([0.40, 2.0], [0.30, 3.0], [0.45, 2.5], [0.35, 2.2]):
        trial = study.ask()
        trial.suggest_int("model.word_hidden", 16, 100)
        study.tell(trial, values)
    html = report(study)
    drawn = section(html, "Development against cost")
    assert re.findall(r'class="label"[^>]*>(\d+)<', drawn) == ["1", "3", "0"]  # the third is beaten by the first in both
    assert re.search(r"development log loss 0\.3 +trial +1", Page(html).text)
    assert rows(html)[2].startswith("2 done 0.45 2.5 ")


def test_the_page_of_hundreds_of_trials_is_small() -> None:
    html = report(sweep(*[("COMPLETE", [0.8, 0.8 + number / 5_000]) for number in range(250)]))
    assert len(html) < 1_500_000
    assert ":has(.t1:hover)" not in html


def test_ticks_are_round_and_within_the_axis() -> None:
    assert [label for _, label in scale([0.8312, 0.8733], percent=True).ticks(5)] == ["83%", "84%", "85%", "86%", "87%"]
    assert [label for _, label in Scale(low=3e-4, high=1e-2, log=True).ticks(6)] == ["0.0005", "0.001", "0.002", "0.005", "0.01"]
    assert [label for _, label in scale([0, 1], whole=True).ticks(8)] == ["0", "1"]
    for low, high, log in ((0.1, 0.1, False), (1e-9, 1e9, True), (-5, 12_000, False), (1.0, 1.02, True)):
        axis = scale([low, high], log=log)
        assert len(axis.ticks(6)) >= 2
        assert all(-1e-9 <= place <= 1 + 1e-9 for place, _ in axis.ticks(6))


def test_the_page_needs_no_further_package() -> None:
    sources = [(Path(__file__).parents[2] / "han" / name).read_text() for name in ("tune/report.py", "tune/charts.py", "explain/charts.py")]
    assert not re.search(r"import (plotly|sklearn|matplotlib)|optuna\.visualization", "".join(sources))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: install one (Debian: apt-get install chromium)")
def test_a_mark_highlights_its_trial_in_a_browser_and_axe_finds_no_problem(study: optuna.Study, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(report(study), encoding="utf-8")
    colour = "getComputedStyle(document.querySelector('tr.t5 td')).borderLeftColor"
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as browser:
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        before = page.evaluate(colour)
        page.hover("circle.t5 >> nth=0")
        assert page.evaluate(colour) == page.evaluate("getComputedStyle(document.querySelector('polyline.t5')).stroke") != before
        page.click("circle.t5 >> nth=0")
        assert page.url.endswith("#trial-5")
        assert complaints == []
        for scheme in ("light", "dark"):
            with browser.new_context(bypass_csp=True, color_scheme=scheme) as context:  # axe is a script
                page = context.new_page()
                page.goto((tmp_path / "report.html").as_uri())
                assert [found["id"] for found in Axe().run(page).response["violations"]] == []
