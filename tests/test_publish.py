import json
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from han import artifact, publish, score
from han.config import ColumnsConfig, as_json
from han.publish import Part
from han.score import Scorer
from han.sources import BadRecord, Batch
from han.types import Mistake, Score

SCHEMA = pa.schema([("review_id", pa.string()), ("label", pa.int64()), ("text", pa.string())])
TEXTS = ["Good film. I loved it!", "", "Bad.", "Not good, not bad."]


def job(**changes: Any) -> publish.Job:
    settings = {"attention": "words", "columns": as_json(ColumnsConfig()), "limit": None}
    return {"model": "0123456789abcdef", "input": {"dump.parquet": [10, 20]}, "settings": settings} | changes


def batch(name: str, *, ids: bool = True, bad: tuple[BadRecord, ...] = ()) -> tuple[Batch, pa.Table]:
    """Four rows of a file, and what they say as reviews."""
    names = [f"{name}/{row}" for row in range(4)]
    table = pa.table({"review_id": names, "label": pa.array([1, 0, 1, 0]), "text": TEXTS}, schema=SCHEMA)
    table = table if ids else table.drop_columns("review_id")
    return Batch(table=table, rows=np.array([0, 2, 3, 4]), bad=bad), pa.table({"review_id": names, "text": TEXTS})


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(artifact.load(tiny_model))


def write(out: Path, name: str, scorer: Scorer, **options: Any) -> Part:
    """A part that is written, but not closed."""
    records, reviews = batch(name, **options)
    part = Part(out, name, file=f"{name}.parquet", schema=records.table.schema, labels=scorer.labels, attention="words", job=job())
    part.add(records, reviews, scorer.score_flat(TEXTS))
    return part


def finish(out: Path, scorer: Scorer, *names: str) -> list[publish.Record]:
    assert publish.begin(out, job()) == {}
    return [write(out, name, scorer).close()[0] for name in names]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_published_is_the_input_beside_its_answers(tmp_path: Path, scorer: Scorer) -> None:
    manifest = publish.publish(tmp_path / "out", job(), finish(tmp_path / "out", scorer, "part-0", "part-1"))
    assert manifest["counts"] == {"rows_in": 8, "scored": 6, "quarantined": 2, "num_tokens": 30}
    assert manifest["reasons"] == {"empty_text": 2}
    table = pq.read_table(tmp_path / "out" / "scores")
    assert table.column_names == ["review_id", "input_label", "text", *score.schema(scorer.labels).names]
    assert table["review_id"].to_pylist() == [f"{part}/{row}" for part in ("part-0", "part-1") for row in (0, 2, 3)]
    expected = [score.as_json(answer) | {"model": job()["model"]} for answer in scorer.score(TEXTS) if isinstance(answer, Score)]
    assert table.select(score.schema(scorer.labels).names).to_pylist() == expected * 2


def test_a_finished_folder_holds_nothing_else(tmp_path: Path, scorer: Scorer) -> None:
    publish.publish(tmp_path / "out", job(), finish(tmp_path / "out", scorer, "part-0"))
    assert names(tmp_path / "out") == {"_SUCCESS", "_manifest.json", "_quarantine/part-0.jsonl", "scores/part-0.parquet"}


@pytest.mark.parametrize("reader", ["pyarrow", "pandas", "duckdb"])
def test_the_whole_folder_reads_as_scores(tmp_path: Path, scorer: Scorer, reader: str) -> None:
    publish.publish(tmp_path / "out", job(), finish(tmp_path / "out", scorer, "part-0", "part-1"))
    if reader == "pyarrow":
        found = pq.read_table(tmp_path / "out")["num_tokens"].to_pylist()
    elif reader == "pandas":
        found = pd.read_parquet(tmp_path / "out")["num_tokens"].tolist()
    else:
        query = "select num_tokens from read_parquet(?) order by filename, file_row_number"
        found = [row[0] for row in duckdb.connect().execute(query, [f"{tmp_path}/out/**/*.parquet"]).fetchall()]
    assert found == [7, 2, 6] * 2


def test_what_cannot_be_scored_is_quarantined_with_its_place_and_reason(tmp_path: Path, scorer: Scorer) -> None:
    out = tmp_path / "out"
    publish.begin(out, job())
    broken = BadRecord(row=1, byte_offset=77, reason="malformed", excerpt="{...")
    publish.publish(out, job(), [write(out, "part-0", scorer, bad=(broken,)).close()[0]])
    lines = [json.loads(line) for line in (out / "_quarantine" / "part-0.jsonl").read_text().splitlines()]
    about = {"file": "part-0.parquet", "byte_offset": None, "review_id": None, "message": None, "excerpt": None}
    assert lines == [
        about | {"row": 1, "byte_offset": 77, "reason": "malformed", "excerpt": "{..."},
        about | {"row": 2, "review_id": "part-0/1", "reason": "empty_text", "message": "no word in the text"},
    ]


def test_an_input_without_ids_gets_them(tmp_path: Path, scorer: Scorer) -> None:
    out = tmp_path / "out"
    publish.begin(out, job())
    publish.publish(out, job(), [write(out, "part-0", scorer, ids=False).close()[0]])
    assert pq.read_table(out / "scores")["review_id"].to_pylist() == ["part-0/0", "part-0/2", "part-0/3"]


def test_parquet_says_which_model_and_settings_made_it(tmp_path: Path, scorer: Scorer) -> None:
    publish.publish(tmp_path / "out", job(), finish(tmp_path / "out", scorer, "part-0"))
    metadata = pq.read_schema(tmp_path / "out" / "scores" / "part-0.parquet").metadata
    assert metadata[b"han.model"] == job()["model"].encode()
    assert json.loads(metadata[b"han.settings"]) == job()["settings"]


def test_columns_that_collide_are_renamed_until_no_name_is_taken() -> None:
    columns = ["id", "label", "input_label", "text", "model", "review_id"]
    assert publish.renamed(columns, review_id="review_id") == {"label": "input_input_label", "model": "input_model"}
    assert publish.renamed(columns, review_id="other")["review_id"] == "input_review_id"


def test_nothing_is_visible_before_all_is_done(tmp_path: Path, scorer: Scorer) -> None:
    finish(tmp_path / "out", scorer, "part-0")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".staging"}


def test_the_same_job_goes_on_with_what_has_a_record(tmp_path: Path, scorer: Scorer) -> None:
    out = tmp_path / "out"
    records = finish(out, scorer, "part-0")
    write(out, "part-1", scorer)  # killed before it was closed
    assert publish.begin(out, job()) == {"part-0": records[0]}


def test_a_finished_job_has_nothing_to_do(tmp_path: Path, scorer: Scorer) -> None:
    out = tmp_path / "out"
    publish.publish(out, job(), finish(out, scorer, "part-0"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert publish.begin(out, job()) is None
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("is_published", [True, False])
@pytest.mark.parametrize("change", [{"model": "f" * 16}, {"input": {"dump.parquet": [11, 20]}}, {"settings": {"attention": "none"}}])
def test_another_job_is_refused_and_changes_nothing(tmp_path: Path, scorer: Scorer, is_published: bool, change: dict[str, Any]) -> None:
    out = tmp_path / "out"
    records = finish(out, scorer, "part-0")
    if is_published:
        publish.publish(out, job(), records)
    before = names(out)
    with pytest.raises(Mistake, match="belongs to another job"):
        publish.begin(out, job(**change))
    assert names(out) == before


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(Mistake, match="holds something else"):
        publish.begin(tmp_path, job())
    assert names(tmp_path) == {"precious.txt"}


@pytest.mark.parametrize("killed_at", ["scores", "_quarantine", "_manifest.json", "_SUCCESS"])
def test_publishing_goes_on_where_it_was_killed(tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, killed_at: str) -> None:
    out = tmp_path / "out"
    records = finish(out, scorer, "part-0", "part-1")
    rename = Path.rename

    def die(self: Path, target: Path) -> Path:
        if target == out / killed_at:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            publish.publish(out, job(), records)
    found = publish.begin(out, job())
    assert found is not None
    assert set(found) == {"part-0", "part-1"}
    manifest = publish.publish(out, job(), list(found.values()))
    assert manifest["counts"]["rows_in"] == 8
    assert pq.read_table(out).num_rows == manifest["counts"]["scored"]


def test_a_part_that_lost_rows_is_not_published(tmp_path: Path, scorer: Scorer) -> None:
    records = finish(tmp_path / "out", scorer, "part-0")
    with pytest.raises(RuntimeError, match="part-0"):
        publish.publish(tmp_path / "out", job(), [records[0] | {"scored": 4, "rows_in": 5}])
    assert not (tmp_path / "out" / "scores").exists()


def test_abandoning_leaves_no_folder_behind(tmp_path: Path, scorer: Scorer) -> None:
    finish(tmp_path / "out", scorer, "part-0")
    publish.abandon(tmp_path / "out")
    assert os.listdir(tmp_path) == []
