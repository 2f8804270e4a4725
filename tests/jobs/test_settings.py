"""Every run can be repeated from the settings file in its folder, also a run that failed or was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from han.config import SETTINGS_FILE, CorpusConfig, OutputConfig
from han.evaluate import evaluation_page
from han.explain import corpus
from han.score import manifest
from han.score.verify import verify
from han.storage import Folder
from han.train import staging
from han.types import UserError
from jobs import cli, evaluate, explain, prepare, score, train, tune

ROOT = Path(__file__).parents[2]


class Killed(RuntimeError):
    pass


def dies(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "connect", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "encoding.json").write_text('{"fingerprint": "0123"}')
    (tmp_path / "space.toml").write_text('"train.weight_decay" = [0.0, 0.1]\n')
    (tmp_path / "reviews.csv").write_text("text,label\nIt was good.,positive\nIt was bad.,negative\n")


def write_scores(model: Path) -> None:
    score.main(score.Score(input="sample", out="scores", model=str(model), limit=8, output=OutputConfig(effects="words")))


JOBS: dict[str, tuple[Any, Callable[..., None], str, list[str]]] = {
    "prepare": (prepare.Prepare, prepare.main, "han.train.prepare.prepare", ["--input", "reviews.csv", "--limit", "3"]),
    "train": (train.Train, train.main, "han.train.trainer.fit", ["--data", "data", "--train.soft-labels", "soft.parquet"]),
    "tune": (tune.Tune, tune.main, "han.tune.search.sweep", ["--data", "data", "--trials", "2", "--space", "space.toml"]),
    "evaluate": (evaluate.Evaluate, evaluate.main, "han.evaluate.evaluation.evaluate", ["--data", "reviews.csv"]),
    "rationales": (evaluate.Evaluate, evaluate.main, "han.evaluate.rationales.measure", ["--rationales", "split.jsonl"]),
    "explain": (explain.Explain, explain.main, "han.explain.corpus.collect", ["--corpus", "--input", "scores", "--min-count", "3"]),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_run_that_fails_in_its_work_has_settings_that_repeat_it_from_any_folder(
    name: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, main, work, arguments = JOBS[name]
    monkeypatch.setattr(work, dies)
    monkeypatch.setattr("han.evaluate.rationales.read", lambda split: [])
    if name == "explain":
        write_scores(tiny_model)
    if kind is evaluate.Evaluate:
        os.symlink(tiny_model, "model")
        arguments = [*arguments, "--model", "model"]
    with pytest.raises(Killed):
        main(cli.parse(kind, [*arguments, "--out", "out"]))
    file = tmp_path / "out" / SETTINGS_FILE
    written = file.read_text()
    assert [path.name for path in file.parent.iterdir()] == [SETTINGS_FILE]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    repeated = cli.parse(kind, ["--config", str(file)])
    assert repeated.out == str(tmp_path / "out")
    with pytest.raises(Killed):
        main(repeated)
    assert file.read_text() == written, "and the same once more"


def test_a_killed_score_is_repeated_from_its_settings(tmp_path: Path, tiny_model: Path) -> None:
    job = f"input='reviews.csv', out='out', model={str(tiny_model)!r}, limit=1"
    code = f"from jobs import score\nscore.main(score.Score({job}), failpoint='gathered')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    file = tmp_path / "out" / manifest.SETTINGS
    assert done.returncode != 0
    assert not (tmp_path / "out" / manifest.SUCCESS).exists()
    command = [sys.executable, "-m", "jobs.score", "--config", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "1 records in = 1 scored" in done.stdout
    assert cli.parse(score.Score, ["--config", str(file)]).out == str(tmp_path / "out")
    assert verify(str(tmp_path / "out"), unique_ids=False, report=lambda *_, **__: None).num_problems == 0


def test_a_score_that_is_refused_in_its_work_leaves_no_folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("no")

    monkeypatch.setattr("han.score.worker.run_here", refuse)
    with pytest.raises(UserError, match="no"):
        score.main(score.Score(input="reviews.csv", out="out", model=str(tiny_model)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exists", [False, True])
def test_a_user_error_in_the_work_leaves_the_folder_as_it_was(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "metrics.json").touch()
    with pytest.raises(UserError), cli.repeatable(evaluate.Evaluate(out="out"), tmp_path / "out"):
        raise UserError("no label")
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["metrics.json"] * exists


def test_a_folder_with_settings_alone_is_new_for_every_job(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (SETTINGS_FILE, f"{SETTINGS_FILE}.1234.tmp", manifest.SETTINGS):
        (out / name).touch()
    cli.check_out(out, "encoding.json")
    evaluation_page.check_out(out)
    corpus.check_out(str(out))
    assert not staging.is_finished(out, {})
    (out / "thesis.tex").touch()
    checks: tuple[Callable[[Path], object], ...] = (
        lambda out: cli.check_out(out, "encoding.json"),
        evaluation_page.check_out,
        lambda out: staging.is_finished(out, {}),
    )
    for check in checks:
        with pytest.raises(UserError, match="something else"):
            check(out)


def test_a_corpus_view_keeps_its_settings(tmp_path: Path, tiny_model: Path) -> None:
    write_scores(tiny_model)
    for _ in range(2):
        explain.main(explain.Explain(corpus=True, input="scores", corpus_view=CorpusConfig(min_count=2)))
        assert Folder("corpus").names() == ["index.html", SETTINGS_FILE, "words.parquet"]
    assert cli.parse(explain.Explain, ["--config", f"corpus/{SETTINGS_FILE}"]).input == str(tmp_path / "scores")
