"""A small sweep on a real Ray, its driver killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState

from han import artifact, ray_tune, space, sweep
from han.config import ModelConfig, TrainConfig
from han.ray_train import read_run
from han.types import Mistake
from jobs import train

if TYPE_CHECKING:
    from conftest import Cluster

    from han.ray_data import EncodedFolder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("on_ray"), pytest.mark.timeout(240)]

TRIALS, EPOCHS = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    out: Path
    before: list[tuple[Any, ...]]  # trials that were over when the driver was killed
    printed: str


@pytest.fixture(scope="module")
def swept(on_ray: Cluster, folder: EncodedFolder, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Four trials; the driver is killed once the first is over, and started again."""
    out = tmp_path_factory.mktemp("swept") / "sweep"
    command = [sys.executable, "-m", "jobs.tune", "--data", str(folder.path), "--out", str(out), f"--trials={TRIALS}", "--retrain=1"]
    command += [f"--train.epochs={EPOCHS}", "--train.learning-rate=0.01", "--train.batch-tokens=8192", "--model.word-hidden=16"]
    command += ["--vary", "model.word_hidden=[8,16]", "model.sentence_hidden=false", "train.batch_tokens=false"]
    environment = {**os.environ, "RAY_ADDRESS": on_ray.address}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(lambda: any(_over(out)))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = _over(out)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return Swept(out=out, before=before, printed=done.stdout)


def _over(out: Path) -> list[tuple[Any, ...]]:
    """Number, state, parameters and values of the trials that are over."""
    if not (out / "trials").exists():  # made after the study
        return []
    trials = sweep.read_study(out).get_trials(states=sweep.DONE)
    return [(trial.number, trial.state, trial.params, trial.values, trial.user_attrs) for trial in trials]


def _wait_for(happened: Callable[[], bool], deadline_s: float = 120) -> None:
    end = time.monotonic() + deadline_s
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_a_killed_sweep_goes_on_to_exactly_the_trials_asked_for(swept: Swept) -> None:
    after = _over(swept.out)
    assert [trial[0] for trial in after] == list(range(TRIALS))
    assert [trial for trial in after if trial[0] in {known[0] for known in swept.before}] == swept.before
    assert {trial[1] for trial in after} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert after[0][2]["train.learning_rate"] == 0.01
    assert f"{TRIALS} of {TRIALS} trials over" in swept.printed


def test_what_a_trial_is_told_to_have_reached_is_what_its_run_says(swept: Swept) -> None:
    for number, state, _, values, about in _over(swept.out):
        history = read_run(swept.out / sweep.folder_of(number)).history
        accuracies = [line["accuracy"] for line in history[: about["epochs"]]]
        assert values == [max(accuracies)] if state == TrialState.COMPLETE else values == [accuracies[-1]]
        assert about["epochs"] == EPOCHS if state == TrialState.COMPLETE else about["epochs"] < EPOCHS
        assert list((swept.out / sweep.folder_of(number) / "tensorboard").glob("events*"))


def test_the_best_trial_is_a_model_and_settings_for_a_training(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    best = sweep.read_best(swept.out)
    trial = sweep.best(sweep.read_study(swept.out))
    found = artifact.load(artifact.find(str(swept.out)))
    assert best["trial"] == trial.number
    assert found.metrics["development"]["accuracy"] == trial.values[0] == best["development"]["accuracy"]
    monkeypatch.setattr(sys, "argv", ["jobs.train", "--from", str(swept.out), "--out", "run"])
    given = train.defaults()
    assert given is not None
    assert given.model == found.network.config
    assert (given.train.epochs, given.train.learning_rate) == (EPOCHS, trial.params["train.learning_rate"])
    assert len(best["retrained"]["accuracy"]) == 1
    assert pq.read_table(swept.out / "trials.parquet").num_rows == TRIALS


def test_nothing_is_left_of_checkpoints_and_of_what_tune_wrote(swept: Swept) -> None:
    assert not list(swept.out.glob("trials/*/checkpoints"))
    assert not (swept.out / ".tune").exists()


def test_other_settings_on_the_same_folder_are_refused(swept: Swept, folder: EncodedFolder) -> None:
    with pytest.raises(Mistake, match="sweep with other settings"):
        ray_tune.sweep([folder.path], swept.out, **{**_arguments(), "config": sweep.SweepConfig(trials=TRIALS + 1)})


def test_a_trial_that_does_not_fit_the_cluster_is_said_with_its_numbers(folder: EncodedFolder, tmp_path: Path) -> None:
    with pytest.raises(
        Mistake, match=r"one trial needs 6 CPUs \(1 for its driver, 2 x 2 for its workers, 1 to read data\), the cluster has 4"
    ):
        ray_tune.sweep([folder.path], tmp_path / "sweep", **{**_arguments(), "train": TrainConfig(num_workers=2, cpus_per_worker=2)})


def _arguments() -> dict[str, Any]:
    config = sweep.SweepConfig(trials=1)
    sizes = {"model": ModelConfig(), "train": TrainConfig()}
    return {"space": space.SPACE, "config": config, "concurrent": None, "retrain": 0, "watch": lambda study: None, **sizes}
