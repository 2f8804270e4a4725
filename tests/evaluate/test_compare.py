"""Comparisons of runs: differences are shown, equal settings are hidden, unfinished runs and different data are reported."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from han.config import ModelConfig, TrainConfig, as_json
from han.evaluate import compare
from han.model import metrics
from han.types import UserError
from jobs.compare import Compare, main


def write_run(out: Path, *, accuracies: list[float], data: str | None = "d1", finished: bool = True, **train: Any) -> Path:
    """Write the folder of a run like training does."""
    out.mkdir(parents=True)
    config = {"data": "/somewhere/data", "encoding": "e1", "model": as_json(ModelConfig()), "train": as_json(TrainConfig(**train))}
    (out / "config.json").write_text(json.dumps(config | ({"data_fingerprint": data} if data else {})))
    figures = metrics.measure([[0.9, 0.1], [0.2, 0.8]], [0, 1], label_names=("negative", "positive"))
    with (out / "history.jsonl").open("w") as file:
        for epoch, accuracy in enumerate(accuracies, 1):
            learnt = {"temperature": 1.1, "train_loss": 0.5 / epoch, "reviews_per_s": 1234.0, "train_s": 3.0}
            file.write(json.dumps({"epoch": epoch, **figures, "accuracy": accuracy, **learnt}) + "\n")
    if finished:
        (out / "artifact").mkdir()
    return out


def test_a_comparison_shows_differing_settings_and_the_figures_of_the_best_epoch(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", accuracies=[0.7, 0.9, 0.8], seed=1)
    other = write_run(tmp_path / "other", accuracies=[0.6, 0.65], seed=2, learning_rate=0.01)
    runs = compare.read([one, other])
    assert compare.differing(runs) == [("train.learning_rate", ["0.001", "0.01"]), ("train.seed", ["1", "2"])]
    measured = dict(compare.measured(runs))
    assert measured["best epoch"] == ["2 of 3", "2 of 2"]
    low, high = metrics.wilson(2, 2)
    assert measured["accuracy"] == [f"90.00% ({low:.2%} to {high:.2%})", f"65.00% ({low:.2%} to {high:.2%})"]
    assert measured["log loss"][0] == f"{-(math.log(0.9) + math.log(0.8)) / 2:.4f}"
    assert [run.state for run in runs] == ["finished", "finished"]
    assert compare.warnings(runs) == []


def test_an_unfinished_run_and_a_run_without_an_epoch_are_marked(tmp_path: Path) -> None:
    runs = compare.read(
        [
            write_run(tmp_path / "under-way", accuracies=[0.7], finished=False),
            write_run(tmp_path / "begun", accuracies=[], finished=False),
        ]
    )
    assert [run.state for run in runs] == ["1 of at most 5 epochs", "0 of at most 5 epochs"]
    assert dict(compare.measured(runs))["accuracy"][1] == "-"
    assert compare.warnings(runs) == ["not finished: under-way, begun"]
    assert "0 of at most 5 epochs" in compare.page(runs, title="two")


def test_runs_on_different_data_are_distinguished(tmp_path: Path) -> None:
    one, other, old = (
        write_run(tmp_path / name, accuracies=[0.7], data=data) for name, data in (("one", "d1"), ("other", "d2"), ("old", None))
    )
    assert any("different data" in warning for warning in compare.warnings(compare.read([one, other])))
    assert [warning for warning in compare.warnings(compare.read([one, old])) if "different data" in warning] == []
    assert any("old: prepared by an older version" in warning for warning in compare.warnings(compare.read([one, old])))


def test_the_trials_of_a_sweep_have_distinct_names(tmp_path: Path) -> None:
    for sweep in ("a", "b"):
        for trial in ("0000", "0001"):
            write_run(tmp_path / sweep / "trials" / trial, accuracies=[0.7])
    assert [run.name for run in compare.read([tmp_path / "a"])] == ["0000", "0001"]
    both = compare.read([tmp_path / "a", tmp_path / "b"])
    assert [run.name for run in both] == ["a/trials/0000", "a/trials/0001", "b/trials/0000", "b/trials/0001"]


def test_a_folder_without_a_run_or_a_single_run_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        compare.read([tmp_path])
    with pytest.raises(UserError, match="1 run to compare"):
        compare.read([write_run(tmp_path / "one", accuracies=[0.7])])


def test_the_page_has_one_point_per_epoch_and_loads_nothing(tmp_path: Path) -> None:
    runs = compare.read(
        [write_run(tmp_path / "<script>&", accuracies=[0.7, 0.9, 0.8]), write_run(tmp_path / "other", accuracies=[0.6, 0.65], seed=2)]
    )
    page = compare.page(runs, title="two <b>runs")
    assert page.count("<circle") == len(compare.CURVES) * (3 + 2)
    assert "<script" not in page
    assert "two &lt;b&gt;runs" in page
    assert not re.search(r"\b(src|href|style)=|url\(", page)
    (accuracy, *_) = re.findall(r'<polyline points="([^"]*)"', page)
    heights = [float(point.partition(",")[2]) for point in accuracy.split()]
    assert heights.index(min(heights)) == 1  # the highest accuracy is drawn the highest


def test_the_job_prints_the_tables_and_writes_the_page_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", accuracies=[0.7, 0.9])
    other = write_run(tmp_path / "other", accuracies=[0.6], finished=False, seed=2)
    job = Compare(runs=(str(one), str(other)), out=str(tmp_path / "compare.html"))
    main(job)
    printed = capsys.readouterr().out
    for part in ("train.seed", "90.00%", "1 of at most 5 epochs", "note: not finished: other"):
        assert part in printed
    assert (tmp_path / "compare.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(UserError, match="exists already"):
        main(job)


def measured_on(run: Path, num_right: int, num_reviews: int) -> Path:
    """Set the accuracy of the run's last epoch, and its interval for this number of reviews."""
    lines = (run / "history.jsonl").read_text().splitlines()
    last = json.loads(lines[-1]) | {
        "accuracy": num_right / num_reviews,
        "accuracy_interval": list(metrics.wilson(num_right, num_reviews)),
        "log_loss": 1 - num_right / num_reviews,
    }
    (run / "history.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    return run


def test_the_better_value_of_each_figure_is_marked_lower_for_a_loss(tmp_path: Path) -> None:
    good = measured_on(write_run(tmp_path / "good", accuracies=[0.5]), 900, 1_000)
    bad = measured_on(write_run(tmp_path / "bad", accuracies=[0.5]), 800, 1_000)
    runs = compare.read([bad, good])
    assert compare.best_of(runs, "accuracy") == [False, True]
    assert compare.best_of(runs, "log loss") == [False, True]
    assert compare.best_of(runs, "brier") == [False, False]  # equal
    assert compare.best_of(runs, "temperature") == compare.best_of(runs, "best epoch") == [False, False]
    assert compare.verdict(runs) == "good has the highest development accuracy; the 95% intervals of all others are below its own"
    assert compare.page(runs, title="two").count('class="best"') == 2


def test_a_difference_within_the_intervals_may_be_chance(tmp_path: Path) -> None:
    folders = [measured_on(write_run(tmp_path / name, accuracies=[0.5]), right, 1_000) for name, right in (("one", 900), ("other", 895))]
    assert "the 95% intervals of other overlap with its own, so this difference may be chance" in str(
        compare.verdict(compare.read(folders))
    )


def test_nothing_is_marked_between_runs_of_different_data(tmp_path: Path) -> None:
    one = measured_on(write_run(tmp_path / "one", accuracies=[0.5], data="d1"), 900, 1_000)
    runs = compare.read([one, measured_on(write_run(tmp_path / "other", accuracies=[0.5], data="d2"), 800, 1_000)])
    assert compare.best_of(runs, "accuracy") == [False, False]
    assert compare.verdict(runs) is None


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = tuple(str(write_run(tmp_path / name, accuracies=[0.5])) for name in ("one", "other"))
    with pytest.raises(UserError, match="there is no folder"):
        main(Compare(runs=folders, out=str(tmp_path / "nowhere" / "compare.html")))
    assert capsys.readouterr().out == ""
