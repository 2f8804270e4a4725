"""A sweep as an Optuna study on disk. The study is the only record of its trials.

A sweep's folder:
  sweep.json         the request; another request on the same folder is refused
  study.db           the study in SQLite: `optuna-dashboard sqlite:///…/study.db` can read it during the sweep
  trials/NNNN/       the run of a trial (see `train.trainer`)
  trials.parquet     one row for each trial
  report.html        the page of the sweep
  best.json          the best trial's settings, for `train --from`
  artifact/          the best trial's model

A trial has its parameters, its development accuracy by epoch, its state (COMPLETE, PRUNED if stopped early, FAIL), and these attributes:
epochs, accuracy, log_loss, reviews_per_s, train_s, folder, and reason (of a failure).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from han.config import ModelConfig, SweepConfig, TrainConfig, as_json, differences, read_json, without_settings
from han.model.metrics import best_epoch
from han.storage import replace_file, write_json
from han.tune import search_space
from han.tune.search_space import Space, Value
from han.types import UserError

DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def request_of(data: Sequence[Path], space: Space, *, model: ModelConfig, train: TrainConfig, config: SweepConfig) -> dict[str, Any]:
    """sweep.json of a sweep over encoded folders."""
    fingerprints = {str(path): read_json(path / "encoding.json")["fingerprint"] for path in data}
    settings = {"model": as_json(model), "train": as_json(train), "sweep": as_json(config)}
    return {"data": fingerprints, "space": search_space.as_json(space), **settings}


def check(out: Path, request: dict[str, Any]) -> None:
    """`UserError` if the folder holds the sweep of another request, or other files. Nothing is written."""
    if not (out / "sweep.json").exists():
        names = without_settings(path.name for path in out.iterdir()) if out.exists() else []
        if existing := [name for name in names if not name.startswith(".")]:
            raise UserError(f"--out {out} holds something else ({existing[0]}): give a new folder")
        return
    changed = differences(request, read_json(out / "sweep.json"))
    if changed:
        raise UserError(f"{out} holds a sweep with other settings ({'; '.join(changed[:3])}): give another --out, or the same settings")


def claim(out: Path, request: dict[str, Any]) -> None:
    """Create the folder, or accept a folder of the same request; anything else is a `UserError`."""
    check(out, request)
    if not (out / "sweep.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "sweep.json", request)


def open_study(out: Path, config: SweepConfig, *, epochs: int, first: Sequence[dict[str, Value]]) -> optuna.Study:
    """The study of a claimed folder. A new study tries the settings `first` before any that a sampler draws.

    epochs: maximum epochs of a trial.
    """
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if config.reduction_factor > 1 and not config.cost:
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=config.grace, reduction_factor=config.reduction_factor)
    study = optuna.create_study(
        storage=_storage(out),
        study_name=out.name,
        directions=["minimize", "minimize"] if config.cost else ["maximize"],
        pruner=pruner,
        load_if_exists=True,
    )
    if "epochs" not in study.user_attrs:  # written last, so a crash before this line is repaired here
        for settings in list(first)[len(study.get_trials(deepcopy=False)) : config.trials]:
            study.enqueue_trial(settings)
        names = ["development log loss", "ms of training a review"] if config.cost else ["development accuracy"]
        study.set_user_attr("metrics", names)
        study.set_user_attr("metric", names[0])
        study.set_user_attr("epochs", epochs)
    return study


def read_study(out: Path) -> optuna.Study:
    """The study of a sweep's folder; any other folder is a `UserError`."""
    if not (out / "study.db").exists():
        raise UserError(f"{out} is no sweep (it has no study.db): give the folder that `tune` wrote")
    return optuna.load_study(study_name=None, storage=_storage(out))


def left_running(study: optuna.Study, config: SweepConfig) -> list[Trial]:
    """Trials that were running when a driver died. They resume under their numbers with their parameters."""
    trials = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        study.sampler = _sampler(config, trial.number)  # for parameters that are not in the storage yet
        trials.append(Trial(study, trial._trial_id))
    return trials


def ask(study: optuna.Study, config: SweepConfig) -> Trial | None:
    """The next trial, or None once the requested number exists."""
    trials = study.get_trials(deepcopy=False)
    number = sum(trial.state != TrialState.WAITING for trial in trials)
    if number >= config.trials:
        return None
    study.sampler = _sampler(config, number)
    return study.ask()


def report(trial: Trial, line: dict[str, Any]) -> str | None:
    """Record an epoch's line of history. Returns why to stop the trial (`early`, or the reason of a failure), or None to continue."""
    failed = _record(trial, line)
    if failed is not None or len(trial.study.directions) > 1:
        return failed
    # The first trial is reported too, so that others are compared with it, but it always runs to its end.
    stops = trial.should_prune() and trial.number > 0
    return "early" if stops and line["epoch"] < trial.study.user_attrs["epochs"] else None


def _record(trial: Trial, line: dict[str, Any]) -> str | None:
    for name in ("accuracy", "log_loss"):
        if not math.isfinite(line[name]):
            return f"it diverged: development {name} is {line[name]} after epoch {line['epoch']}"
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if len(trial.study.directions) == 1 and line["epoch"] not in known:  # after a crash an epoch may be reported again
        trial.report(line["accuracy"], line["epoch"])
    return None


def tell(study: optuna.Study, trial: Trial, history: Sequence[dict[str, Any]], *, folder: str, stopped: str | None, workers: int) -> None:
    """End a trial: with its value, as stopped `early`, or as failed with the reason `stopped`.

    history: one line for each epoch; workers: number of training processes.
    """
    if stopped is None:
        failures = [_record(trial, line) for line in history] or ["it ended without an epoch"]
        stopped = next((failure for failure in failures if failure), None)
    attributes: dict[str, Any] = {"folder": folder, "epochs": len(history)}
    if history:
        best = history[best_epoch(history)]
        speed = max(line["reviews_per_s"] for line in history)  # of the fastest epoch: other trials on the machine slow the rest
        attributes |= {"accuracy": best["accuracy"], "log_loss": best["log_loss"], "reviews_per_s": speed}
        attributes |= {"train_s": sum(line["train_s"] for line in history)}
    if stopped is not None and stopped != "early":
        attributes["reason"] = stopped
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    if stopped == "early":
        study.tell(trial.number, state=TrialState.PRUNED)
    elif stopped is not None:
        study.tell(trial.number, state=TrialState.FAIL)
    elif len(study.directions) > 1:
        study.tell(trial.number, [attributes["log_loss"], 1_000 * workers / attributes["reviews_per_s"]])
    else:
        study.tell(trial.number, attributes["accuracy"])


def best(study: optuna.Study) -> FrozenTrial:
    """The trial with the highest development accuracy, then the lowest log loss. With two objectives, the lowest log loss."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if not complete:
        reasons = [trial.user_attrs.get("reason", "stopped") for trial in study.get_trials(deepcopy=False)]
        raise UserError(f"none of {len(reasons)} trials finished; reason of the first: {reasons[0] if reasons else 'there was none'}")
    if len(study.directions) > 1:
        return min(complete, key=lambda trial: (trial.values, trial.number))
    return min(complete, key=lambda trial: (-trial.values[0], trial.user_attrs["log_loss"], trial.number))


def counts(study: optuna.Study) -> dict[str, int]:
    """Number of trials that are done, stopped early, failed and running, and of their epochs."""
    trials = study.get_trials(deepcopy=False)
    number = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    return {
        "done": number[TrialState.COMPLETE],
        "stopped": number[TrialState.PRUNED],
        "failed": number[TrialState.FAIL],
        "running": number[TrialState.RUNNING],
        "epochs": sum(trial.user_attrs.get("epochs", 0) for trial in trials),
    }


def earlier_best(sweep: Path, number: int, names: Sequence[str]) -> list[dict[str, Value]]:
    """Settings of an earlier sweep's best trials, restricted to parameters that this sweep varies."""
    study = read_study(sweep)
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    ranked = sorted(complete, key=lambda trial: trial.values if len(study.directions) > 1 else [-trial.values[0]])
    return [{name: value for name, value in trial.params.items() if name in names} for trial in ranked[:number]]


def write_trials(study: optuna.Study, path: Path) -> None:
    """Write trials.parquet: number, state, one column for each parameter and attribute, the values, start and end."""
    rows = []
    for trial in study.get_trials(deepcopy=False, states=DONE):
        times = {"started": trial.datetime_start, "ended": trial.datetime_complete}
        values = {f"value_{place}": value for place, value in enumerate(trial.values or [])}
        rows.append({"number": trial.number, "state": trial.state.name, **trial.params, **values, **trial.user_attrs, **times})
    names = sorted({name for row in rows for name in row}, key=lambda name: (name not in ("number", "state"), name))
    replace_file(path, lambda temporary: pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), temporary))


def write_best(out: Path, study: optuna.Study, overrides: dict[str, Value], *, data: str, more: dict[str, Any]) -> None:
    """Write the best trial's artifact and settings. overrides: all settings that differ from the defaults; data: the folder it read."""
    trial = best(study)
    temporary = out / ".artifact"
    shutil.rmtree(temporary, ignore_errors=True)
    if not (out / "artifact").exists():
        shutil.copytree(out / str(trial.user_attrs["folder"]) / "artifact", temporary)
        temporary.rename(out / "artifact")
    figures = {name: trial.user_attrs[name] for name in ("accuracy", "log_loss", "epochs", "train_s")}
    write_json(out / "best.json", {"trial": trial.number, "overrides": overrides, "data": data, "development": figures, **more})


def read_best(out: Path) -> dict[str, Any]:
    """best.json of a finished sweep."""
    if not (out / "best.json").exists():
        raise UserError(f"{out} is no finished sweep (it has no best.json): give a finished one, or run `tune` again to finish it")
    return read_json(out / "best.json")


def tidy(out: Path) -> None:
    """Remove the checkpoints of finished trials."""
    for trial in read_study(out).get_trials(deepcopy=False, states=DONE):
        shutil.rmtree(out / folder_of(trial.number) / "checkpoints", ignore_errors=True)


def folder_of(number: int) -> str:
    return f"trials/{number:04d}"


def _storage(out: Path) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return RDBStorage(f"sqlite:///{out / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}})


def _sampler(config: SweepConfig, number: int) -> optuna.samplers.BaseSampler:
    """A sampler with its own seed for each trial: one that started again after a crash would repeat the first settings."""
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    startup = max(3, config.trials // 3)  # drawn at random before the sampler uses its model
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if config.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    if config.sampler == "nsgaii":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, config.trials // 4))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
