"""A small sweep whose driver is killed and restarted, shared by several tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from han.tune import sweep
from tests.helpers.cluster import Cluster

TRIALS, EPOCHS = 3, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    out: Path
    mlflow: str  # tracking URI
    before: list[tuple[Any, ...]]  # trials that had finished when the driver was killed
    printed: str


def kill_and_resume(cluster: Cluster, data: Path, out: Path) -> Swept:
    """Run three trials. The driver is killed after the first one has finished, and the command is run again."""
    command = [sys.executable, "-m", "jobs.tune", "--data", str(data), "--out", str(out), f"--trials={TRIALS}"]
    command += [f"--train.epochs={EPOCHS}", "--train.learning-rate=0.01", "--train.batch-tokens=8192", "--model.word-hidden=16"]
    command += ["--vary", "model.word_hidden=[8,16]", "model.sentence_hidden=false", "train.batch_tokens=false"]
    mlflow = f"sqlite:///{out.parent}/mlflow.db"
    command.append(f"--track.mlflow={mlflow}")
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    log = out.parent / "driver.log"
    with log.open("wb") as printed:
        driver = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)
    try:
        _wait_for(lambda: any(finished_trials(out)), driver, log)
    finally:
        driver.kill()
        driver.wait()
    before = finished_trials(out)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return Swept(out=out, mlflow=mlflow, before=before, printed=done.stdout)


def finished_trials(out: Path) -> list[tuple[Any, ...]]:
    """Number, state, parameters, values and attributes of the finished trials."""
    if not (out / "trials").exists():  # created after the study
        return []
    trials = sweep.read_study(out).get_trials(states=sweep.DONE)
    return [(trial.number, trial.state, trial.params, trial.values, trial.user_attrs) for trial in trials]


def _wait_for(happened: Callable[[], bool], driver: subprocess.Popen[bytes], log: Path, deadline_s: float = 300) -> None:
    end = time.monotonic() + deadline_s
    while not happened():
        assert driver.poll() is None, log.read_text(errors="replace")[-2_000:]
        assert time.monotonic() < end, f"no trial finished within {deadline_s} s: {log.read_text(errors='replace')[-2_000:]}"
        time.sleep(0.1)
