"""The corpus view: its figures equal a slow count in Python and SQL, however the scores are cut; its page is safe and usable."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

from han.config import CorpusConfig
from han.explain import corpus, phrases
from han.explain.corpus import Corpus, Scores
from han.explain.corpus_page import page
from han.score import contract, scorer
from han.text.raw import blank_tags
from han.types import UserError
from jobs import explain

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
LABELS = ("negative", "positive")
WORDS = ("Bad", "bad", "good", "don't", "10/10", "film", "not", "well-made", "ÉTÉ", "\u65e5\u672c", "a", "I")
HOSTILE = "<script>window.__xss = 1</script>"
JOINED = r"\w+(?:['\u2019/-]\w+)+"

Figures = dict[tuple[str, str], tuple[float, int, int]]  # by label and phrase: sum, occurrences, reviews


@pytest.fixture(autouse=True)
def small_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrases, "BUCKETS", 1 << 16)
    monkeypatch.setattr(phrases, "MOST_FREQUENT", 1 << 14)


def a_review(random: np.random.Generator, number: int) -> dict[str, Any]:
    """A review with random words, sentences, marks, tags and effects."""
    text, sentences = "", []
    for _ in range(random.integers(1, 5)):
        chosen = [WORDS[place] for place in random.integers(0, len(WORDS), random.integers(1, 9))]
        gaps = [("  ", " ", "<br />", ", ", " ")[place] for place in random.integers(0, 5, len(chosen))]
        first = len(text)
        text += "".join(word + gap for word, gap in zip(chosen, gaps, strict=True)).rstrip() + "."
        spans = [(first + span.start(), first + span.end()) for span in re.finditer(r"\w+|[^\w\s]+", blank_tags(text)[first:])]
        words = [{"start": start, "end": end, "attention": 0.0, "effect": float(random.normal())} for start, end in spans]
        sentences.append({"start": spans[0][0], "end": spans[-1][1], "attention": 0.0, "effect": 0.0, "words": words})
        text += " "
    label = LABELS[random.integers(2)]
    effects = {
        "evidence": 0.0,
        "nothing": 0.0,
        "sum": 0.0,
        "interaction": 0.0,
        "method": "leave_one_out",
        "word_method": "midpoint_gradient",
    }
    answer = {"probability": 1.0, "probabilities": dict.fromkeys(LABELS, 0.5), "num_tokens": 1, "num_unknown": 0, "num_characters_cut": 0}
    flags = {"unfamiliar": False, "uncertain": False, "model": "3fa9c1d2"}
    return {"review_id": f"r{number}", "text": text, "label": label, "sentences": sentences, **answer, **flags, "effects": effects}


def some_reviews(count: int, seed: int = 1) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [a_review(random, number) for number in range(count)]


def write(folder: Path, reviews: Sequence[dict[str, Any]], *, num_files: int = 1, effects: str = "words") -> Scores:
    """A finished folder of scores in so many files, each of row groups of 16 reviews."""
    schema = pa.schema([("review_id", pa.string()), ("text", pa.string()), *scorer.schema(LABELS)])
    (folder / "scores").mkdir(parents=True)
    parts, counts = [], {"rows_in": len(reviews), "scored": len(reviews), "quarantined": 0, "num_tokens": 0}
    for number, places in enumerate(np.array_split(np.arange(len(reviews)), num_files)):
        table = pa.Table.from_pylist([reviews[place] for place in places], schema=schema)
        name = f"part-{number}.parquet"
        pq.write_table(table, folder / "scores" / name, row_group_size=16)
        of_part = {"rows_in": len(places), "scored": len(places), "quarantined": 0, "num_tokens": 0, "reasons": {}, "quarantine": None}
        parts.append({"part": f"part-{number}", "model": "3fa9c1d2", **of_part})
        parts[-1]["files"] = [{"name": name, "rows": len(places), "bytes": 1, "sha256": ""}]
    settings = {"attention": "words", "effects": effects, "columns": {"text": "text", "review_id": "review_id"}}
    manifest = {"format": 1, "job": {"model": "3fa9c1d2", "settings": settings}, "run": {"finished": "2026-01-31T12:00:00+00:00"}}
    manifest |= {"counts": counts, "reasons": {}, "parts": parts}
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    (folder / "_SUCCESS").write_text("{}")
    return explain._scores(str(folder))


def view(scores: Scores, *, min_count: int = 1, num_processes: int = 1) -> Corpus:
    config = CorpusConfig(min_count=min_count)
    return corpus.collect(scores, config, lambda what, done, total: None, num_processes=num_processes)


def figures(found: Corpus, *, words: bool | None = None) -> Figures:
    rows = [row for row in found.table.to_pylist() if words is None or (row["num_words"] == 1) == words]
    return {(row["label"], row["phrase"]): (row["sum"], row["count"], row["reviews"]) for row in rows}


def counted(reviews: Sequence[dict[str, Any]], min_count: int = 1) -> Figures:
    """The same figures, one word after another."""
    found: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for number, review in enumerate(reviews):
        text = review["text"]
        for sentence in review["sentences"]:
            words = [(word["start"], word["end"], np.float32(word["effect"]).item()) for word in sentence["words"]]
            for start, end, effect in words:
                found[review["label"], text[start:end].lower()].append((effect, number))
            for phrase, effect in phrases_of(text, words):
                found[review["label"], phrase].append((effect, number))
    return {
        key: (sum(effect for effect, _ in each), len(each), len({number for _, number in each}))
        for key, each in found.items()
        if len(each) >= min_count
    }


def phrases_of(text: str, words: Sequence[tuple[int, int, float]]) -> list[tuple[str, float]]:
    units: list[tuple[str, float, bool]] = []  # text, effect, whether it is joined
    place, plain = 0, blank_tags(text)
    while place < len(words):
        start = words[place][0]
        joined = re.compile(JOINED).match(plain, start)
        end = joined.end() if joined else words[place][1]
        own = [word for word in words[place:] if word[1] <= end]
        units.append((text[start:end].lower(), sum(effect for _, _, effect in own), bool(joined)))
        place += len(own)
    found = [(unit, effect) for unit, effect, is_joined in units if is_joined]
    for size in (2, 3):
        for first in range(len(units) - size + 1):
            window = units[first : first + size]
            if all(unit[0].isalnum() for unit, _, _ in window):
                found.append((" ".join(unit for unit, _, _ in window), sum(effect for _, effect, _ in window)))
    return found


def assert_same(one: Figures, other: Figures) -> None:
    assert one.keys() == other.keys()
    np.testing.assert_allclose([one[key] for key in one], [other[key] for key in one], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("min_count", [1, 5])
def test_the_figures_equal_a_slow_count(tmp_path: Path, min_count: int) -> None:
    reviews = some_reviews(120)
    found = view(write(tmp_path / "scores", reviews), min_count=min_count)
    expected = counted(reviews, min_count)
    assert {"don't", "10/10", "well-made", "bad", "été"} < {phrase for _, phrase in expected}
    assert any(" " in phrase for _, phrase in expected)
    assert_same(figures(found), expected)
    assert found.num_reviews == {label: sum(review["label"] == label for review in reviews) for label in LABELS}


def test_several_files_and_shares_give_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = some_reviews(150)
    one = view(write(tmp_path / "one", reviews))
    monkeypatch.setattr(corpus, "_SHARE_ROWS", 32)
    several = view(write(tmp_path / "several", reviews, num_files=7), num_processes=2)
    assert_same(figures(one), figures(several))
    order = [("label", "ascending"), ("phrase", "ascending"), ("num_words", "ascending")]
    assert one.table.sort_by(order)["examples"].to_pylist() == several.table.sort_by(order)["examples"].to_pylist()


def test_a_large_file_is_cut_into_slices_that_hold_each_review_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = some_reviews(150)
    scores = write(tmp_path / "one", reviews)
    monkeypatch.setattr(corpus, "_SHARE_ROWS", 20)  # not a multiple of the row groups
    assert len(corpus._shares(scores.files)) == 8
    assert_same(figures(view(scores)), counted(reviews))


def test_the_query_of_the_documentation_gives_the_sums_of_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = some_reviews(400)
    found = view(write(tmp_path / "scores", reviews), min_count=20)
    document = (Path(__file__).parents[2] / "docs" / "explanations.md").read_text(encoding="utf-8")
    query = next(sql for sql in re.findall(r"```sql\n(.*?)```", document, re.DOTALL) if "unnest" in sql)
    monkeypatch.chdir(tmp_path)
    rows = duckdb.connect().execute(query.replace(";", "")).fetchall()
    words = figures(found, words=True)
    assert {(label, word) for label, word, *_ in rows} == words.keys()
    for label, word, total, mean, times, _ in rows:
        assert (total, mean * times, times) == pytest.approx(
            (words[label, word][0], words[label, word][0], words[label, word][1]), rel=1e-6
        )


def test_examples_are_the_largest_effects_of_different_reviews(tmp_path: Path) -> None:
    reviews = some_reviews(200)
    texts = {review["review_id"]: review["text"] for review in reviews}
    rows = view(write(tmp_path / "scores", reviews), min_count=10).table.to_pylist()
    best: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for review in reviews:
        for (label, phrase), (effect, count, _) in counted([review]).items():
            if count == 1:
                best[label, phrase][review["review_id"]] = effect
    for row in rows:
        ids = [example["review_id"] for example in row["examples"]]
        effects = [example["effect"] for example in row["examples"]]
        assert len(set(ids)) == len(ids) == min(3, row["reviews"])
        assert effects == sorted(effects, reverse=True)
        assert effects[0] >= max(best[row["label"], row["phrase"]].values(), default=-np.inf) - 1e-6
        for example in row["examples"]:
            span = texts[example["review_id"]][example["start"] : example["end"]]
            assert " ".join(blank_tags(span).split()) == example["match"]
            assert example["match"].lower() == row["phrase"]


def test_a_full_sketch_leaves_out_only_what_is_rarer_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrases, "BUCKETS", 1 << 10)
    monkeypatch.setattr(phrases, "MOST_FREQUENT", 60)
    reviews = some_reviews(300)
    found = view(write(tmp_path / "scores", reviews))
    least = found.complete_from["phrases"]
    assert least > 1
    expected, listed = counted(reviews), figures(found)
    assert all(listed[key] == pytest.approx(expected[key]) for key in listed)
    in_all: dict[str, int] = defaultdict(int)
    for (_, phrase), (_, count, _) in expected.items():
        in_all[phrase] += count
    assert {key for key in expected if in_all[key[1]] >= least} <= listed.keys() < expected.keys()


def test_the_flat_arrays_are_those_of_the_contract(tmp_path: Path) -> None:
    write(tmp_path / "scores", some_reviews(16))
    table = pq.read_table(tmp_path / "scores" / "scores" / "part-0.parquet")
    piece, lists = phrases.read(table, text="text", labels=LABELS), contract.attended(table["sentences"].combine_chunks())
    np.testing.assert_array_equal(piece.starts - piece.begins[piece.reviews], lists.words.starts)
    np.testing.assert_array_equal(piece.effects, lists.words.effects)


def test_the_only_word_of_a_review_has_no_effect_and_is_not_counted(tmp_path: Path) -> None:
    review = a_review(np.random.default_rng(1), 0)
    word = {"start": 0, "end": 4, "attention": 1.0, "effect": None}
    alone = {**review, "text": "Dull", "sentences": [{"start": 0, "end": 4, "attention": 1.0, "effect": None, "words": [word]}]}
    found = view(write(tmp_path / "scores", [review, alone]))
    assert "dull" not in found.table["phrase"].to_pylist()
    assert sum(found.num_reviews.values()) == 2


def test_scores_without_effects_of_words_are_refused_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no effects of words: .*--effects words --out"):
        write(tmp_path / "scores", some_reviews(2), effects="sentences")
    for place in (tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(UserError, match=r"not a finished folder of scores: make one with .*--effects words"):
            explain._scores(str(place))


def test_scores_without_their_text_are_refused(tmp_path: Path) -> None:
    scores = write(tmp_path / "scores", some_reviews(2))
    with pytest.raises(UserError, match="does not hold the texts"):
        view(Scores(place=scores.place, model=scores.model, files=scores.files, text="body", review_id="review_id"))


def test_a_view_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    found, out = view(write(tmp_path / "scores", some_reviews(20))), tmp_path / "out"
    for _ in range(2):
        corpus.check_out(str(out))
        corpus.save(str(out), found, rows=10)
        assert sorted(path.name for path in out.iterdir()) == ["index.html", "words.parquet"]
    assert pq.read_table(out / "words.parquet").equals(found.table)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        corpus.check_out(str(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scores"]


def test_a_view_without_a_frequent_word_or_without_a_label_has_a_page(tmp_path: Path) -> None:
    reviews = [review for review in some_reviews(40) if review["label"] == "positive"]
    scores = write(tmp_path / "scores", reviews)
    assert "No word or phrase that speaks for this label has enough occurrences" in page(view(scores, min_count=10_000), rows=10)
    drawn = page(view(scores, min_count=2), rows=10)
    assert drawn.count("<section") == 1
    assert f"{len(reviews)} reviews with this predicted label" in drawn


def hostile(tmp_path: Path) -> Corpus:
    """A view of reviews whose text, ids and labels try to be markup."""
    reviews = some_reviews(400)
    for number, review in enumerate(reviews):
        review["review_id"] = f"{HOSTILE}<img src=x onerror=alert({number})>"
        shift = len(HOSTILE) + 1
        review["text"] = f"{HOSTILE} {review['text']}&lt;<svg/onload=alert(1)>"
        for part in (each for sentence in review["sentences"] for each in (sentence, *sentence["words"])):
            part["start"], part["end"] = part["start"] + shift, part["end"] + shift
    return view(write(tmp_path / "scores", reviews), min_count=2)


def test_nothing_in_a_review_becomes_markup(tmp_path: Path) -> None:
    drawn = page(hostile(tmp_path), rows=30)
    assert drawn.count("<script") == 1
    assert "<img" not in drawn
    assert "<svg/" not in drawn
    assert "&lt;script&gt;" in drawn


def test_a_page_names_the_estimate_and_loads_nothing(tmp_path: Path) -> None:
    drawn = page(view(write(tmp_path / "scores", some_reviews(60)), min_count=2), rows=30)
    assert "It is an estimate, not exact: midpoint_gradient" in drawn
    assert not re.search(r"https?:|\burl\(|@import|\bsrc=|<link|\bstyle=", drawn)
    assert "default-src 'none'" in drawn


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: install one (Debian: apt-get install chromium)")
def test_the_page_filters_and_sorts_in_a_browser_and_axe_finds_no_problem(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(page(hostile(tmp_path), rows=60), encoding="utf-8")
    address = (tmp_path / "index.html").as_uri()
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as browser:
        opened = browser.new_page()
        complaints: list[str] = []
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(address)
        assert len(visible(opened)) == 100  # the first 50 of both labels
        opened.locator("button:visible").first.click()
        assert len(visible(opened)) > 100
        opened.select_option("[name=label]", "1")
        opened.select_option("[name=kind]", "words")
        assert not any(re.search(r"\w\W+\w", phrase) for phrase in visible(opened))
        opened.select_option("[name=kind]", "")
        opened.select_option("[name=sort]", "mean")
        means = [float(row.replace("\u2212", "-")) for row in opened.locator("tbody tr:visible td:nth-of-type(2)").all_text_contents()]
        assert means == sorted(means, reverse=True)
        opened.fill("[name=search]", "BAD")
        assert all("bad" in phrase for phrase in visible(opened))
        expect(opened.locator("[role=status]")).to_contain_text("for positive")
        opened.fill("[name=search]", "")
        opened.fill("[name=least]", "100000")
        assert visible(opened) == []
        assert opened.evaluate("window.__xss") is None
        assert complaints == []
        plain = browser.new_context(java_script_enabled=False).new_page()
        plain.goto(address)
        assert len(visible(plain)) > 100
        expect(plain.locator("form")).to_be_hidden()
        for width, scheme in ((390, "light"), (1280, "dark")):
            context = browser.new_context(bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 900})  # axe is a script
            opened = context.new_page()
            opened.goto(address)
            opened.locator("summary:visible").first.click()
            assert [found["id"] for found in Axe().run(opened).response["violations"]] == []
            assert opened.evaluate("document.documentElement.scrollWidth") <= width


def visible(opened: Page) -> list[str]:
    return opened.locator("tbody tr:visible summary bdi").all_text_contents()
