"""The jobs as users call them: their outputs, submission, and bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from han.config import ColumnsConfig
from han.data import sources
from han.data.samples import REVIEWS
from han.evaluate import evaluation, faithfulness
from han.explain import corpus
from han.model import artifact
from han.model.ragged import flat_batch
from jobs import cli, evaluate, explain, prepare, score, train

if TYPE_CHECKING:
    from conftest import Cluster, Submitted

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]

Call = Callable[..., str]


@pytest.fixture
def call(on_ray: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a job by its command line in this process and return its output. A mistake is one line on stderr, with exit code 2."""
    kinds = {
        "prepare": prepare.Prepare,
        "train": train.Train,
        "evaluate": evaluate.Evaluate,
        "score": score.Score,
        "explain": explain.Explain,
    }
    jobs = {"prepare": prepare, "train": train, "evaluate": evaluate, "score": score, "explain": explain}

    def run(job: str, *arguments: object, mistake: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", [f"jobs.{job}", *map(str, arguments)])
        if not mistake:
            cli.run(kinds[job], jobs[job].main)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as stop:
            cli.run(kinds[job], jobs[job].main)
        message = capsys.readouterr().err
        assert stop.value.code == 2
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    return run


def reviews() -> list[dict[str, Any]]:
    return [json.loads(line) for line in REVIEWS.read_text(encoding="utf-8").splitlines()]


def test_the_scores_of_a_dump_keep_their_schema_in_pyarrow_pandas_and_duckdb(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    dump = [*reviews(), {"review_id": "empty", "text": "...", "label": "positive", "rating": 1}]
    (tmp_path / "dump.jsonl").write_text("".join(json.dumps(review) + "\n" for review in dump))
    out = tmp_path / "out"
    printed = call("score", "--input", tmp_path / "dump.jsonl", "--model", tiny_model, "--out", out)
    assert "the input's column label is now input_label" in printed
    assert f"{len(dump)} records in = {len(dump) - 1} scored + 1 quarantined (1 empty_text)" in printed
    table = pq.read_table(out)
    assert table.schema.field("probability").type == pa.float32()
    assert table["input_label"].to_pylist() == [review["label"] for review in dump[:-1]]
    for row in table.to_pylist():
        assert sum(sentence["attention"] for sentence in row["sentences"]) == pytest.approx(1, abs=1e-5)
        for sentence in row["sentences"]:
            assert sum(word["attention"] for word in sentence["words"]) == pytest.approx(1, abs=1e-5)
            assert row["text"][sentence["start"] : sentence["end"]].strip()
            assert all(row["text"][word["start"] : word["end"]].strip() for word in sentence["words"])
    frame = pd.read_parquet(out)
    assert len(frame) == len(table)
    assert frame["sentences"][0][0]["words"][0]["attention"] == pytest.approx(table["sentences"][0].as_py()[0]["words"][0]["attention"])
    scores = duckdb.read_parquet(f"{out}/scores/*.parquet")
    longest = scores.aggregate("max(len(sentences)), sum(len(sentences[1].words))").fetchall()
    assert longest[0][0] == max(len(row["sentences"]) for row in table.to_pylist())
    (quarantined,) = [json.loads(line) for path in (out / "_quarantine").iterdir() for line in path.read_text().splitlines()]
    assert (quarantined["reason"], quarantined["review_id"], quarantined["row"]) == ("empty_text", "empty", len(dump) - 1)


def test_a_page_is_written_and_another_file_is_not_overwritten(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    page = tmp_path / "attention.html"
    call("explain", "--input", "sample", "--model", tiny_model, "--out", page, "--num-reviews", 3)
    assert page.read_text().count("<article") == 3
    page.write_text("mine")
    assert "is not a page of this program" in call("explain", "--input", "sample", "--model", tiny_model, "--out", page, mistake=True)


def test_the_corpus_view_on_ray_equals_the_one_without_ray(
    call: Call, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, out = tmp_path / "scores", tmp_path / "corpus"
    call("score", "--input", "sample", "--model", tiny_model, "--out", scores, "--effects", "words", "--rows-per-file", 8)
    monkeypatch.setattr(corpus, "_SHARE_ROWS", 8)
    printed = call("explain", "--corpus", "--input", scores, "--out", out, "--min-count", 3)
    assert printed.count("starting Ray") == 1
    here = tmp_path / "here"  # made by another process: one with Ray must not fork, and this view does
    command = [sys.executable, "-m", "jobs.explain", "--corpus", "--input", str(scores), "--out", str(here), "--min-count", "3"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    assert "Ray" not in subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    columns, order = ["label", "phrase", "count", "reviews", "examples"], [("label", "ascending"), ("phrase", "ascending")]
    one, other = (table.sort_by(order) for table in (pq.read_table(here / "words.parquet"), pq.read_table(out / "words.parquet")))
    assert one.num_rows > 100
    assert one.select(columns).equals(other.select(columns))
    assert other["sum"].to_pylist() == pytest.approx(one["sum"].to_pylist())


def test_the_faithfulness_of_an_evaluation_on_ray_equals_a_report_without_ray(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    numbers = ("--faithfulness-reviews", 12, "--faithfulness-words", 2)
    printed = call("evaluate", "--data", "sample", "--model", "imdb", "--out", out, "--faithfulness", *numbers)
    assert "a sanity check does not hold" not in printed
    assert {"12", "2"} <= set(re.findall(r"faithfulness of \w+, (\d+) reviews", " ".join(printed.split())))
    figures = json.loads((out / "faithfulness.json").read_text())
    assert figures["failed_checks"] == []
    assert (out / "faithfulness.svg").read_text().startswith("<svg")
    model = artifact.load(artifact.find("imdb"))
    texts = evaluation._sample(sources.find_shards("sample", ColumnsConfig(), labelled=False), ColumnsConfig(), 12, seed=0)
    encoded = model.encoder.encode_batch(texts)
    batch = flat_batch(encoded.token_ids, encoded.sentence_lengths, encoded.review_lengths)
    wanted = faithfulness.report(model.network, batch, words=False)["sentences"]["methods"]
    methods = figures["sentences"]["methods"]
    for method in ("leave_one_out", "attention", "best_order", "worst_order"):
        for name in ("comprehensiveness", "sufficiency"):
            assert methods[method][name] == pytest.approx(wanted[method][name], abs=1e-5)
    for parts, number in (("sentences", 12), ("words", 2)):
        assert figures[parts]["num_reviews"] == number
        losses = {method: of_method["comprehensiveness"] for method, of_method in figures[parts]["methods"].items()}
        for control in ("random_weights", "permuted_attention", "random"):
            assert losses[control] < losses["leave_one_out"]


def damaged(model: Path, where: Path, name: str, content: bytes) -> Path:
    shutil.copytree(model, where)
    (where / name).write_bytes(content)
    return where


def test_bad_input_is_an_error_of_one_line_and_leaves_no_files(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["It was good."], "label": ["positive"]}), good)
    corrupt = tmp_path / "corrupt.parquet"
    corrupt.write_bytes(good.read_bytes()[:-40])
    empty = tmp_path / "empty.csv"
    empty.touch()
    out = tmp_path / "out"
    weights = bytearray((tiny_model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    flipped = damaged(tiny_model, tmp_path / "flipped", "model.safetensors", bytes(weights))
    cases: list[tuple[str, tuple[object, ...], str]] = [
        ("prepare", ("--input", tmp_path / "nowhere"), "nowhere"),
        ("prepare", ("--input", good, "--columns.text", "body"), "it has id, text, label"),
        ("prepare", ("--input", empty), "empty"),
        ("prepare", ("--input", corrupt), "corrupt.parquet"),
        ("score", ("--model", tiny_model, "--input", tmp_path / "*.json"), "*.json"),
        ("score", ("--model", tiny_model, "--input", good, "--columns.text", "body"), "it has id, text, label"),
        ("score", ("--model", tiny_model, "--input", corrupt), "corrupt.parquet"),
        ("score", ("--model", flipped, "--input", good), "model.safetensors does not match"),
        ("score", ("--model", tmp_path / "nowhere", "--input", good), "no model at"),
        ("evaluate", ("--model", tiny_model, "--data", good, "--columns.label", "stars"), "it has id, text, label"),
        ("train", ("--data", tmp_path), "not an encoded folder"),
    ]
    for job, arguments, said in cases:
        message = call(job, *arguments, "--out", out, mistake=True)
        assert said in message, message
        assert not out.exists(), message
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    for job, arguments in (("prepare", ("--input", good)), ("score", ("--model", tiny_model, "--input", good))):
        assert "holds something else" in call(job, *arguments, "--out", other, mistake=True)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_vocabulary_that_does_not_fit_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from hashlib import sha256

    from han.types import UserError

    weights = safetensors.numpy.load_file(tiny_model / "model.safetensors")
    weights["embedding.weight"] = weights["embedding.weight"][:-1]
    folder = damaged(tiny_model, tmp_path / "short", "model.safetensors", safetensors.numpy.save(weights))
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text("".join(f"{digest if 'safetensors' in line else line[:64]}{line[64:]}\n" for line in sums))
    with pytest.raises(UserError, match="from two models"):
        artifact.load(folder)


def test_submitted_jobs_train_and_score_the_first_reviews_of_an_input(submitted: Submitted, planted: Path) -> None:
    assert "\nepoch 4/4  development accuracy" in submitted.printed, "without the name and the number of a process"
    assert "200 records in = 200 scored + 0 quarantined" in submitted.printed
    assert artifact.load(submitted.run / "artifact").labels == ("negative", "neutral", "positive")
    first = [json.loads(line)["review_id"] for line in planted.read_text().splitlines()[:200]]
    assert pq.read_table(submitted.scores)["review_id"].to_pylist() == first


def test_a_submitted_job_refuses_relative_paths_and_names_the_absolute_one(
    call: Call, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # as Ray sets it for a submitted job
    message = call("score", "--model", tiny_model, "--input", "sample", "--out", "scores", mistake=True)
    assert "--out scores is relative, and a submitted job's folder is temporary" in message
    assert "$PWD/scores" in message
