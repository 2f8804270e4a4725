"""Ray Tune: `sweep` tries many settings of one training, several at once, and keeps the best network.

Tune starts, watches and stops trials. Optuna's study (see `han.tune.sweep`) holds the settings, the decisions to stop and the results.
Tune's own record is temporary: after a crash the same call opens the study and runs the missing trials. A trial is `trainer.fit` in
trials/NNNN, so a trial that was running resumes from its last epoch.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import ray
from optuna.trial import Trial
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from han.config import ModelConfig, SweepConfig, TrackConfig, TrainConfig, as_json, from_json
from han.storage import Folder, replace_file
from han.train import track as trackers
from han.train.encoded import EncodedFolder, read_encoded
from han.train.trainer import Run, fit, read_run
from han.tune import search_space as spaces
from han.tune import sweep as sweeps
from han.tune.report import report
from han.tune.search_space import DATA, Space, Value
from han.types import UserError

Fit = Callable[..., Run]  # as `trainer.fit`
Watch = Callable[[optuna.Study], None]  # called at most once a second, and at the end
DRIVER_DEATHS = 3  # of one trial, after which the trial counts as failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A finished sweep."""

    study: optuna.Study
    best: dict[str, Any]  # best.json


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepJob:
    """What a sweep tries, on which data, and where it writes. Paths are absolute, on storage that all nodes see."""

    data: Sequence[Path]  # encoded folders; trial 0 reads the first
    out: Path
    space: Space
    model: ModelConfig
    train: TrainConfig
    config: SweepConfig
    concurrent: int | None = None  # trials at once at most; None: as many as fit the cluster
    retrain: int = 0  # seeds over which the best settings are trained again; 0: none
    track: TrackConfig = field(default_factory=TrackConfig)  # trackers beside TensorBoard; every trial has its own name there


def sweep(job: SweepJob, *, watch: Watch, fit: Fit = fit) -> Sweep:
    """Try `config.trials` settings of the space around `model` and `train`, and keep the best.

    The same call resumes a sweep that was killed. Raises `UserError` if a trial does not fit the cluster, `out` holds another sweep, or no
    trial finished.
    """
    spaces.check(job.space, job.model, job.train)
    folders = _alike([read_encoded(path) for path in job.data])
    first = [spaces.default(job.space, job.model, job.train)]
    if job.config.warm_start is not None:
        first += sweeps.earlier_best(Path(job.config.warm_start), max(1, job.config.trials // 4), list(job.space))
    paths = [folder.path for folder in folders]
    sweeps.claim(job.out, sweeps.request_of(paths, job.space, model=job.model, train=job.train, config=job.config))
    with Folder(str(job.out)).locked(".lock"):
        study = sweeps.open_study(job.out, job.config, epochs=job.train.epochs, first=first)
        searcher = _Searcher(study, job)
        if searcher.missing():
            _run(searcher, watch=watch, fit=fit)
        watch(study)
        return _finish(study, job, fit=fit)


def fits(train: TrainConfig) -> int:
    """How many trials the cluster holds at once: a trial has a driver, workers and a CPU that reads data. `UserError` if none fits."""
    available = ray.cluster_resources()
    cpus, gpus = 2 + train.num_workers * train.cpus_per_worker, train.num_workers if train.gpu else 0
    bound = int(available.get("CPU", 0) // cpus)
    if gpus:
        bound = min(bound, int(available.get("GPU", 0) // gpus))
    if bound < 1:
        has = f"{int(available.get('CPU', 0))} CPUs" + (f" and {int(available.get('GPU', 0))} GPUs" if gpus else "")
        raise UserError(
            f"one trial needs {cpus} CPUs (1 for its driver, {train.num_workers} x {train.cpus_per_worker} for its workers, 1 to read "
            f"data){f' and {gpus} GPUs' if gpus else ''}, the cluster has {has}: lower --train.num-workers or --train.cpus-per-worker, "
            "or add nodes"
        )
    return bound


def _alike(folders: Sequence[EncodedFolder]) -> Sequence[EncodedFolder]:
    """The folders, or a `UserError` if their labels or development reviews differ: their scores could not be compared."""
    ids = [sorted(name for file in folder.files["development"] for name in _ids(folder, file)) for folder in folders]
    for folder, review_ids in zip(folders, ids, strict=True):
        if folder.labels != folders[0].labels or review_ids != ids[0]:
            raise UserError(
                f"{folder.path} has other labels or development reviews than {folders[0].path}: "
                "prepare both from the same reviews with the same --dev-ids"
            )
    return folders


def _ids(folder: EncodedFolder, file: str) -> list[str]:
    return [str(name) for name in pq.read_table(folder.path / "development" / file, columns=["review_id"])["review_id"].to_pylist()]


def _settings(trial: Trial, job: SweepJob) -> dict[str, Any]:
    """The settings of a trial as `_trial` reads them."""
    drawn = spaces.suggest(trial, job.space, job.model, job.train)
    model, train = spaces.override(job.model, job.train, drawn)
    name, group = f"{job.out.name}/{trial.number:04d}", job.track.group or job.out.name
    settings = {"data": drawn.get(DATA, str(job.data[0])), "out": str(job.out), "folder": sweeps.folder_of(trial.number)}
    track = as_json(dataclasses.replace(job.track, name=name, group=group))
    return settings | {"model": as_json(model), "train": as_json(train), "track": track}


def _run(searcher: _Searcher, *, watch: Watch, fit: Fit) -> None:
    """Run the missing trials on Ray Tune."""
    job = searcher.job
    scratch = job.out / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(partial(_trial, fit=fit), {"CPU": 1}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_StudyScheduler(searcher),
            num_samples=-1,  # until `searcher` is finished: it returns a trial again if its node died
            max_concurrent_trials=min(job.concurrent or job.config.trials, fits(job.train)),
            trial_name_creator=lambda trial: str(trial.config.get("folder", trial.trial_id)).replace("/", "-"),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=secrets.token_hex(4), storage_path=str(scratch), verbose=0, callbacks=[_Watched(partial(watch, searcher.study))]
        ),
    )
    tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    if missing := searcher.missing():
        raise RuntimeError(f"Ray Tune ended with {missing} trials missing")


def _trial(config: dict[str, Any], *, fit: Fit) -> None:
    """The driver of a trial: one training. The workers' controller reports each epoch to Tune."""
    out = Path(config["out"]) / config["folder"]
    out.parent.mkdir(exist_ok=True)
    (out.parent / f".{out.name}.failed").unlink(missing_ok=True)
    try:
        model, train = from_json(ModelConfig, config["model"]), from_json(TrainConfig, config["train"])
        track = from_json(TrackConfig, config["track"])
        fit(Path(config["data"]), out, model, train, track=track, callbacks=[TuneReportCallback()])
    except Exception as error:
        # Tune keeps a pickled exception and the tracebacks of many processes; the table of trials shows one line.
        reason = _reason(error)
        replace_file(out.parent / f".{out.name}.failed", lambda temporary: temporary.write_text(reason, encoding="utf-8"))
        raise


def _reason(error: BaseException) -> str:
    """The last line of the error of the first worker that failed."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    lines = [line.strip() for line in "".join(traceback.format_exception_only(error)).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__


class _Searcher(Searcher):
    """Gives Tune the trials of the study and records their results. All state is in the study on disk."""

    def __init__(self, study: optuna.Study, job: SweepJob) -> None:
        super().__init__()
        self.study, self.job = study, job
        self.again = sweeps.left_running(study, job.config)
        self.running: dict[str, tuple[Trial, dict[str, Any]]] = {}
        self.stopped: dict[str, str] = {}
        self.deaths: Counter[int] = Counter()  # of the drivers of a trial

    def missing(self) -> int:
        return self.job.config.trials - sum(sweeps.counts(self.study)[name] for name in ("done", "stopped", "failed"))

    def suggest(self, trial_id: str) -> Any:
        """A trial's settings; None while a running trial may have to be repeated; then `FINISHED`."""
        trial = self.again.pop(0) if self.again else sweeps.ask(self.study, self.job.config)
        if trial is None:
            return None if self.running else Searcher.FINISHED
        settings = _settings(trial, self.job)
        self.running[trial_id] = (trial, settings)
        return settings

    def stops(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to stop a trial that has reported an epoch."""
        if "epoch" in result and trial_id in self.running and (why := sweeps.report(self.running[trial_id][0], result)):
            self.stopped[trial_id] = why
        return trial_id in self.stopped

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self.running:
            return
        trial, settings = self.running.pop(trial_id)
        folder = Path(settings["out"]) / settings["folder"]
        failed = folder.parent / f".{folder.name}.failed"
        stopped = self.stopped.pop(trial_id, None)
        if error and not failed.exists():  # no error was raised: the process or node of its driver died
            self.deaths[trial.number] += 1
            if self.deaths[trial.number] < DRIVER_DEATHS:
                self.again.append(trial)
                return
            stopped = f"the process of its driver died {DRIVER_DEATHS} times"
        elif error:
            stopped = failed.read_text()
        elif stopped is None and not (folder / "artifact").exists():
            stopped = "it ended without a model"
        history = read_run(folder).history if (folder / "history.jsonl").exists() else []
        if stopped is not None:  # epochs after the decision to stop do not count
            history = history[: result["epoch"]] if result and "epoch" in result else history
            trackers.stopped(folder, from_json(TrackConfig, settings["track"]), history)
        sweeps.tell(self.study, trial, history, folder=settings["folder"], stopped=stopped, workers=self.job.train.num_workers)
        failed.unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def save(self, checkpoint_path: str) -> None:
        """The study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """The study is on disk already."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles this object into its temporary folder, which is never read


class _StudyScheduler(FIFOScheduler):
    """Runs trials in the order of the study and stops those that the study prunes."""

    def __init__(self, searcher: _Searcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if self.searcher.stops(trial.trial_id, result) else TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Watched(tune.Callback):
    """Report the progress of the study, at most once a second."""

    def __init__(self, watch: Callable[[], None]) -> None:
        self.watch, self.reported_at = watch, 0.0

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if time.monotonic() - self.reported_at >= 1:
            self.watch()
            self.reported_at = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _finish(study: optuna.Study, job: SweepJob, *, fit: Fit) -> Sweep:
    """Write the results of the trials, train the best settings again over other seeds, draw the report."""
    out = job.out
    sweeps.tidy(out)
    sweeps.write_trials(study, out / "trials.parquet")
    best = sweeps.best(study)
    source = Path(best.params.get(DATA, str(job.data[0])))
    model, train = spaces.override(job.model, job.train, best.params)
    defaults = spaces.flat(ModelConfig(), TrainConfig())
    overrides: dict[str, Value] = {name: value for name, value in spaces.flat(model, train).items() if value != defaults[name]}
    more: dict[str, Any] = {}
    if job.retrain:
        more["retrained"] = again = _retrained(source, out / "retrained", model, train, job.retrain, fit=fit)
        shown = {"scores": again["accuracy"], "mean": again["mean"], "spread": again["standard_deviation"]}
        study.set_user_attr("retrained", {"metric": "development accuracy", **shown})
    sweeps.write_best(out, study, overrides, data=str(source), more=more)
    page = report(study)
    replace_file(out / "report.html", lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return Sweep(study=study, best=sweeps.read_best(out))


def _retrained(data: Path, out: Path, model: ModelConfig, train: TrainConfig, number: int, *, fit: Fit) -> dict[str, Any]:
    """Development accuracy of the same settings over seeds that the sweep did not use."""
    seeds = range(train.seed + 1, train.seed + 1 + number)
    accuracies = [fit(data, out / f"seed-{seed}", model, dataclasses.replace(train, seed=seed)).best["accuracy"] for seed in seeds]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return {"seeds": list(seeds), "accuracy": accuracies, "mean": statistics.mean(accuracies), "standard_deviation": spread}
