"""A dump of reviews is scored and evaluated on a real Ray."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from han.config import ColumnsConfig, OutputConfig, ScoreConfig
from han.data.files import InputChanged
from han.evaluate.evaluation import evaluate
from han.model import artifact, metrics
from han.score.batch_job import Scores, plan, score
from han.score.scorer import Scorer, as_json
from han.types import Score, TooManyBad, UserError
from jobs.progress import Rows

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("on_ray"), pytest.mark.timeout(600)]

WORDS = ["The film", "was", "good", "bad,", "not dull.", "I loved it!", "zyx", "not", "it was."]


def rows(num_rows: int, seed: int) -> pa.Table:
    """Reviews of very unequal lengths; every tenth has no word, every tenth only unknown words, every seventh no label."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS, size=random.integers(1, 60))) if row % 10 else " ... " for row in range(num_rows)]
    texts[5::10] = ["zyx zyx zyx zyx"] * len(texts[5::10])
    labels = [None if row % 7 == 3 else int(random.integers(2)) for row in range(num_rows)]
    stars = [None if label is None else 3 + 4 * label for label in labels]
    ids = [f"{seed}/{row}" for row in range(num_rows)]
    return pa.table({"review_id": ids, "text": texts, "label": pa.array(labels, pa.int64()), "rating": pa.array(stars, pa.int64())})


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards in two files: 110 records."""
    folder = tmp_path_factory.mktemp("dump")
    pq.write_table(rows(60, 1), folder / "train.parquet", row_group_size=20)
    pq.write_table(rows(50, 2), folder / "test.parquet", row_group_size=20)
    return folder


def run(source: Path, out: Path, model: Path, **options: Any) -> Scores:
    config = ScoreConfig(num_actors=options.pop("num_actors", 1))
    output = OutputConfig(**{"max_bad_ratio": 0.2} | options)
    job = plan(str(source), str(out), model=str(model), columns=ColumnsConfig(), config=config, output=output, limit=None)
    return score(job, Rows(live=False))


@pytest.fixture(scope="module")
def scored(dump: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scores]:
    out = tmp_path_factory.mktemp("scored") / "out"
    return out, run(dump, out, tiny_model, num_actors=2)


def answers(out: Path) -> dict[str, dict[str, Any]]:
    return {row["review_id"]: row for row in pq.read_table(out).to_pylist()}


def numbers(answer: dict[str, Any]) -> list[float]:
    attention = [sentence["attention"] for sentence in answer["sentences"]]
    return [*answer["probabilities"].values(), *attention, *(word["attention"] for each in answer["sentences"] for word in each["words"])]


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_record_is_scored_or_quarantined_once(dump: Path, scored: tuple[Path, Scores]) -> None:
    out, scores = scored
    assert scores.manifest["counts"] | {"num_tokens": 0} == {"rows_in": 110, "scored": 99, "quarantined": 11, "num_tokens": 0}
    quarantined = [json.loads(line)["review_id"] for path in out.glob("_quarantine/*.jsonl") for line in path.read_text().splitlines()]
    kept = pq.read_table(out)["review_id"].to_pylist()
    assert sorted(kept + quarantined) == sorted(pq.read_table(dump)["review_id"].to_pylist())


def test_flagged_records_of_all_actors_are_counted(scored: tuple[Path, Scores]) -> None:
    out, scores = scored
    table = pq.read_table(out, columns=["uncertain", "unfamiliar"])
    assert scores.manifest["flagged"] == {name: sum(table[name].to_pylist()) for name in table.column_names}
    assert scores.flagged["unfamiliar"] > 0


def test_files_have_the_scores_of_the_scorer(dump: Path, scored: tuple[Path, Scores], tiny_model: Path) -> None:
    out, _ = scored
    scorer, found = Scorer(artifact.load(tiny_model)), answers(out)
    for row in pq.read_table(dump).to_pylist():
        alone = scorer.score([row["text"]])[0]
        if isinstance(alone, Score):
            answer = found[row["review_id"]]
            np.testing.assert_allclose(numbers(answer), numbers(as_json(alone)), rtol=0, atol=1e-6)
            assert (answer["label"], answer["text"], answer["input_label"]) == (alone.label, row["text"], row["label"])


def test_repeating_a_finished_job_does_nothing(dump: Path, scored: tuple[Path, Scores], tiny_model: Path) -> None:
    out, scores = scored
    before = files(out)
    again = run(dump, out, tiny_model, num_actors=1)
    assert again == dataclasses.replace(scores, rows_now=0)
    assert files(out) == before


def test_other_settings_on_the_same_folder_are_refused(dump: Path, scored: tuple[Path, Scores], tiny_model: Path) -> None:
    before = files(scored[0])
    with pytest.raises(UserError, match=r"settings\.attention: words -> none"):
        run(dump, scored[0], tiny_model, attention="none")
    assert files(scored[0]) == before


def test_too_many_bad_records_publish_nothing_and_a_higher_ratio_resumes_the_job(dump: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TooManyBad, match=r"of 110 records cannot be scored \(\d+ empty_text\), over --max-bad-ratio 0\.05"):
        run(dump, tmp_path / "out", tiny_model, max_bad_ratio=0.05)
    assert not (tmp_path / "out" / "scores").exists()
    done = len(list((tmp_path / "out" / ".staging" / "records").glob("*.json")))
    scores = run(dump, tmp_path / "out", tiny_model, max_bad_ratio=0.1)
    assert done > 0
    assert scores.rows_now < 110
    assert scores.manifest["counts"]["quarantined"] == 11


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """3,000 records whose file is truncated before the last ones."""
    lines = "".join(
        json.dumps({"text": f"The film was good. {np.random.default_rng(row).bytes(400).hex()}"}) + "\n" for row in range(3_000)
    )
    path = tmp_path / "dump.jsonl.gz"
    path.write_bytes(gzip.compress(lines.encode())[:-2_000])
    return path


def test_a_truncated_file_is_a_mistake_and_nothing_is_published(broken: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dump\.jsonl\.gz") as caught:
        run(broken, tmp_path / "out", tiny_model)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_lost_records_of_a_truncated_file_can_be_quarantined(broken: Path, tiny_model: Path, tmp_path: Path) -> None:
    scores = run(broken, tmp_path / "out", tiny_model, bad_files="quarantine")
    assert scores.manifest["reasons"] == {"unreadable": 1}
    assert 2_000 < scores.manifest["counts"]["scored"] < 3_000
    lines = [json.loads(line) for path in (tmp_path / "out" / "_quarantine").iterdir() for line in path.read_text().splitlines()]
    assert [(line["file"], line["row"]) for line in lines] == [(str(broken), scores.manifest["counts"]["scored"])]


def test_an_input_that_changes_during_scoring_is_not_published(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_text("".join(json.dumps({"text": f"The film was good {row}."}) + "\n" for row in range(3_000)))
    job = plan(
        str(path),
        str(tmp_path / "out"),
        model=str(tiny_model),
        columns=ColumnsConfig(),
        config=ScoreConfig(num_actors=1),
        output=OutputConfig(bad_files="quarantine"),
        limit=None,
    )
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputChanged, match=r"dump\.jsonl changed or was removed while the job ran"):
        score(job, Rows(live=False))
    assert not (tmp_path / "out").exists()


def test_figures_are_computed_on_the_test_split_with_the_same_scores(dump: Path, tiny_model: Path, tmp_path: Path) -> None:
    figures = evaluate(
        str(dump),
        tmp_path / "out",
        model=str(tiny_model),
        columns=ColumnsConfig(),
        config=ScoreConfig(num_actors=1),
        report=Rows(live=False),
    )
    table = [row for row in pq.read_table(dump / "test.parquet").to_pylist() if row["text"] != " ... " and row["label"] is not None]
    scored = Scorer(artifact.load(tiny_model)).score_flat([row["text"] for row in table])
    expected = metrics.measure(
        metrics.softmax(scored.logits),
        [row["label"] for row in table],
        label_names=("negative", "positive"),
        num_tokens=scored.num_tokens,
        ratings=[row["rating"] for row in table],
    )
    for name in ("accuracy", "auc", "confusion", "accuracy_by_rating"):
        assert figures[name] == expected[name]
    assert figures["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-6)
    unlabelled = sum(row % 7 == 3 and row % 10 > 0 for row in range(50))
    assert (figures["rows_in"], figures["quarantined"], figures["unlabelled"]) == (50, 5, unlabelled)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == figures
    predictions = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert len(predictions) == figures["num_reviews"]
    assert sum(row["correct"] for row in predictions) == round(figures["accuracy"] * len(predictions))
    assert all(row["correct"] == (row["label"] == row["true_label"]) for row in predictions)
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert page.count("<article") == min(20, sum(not row["correct"] for row in predictions))
