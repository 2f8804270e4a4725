"""Ray Tune: `sweep` trains many settings, several at once, and keeps the best model.

Tune starts, watches and stops trials. Optuna's study (see `tune.sweep`) decides which settings are tried and which trials stop, and records
the results. Tune's own experiment folder is scratch: after a crash, the same call opens the study and runs the missing trials. A trial is
`trainer.fit` in trials/NNNN, so an interrupted trial resumes from its last epoch.
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
from dataclasses import dataclass
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
from han.types import Mistake

Fit = Callable[..., Run]  # as `ray_train.fit`
Watch = Callable[[optuna.Study], None]  # called often, and after each trial
DRIVER_DEATHS = 3  # of one trial; a driver that dies so often is killed by its trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A finished sweep."""

    study: optuna.Study
    best: dict[str, Any]  # best.json


def sweep(
    data: Sequence[Path],
    out: Path,
    *,
    space: Space,
    model: ModelConfig,
    train: TrainConfig,
    config: SweepConfig,
    concurrent: int | None,
    retrain: int,
    watch: Watch,
    fit: Fit = fit,
    track: TrackConfig | None = None,
) -> Sweep:
    """Train `config.trials` settings from the space around `model` and `train`, and keep the best.

    data: encoded folders; trial 0 uses the first; concurrent: maximum number of trials at once, None for as many as fit the cluster;
    retrain: number of other seeds to train the best settings with; track: trackers beside TensorBoard, each trial under its own name.
    The same call resumes a killed sweep. Paths are absolute, on storage that all nodes see. Raises `Mistake` if a trial does not fit the
    cluster, if `out` holds another sweep, or if no trial finished.
    """
    spaces.check(space, model, train)
    folders = _alike([read_encoded(path) for path in data])
    first = [spaces.default(space, model, train)]
    if config.warm_start is not None:
        first += sweeps.earlier_best(Path(config.warm_start), max(1, config.trials // 4), list(space))
    request = {"data": {str(folder.path): folder.fingerprint for folder in folders}, "space": spaces.as_json(space)}
    request |= {"model": as_json(model), "train": as_json(train), "sweep": as_json(config)}
    sweeps.claim(out, request)
    with Folder(str(out)).locked(".lock"):
        study = sweeps.open_study(out, config, epochs=train.epochs, first=first)
        settings = partial(_settings, out=out, data=data[0], space=space, model=model, train=train, track=track or TrackConfig())
        asked = _Asked(study, config, settings, train.num_workers)
        if asked.missing():
            _run(asked, out, concurrent=min(concurrent or config.trials, fits(train)), watch=watch, fit=fit)
        watch(study)
        return _finish(study, out, data=data[0], model=model, train=train, retrain=retrain, fit=fit)


def fits(train: TrainConfig) -> int:
    """Number of trials that fit the cluster at once. A trial needs its driver, its workers and a CPU to read data. Zero is a `Mistake`."""
    there = ray.cluster_resources()
    cpus, gpus = 2 + train.num_workers * train.cpus_per_worker, train.num_workers if train.gpu else 0
    bound = int(there.get("CPU", 0) // cpus)
    if gpus:
        bound = min(bound, int(there.get("GPU", 0) // gpus))
    if bound < 1:
        has = f"{int(there.get('CPU', 0))} CPUs" + (f" and {int(there.get('GPU', 0))} GPUs" if gpus else "")
        raise Mistake(
            f"one trial needs {cpus} CPUs (1 for its driver, {train.num_workers} x {train.cpus_per_worker} for its workers, 1 to read "
            f"data){f' and {gpus} GPUs' if gpus else ''}, the cluster has {has}: lower --train.num-workers or --train.cpus-per-worker, "
            "or add nodes"
        )
    return bound


def _alike(folders: Sequence[EncodedFolder]) -> Sequence[EncodedFolder]:
    """Refuse folders with different development reviews: their scores cannot be compared."""
    ids = [sorted(name for file in folder.files["development"] for name in _ids(folder, file)) for folder in folders]
    for folder, found in zip(folders, ids, strict=True):
        if folder.labels != folders[0].labels or found != ids[0]:
            raise Mistake(
                f"{folder.path} has other labels or development reviews than {folders[0].path}: "
                "prepare both from the same reviews with the same --dev-ids"
            )
    return folders


def _ids(folder: EncodedFolder, file: str) -> list[str]:
    return [str(name) for name in pq.read_table(folder.path / "development" / file, columns=["review_id"])["review_id"].to_pylist()]


def _settings(
    trial: Trial, *, out: Path, data: Path, space: Space, model: ModelConfig, train: TrainConfig, track: TrackConfig
) -> dict[str, Any]:
    """A trial's parameters as the arguments of `_trial`."""
    drawn = spaces.suggest(trial, space, model, train)
    ours, how = spaces.override(model, train, drawn)
    folder = sweeps.folder_of(trial.number)
    told = as_json(dataclasses.replace(track, name=f"{out.name}/{trial.number:04d}", group=track.group or out.name))
    settings = {"data": drawn.get(DATA, str(data)), "out": str(out), "folder": folder}
    return settings | {"model": as_json(ours), "train": as_json(how), "track": told}


def _run(asked: _Asked, out: Path, *, concurrent: int, watch: Watch, fit: Fit) -> None:
    """Let Tune run the missing trials."""
    scratch = out / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(partial(_trial, fit=fit), {"CPU": 1}),
        tune_config=tune.TuneConfig(
            search_alg=asked,
            scheduler=_Stops(asked),
            num_samples=-1,  # until `asked` has no more: a trial whose node died is repeated
            max_concurrent_trials=concurrent,
            trial_name_creator=lambda trial: str(trial.config.get("folder", trial.trial_id)).replace("/", "-"),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=secrets.token_hex(4), storage_path=str(scratch), verbose=0, callbacks=[_Watched(partial(watch, asked.study))]
        ),
    )
    tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    if still := asked.missing():
        raise RuntimeError(f"Ray Tune ended with {still} trials missing")


def _trial(config: dict[str, Any], *, fit: Fit) -> None:
    """The driver of a trial: one training. Tune receives each epoch from the workers' controller."""
    out = Path(config["out"]) / config["folder"]
    out.parent.mkdir(exist_ok=True)
    (out.parent / f".{out.name}.failed").unlink(missing_ok=True)
    try:
        model, train = from_json(ModelConfig, config["model"]), from_json(TrainConfig, config["train"])
        track = from_json(TrackConfig, config["track"])
        fit(Path(config["data"]), out, model, train, track=track, callbacks=[TuneReportCallback()])
    except Exception as error:
        # Tune keeps a pickled exception with the traceback of many processes; a table row needs one line.
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


class _Asked(Searcher):
    """The study as a searcher of Tune: it suggests settings and records how trials end. All state is in the study."""

    def __init__(self, study: optuna.Study, config: SweepConfig, settings: Callable[[Trial], dict[str, Any]], num_workers: int) -> None:
        super().__init__()
        self.study, self.config, self.settings, self.num_workers = study, config, settings, num_workers
        self.again = sweeps.left_running(study, config)
        self.running: dict[str, tuple[Trial, dict[str, Any]]] = {}
        self.stopped: dict[str, str] = {}
        self.deaths: Counter[int] = Counter()  # of the drivers of a trial

    def missing(self) -> int:
        return self.config.trials - sum(sweeps.counts(self.study)[name] for name in ("done", "stopped", "failed"))

    def suggest(self, trial_id: str) -> Any:
        """A trial's settings; None while a running trial may have to be repeated; then `FINISHED`."""
        trial = self.again.pop(0) if self.again else sweeps.ask(self.study, self.config)
        if trial is None:
            return None if self.running else Searcher.FINISHED
        settings = self.settings(trial)
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
        if error and not failed.exists():  # the trial did not fail: its driver's process or node died
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
        if stopped is not None:  # epochs that ran until the trial could be stopped do not count
            history = history[: result["epoch"]] if result and "epoch" in result else history
            trackers.stopped(folder, from_json(TrackConfig, settings["track"]), history)
        sweeps.tell(self.study, trial, history, folder=settings["folder"], stopped=stopped, workers=self.num_workers)
        failed.unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the study is on disk."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its arguments into its scratch folder, which is never read


class _Stops(FIFOScheduler):
    """Runs trials in the study's order and stops each when the study says so."""

    def __init__(self, asked: _Asked) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked = asked

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if self.asked.stops(trial.trial_id, result) else TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Watched(tune.Callback):
    """Report the progress of the study, at most once a second."""

    def __init__(self, watch: Callable[[], None]) -> None:
        self.watch, self.told = watch, 0.0

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if time.monotonic() - self.told >= 1:
            self.watch()
            self.told = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _finish(study: optuna.Study, out: Path, *, data: Path, model: ModelConfig, train: TrainConfig, retrain: int, fit: Fit) -> Sweep:
    """Write the results, train the best settings again with other seeds, and write the report."""
    sweeps.tidy(out)
    sweeps.write_trials(study, out / "trials.parquet")
    best = sweeps.best(study)
    source = Path(best.params.get(DATA, str(data)))
    ours, how = spaces.override(model, train, best.params)
    defaults = spaces.flat(ModelConfig(), TrainConfig())
    overrides: dict[str, Value] = {name: value for name, value in spaces.flat(ours, how).items() if value != defaults[name]}
    more: dict[str, Any] = {}
    if retrain:
        more["retrained"] = again = _retrained(source, out / "retrained", ours, how, retrain, fit=fit)
        shown = {"scores": again["accuracy"], "mean": again["mean"], "spread": again["standard_deviation"]}
        study.set_user_attr("retrained", {"metric": "development accuracy", **shown})
    sweeps.write_best(out, study, overrides, data=str(source), more=more)
    page = report(study)
    replace_file(out / "report.html", lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return Sweep(study=study, best=sweeps.read_best(out))


def _retrained(data: Path, out: Path, model: ModelConfig, train: TrainConfig, number: int, *, fit: Fit) -> dict[str, Any]:
    """Development accuracy of the same settings with seeds that the sweep has not used."""
    seeds = range(train.seed + 1, train.seed + 1 + number)
    found = [fit(data, out / f"seed-{seed}", model, dataclasses.replace(train, seed=seed)).best["accuracy"] for seed in seeds]
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    return {"seeds": list(seeds), "accuracy": found, "mean": statistics.mean(found), "standard_deviation": spread}
