"""The trials that Ray Tune gets and their results, without a running Ray."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from han.config import ModelConfig, SweepConfig, TrainConfig
from han.tune import search, search_space, sweep
from han.tune.search_space import SPACE

MODEL, TRAIN = ModelConfig(), TrainConfig()


def searcher(out: Path, trials: int) -> search._Searcher:
    config = SweepConfig(trials=trials)
    sweep.claim(out, {"sweep": trials})
    study = sweep.open_study(out, config, epochs=3, first=[search_space.default(SPACE, MODEL, TRAIN)])
    (out / "trials").mkdir(exist_ok=True)
    job = search.SweepJob(data=[out / "data"], out=out, space=SPACE, model=MODEL, train=TRAIN, config=config)
    return search._Searcher(study, job)


def test_a_trial_whose_driver_died_is_retried_and_fails_after_three_deaths(tmp_path: Path) -> None:
    asks = searcher(tmp_path / "sweep", 2)
    first, second = asks.suggest("a"), asks.suggest("b")
    asks.on_trial_complete("a", error=True)
    assert asks.study.trials[0].state == TrialState.RUNNING
    assert asks.suggest("c") == first
    asks.on_trial_complete("c", error=True)
    assert asks.suggest("d") == first
    asks.on_trial_complete("d", error=True)
    assert asks.study.trials[0].state == TrialState.FAIL
    assert asks.study.trials[0].user_attrs["reason"] == "the process of its driver died 3 times"
    assert asks.suggest("e") is None  # the second runs, and might die too
    asks.on_trial_complete("b", error=True)
    assert asks.suggest("f") == second


def test_a_trial_that_raised_is_not_retried(tmp_path: Path) -> None:
    asks = searcher(tmp_path / "sweep", 1)
    settings = asks.suggest("a")
    Path(settings["out"], "trials", ".0000.failed").write_text("ValueError: no")
    asks.on_trial_complete("a", error=True)
    assert asks.study.trials[0].user_attrs["reason"] == "ValueError: no"
    assert asks.suggest("b") == Searcher.FINISHED
    assert not list((tmp_path / "sweep" / "trials").iterdir())


@dataclass
class Trained:
    best: dict[str, float]


def test_the_best_settings_are_retrained_with_new_seeds(tmp_path: Path) -> None:
    def fit(data: Path, out: Path, model: ModelConfig, train: TrainConfig) -> Any:
        assert out == tmp_path / "sweep" / "retrained" / f"seed-{train.seed}"
        return Trained({"accuracy": 0.8 + train.seed / 100})

    out = tmp_path / "sweep"
    asks = searcher(out, 1)
    settings = asks.suggest("a")
    (out / settings["folder"] / "artifact").mkdir(parents=True)
    line = {"epoch": 1, "accuracy": 0.9, "log_loss": 0.3, "reviews_per_s": 100.0, "train_s": 2.0}
    (out / settings["folder"] / "history.jsonl").write_text(json.dumps(line) + "\n")
    asks.on_trial_complete("a", {"epoch": 1})
    found = search._finish(asks.study, dataclasses.replace(asks.job, train=TrainConfig(seed=5), retrain=3), fit=fit)
    again = found.best["retrained"]
    assert again["seeds"] == [6, 7, 8]
    assert again["mean"] == pytest.approx(0.87)
    assert again["standard_deviation"] == pytest.approx(0.01)
    assert "Trained again over 3 other seeds" in (out / "report.html").read_text()
