"""Trackers: settings and metrics of a run in TensorBoard, and on request in MLflow and Weights & Biases.

Only rank 0 reports, from history.jsonl, each epoch once. A run that resumes continues its MLflow and W&B runs, whose ids are in run.json.
A tracker that was unavailable, or was added later, receives the epochs that it missed. Each tracker has its own thread: a slow or missing
server delays no training and ends none, and is reported once. No path of this machine is sent.

run.json, in a run's folder:
  id, name          of the run; the id is drawn when the folder is created
  mlflow            run_id, experiment
  wandb             id (the run's own), project, epochs (sent so far)
"""

from __future__ import annotations

import importlib.util
import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from han.config import TrackConfig, read_json
from han.storage import write_json
from han.types import UserError

logger = logging.getLogger(__name__)

CLOSE_S = 60.0  # time for a tracker to receive the rest at the end of a training
_OF_DEVELOPMENT = ("accuracy", "f1", "auc", "log_loss", "brier", "expected_calibration_error", "temperature")
_OF_TRAINING = {"train_loss": "train/loss", "reviews_per_s": "train/reviews_per_s", "train_s": "train/seconds"}
_FIRST = f"development/{_OF_DEVELOPMENT[0]}"  # the metric that tells which epochs MLflow has
_STOPPED = ".stopped"  # in a run's folder: a sweep stopped this run
_notes = threading.Lock()


def claim(out: Path, config: TrackConfig) -> None:
    """Give the run in `out` an id, once. A tracker that is not installed is a `UserError`, before any training."""
    for package, wanted in (("mlflow", config.mlflow), ("wandb", config.wandb)):
        if wanted is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"--track.{package} {wanted} needs the package {package}: pip install 'han-on-ray[{package}]', or leave it out")
    (out / _STOPPED).unlink(missing_ok=True)
    if not (out / "run.json").exists():
        _note(out, {"id": secrets.token_hex(6), "name": config.name or out.name})


def link(out: Path) -> dict[str, Any]:
    """The run of an artifact: ids and names, without addresses or paths."""
    run = read_json(out / "run.json")
    return run | ({"wandb": {name: run["wandb"][name] for name in ("project", "id")}} if "wandb" in run else {})


def stopped(out: Path, config: TrackConfig, history: Sequence[dict[str, Any]]) -> None:
    """Tell MLflow that a sweep stopped the run early, and at which epoch. W&B notices by itself."""
    run = read_json(out / "run.json") if (out / "run.json").exists() else {}
    if config.mlflow is not None and "mlflow" in run:
        (out / _STOPPED).touch()  # before MLflow is told: a worker that still runs may end its run after this
        try:
            known = _Mlflow(out, config, {}, uri=config.mlflow)
            known.log(history)
            known.client.set_terminated(known.run_id, "KILLED")
        except Exception as error:
            _warn("MLflow", error)


def figures(line: dict[str, Any]) -> dict[str, float]:
    """A line of history under the metric names of trackers. Values that are not finite are left out."""
    named = {f"development/{name}": line.get(name) for name in _OF_DEVELOPMENT}
    named |= {ours: line.get(theirs) for theirs, ours in _OF_TRAINING.items()}
    return {name: float(value) for name, value in named.items() if value is not None and math.isfinite(value)}


class Trackers:
    """All trackers of one run, used by one process."""

    def __init__(self, out: Path, config: TrackConfig, settings: dict[str, Any], history: Sequence[dict[str, Any]]) -> None:
        """settings: of the run, nested; history: epochs before a resumed run; out has a run.json."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only one worker writes

        self.board: Any = SummaryWriter(str(out / "tensorboard"))
        flat = flatten(settings)
        self.others = [
            *([_TrackerThread("MLflow", partial(_Mlflow, out, config, flat, uri=config.mlflow))] if config.mlflow is not None else []),
            *(
                [_TrackerThread("Weights & Biases", partial(_Wandb, out, config, flat, project=config.wandb))]
                if config.wandb is not None
                else []
            ),
        ]
        self._send(history)  # the run is visible before its first epoch

    def step(self, loss: float, num_reviews: int) -> None:
        """Within an epoch, for TensorBoard only: the loss so far, and the reviews seen since the first epoch."""
        self.board.add_scalar("train/loss_within_epoch", loss, num_reviews)

    def epoch(self, history: Sequence[dict[str, Any]]) -> None:
        """Report a finished epoch: the last line of `history`."""
        for name, value in figures(history[-1]).items():
            self.board.add_scalar(name, value, history[-1]["epoch"])
        self.board.flush()
        self._send(history)

    def _send(self, history: Sequence[dict[str, Any]]) -> None:
        for other in self.others:
            other.lines.put(list(history))

    def close(self) -> None:
        """End the run. Waits for the trackers, each at most `CLOSE_S`."""
        self.board.close()
        for other in self.others:
            other.lines.put(None)
        for other in self.others:
            other.join(CLOSE_S)
            if other.is_alive():
                logger.warning("%s has not taken all figures after %.0f s: history.jsonl has them", other.name, CLOSE_S)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `model.dropout: 0.4`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


class _Tracker(Protocol):
    def log(self, history: Sequence[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...


class _TrackerThread(threading.Thread):
    """A thread that reports to one tracker, and retries at every epoch while the tracker is unavailable."""

    def __init__(self, name: str, start: Callable[[], _Tracker]) -> None:
        super().__init__(name=name, daemon=True)
        self.begin, self.lines = start, queue.SimpleQueue[list[dict[str, Any]] | None]()
        self.start()

    def run(self) -> None:
        tracker: _Tracker | None = None
        warned = False
        history: list[dict[str, Any]] | None = []
        while history is not None:
            history = self.lines.get()
            try:
                if history is None:
                    tracker.close() if tracker else None
                else:
                    tracker = tracker or self.begin()
                    tracker.log(history)
            except Exception as error:  # any error of a tracker's library: it must not end the training
                if not warned:
                    _warn(self.name, error)
                warned = True


class _Mlflow:
    """A run of an MLflow server, or of an SQLite file."""

    def __init__(self, out: Path, config: TrackConfig, settings: dict[str, Any], *, uri: str) -> None:
        from mlflow.entities import Param

        self.out, self.client = out, _mlflow_client(uri)
        run = read_json(out / "run.json")
        self.run_id = run.get("mlflow", {}).get("run_id")
        if self.run_id is not None and self._has_run():
            self.client.update_run(self.run_id, status="RUNNING")
            self.logged = {metric.step for metric in self.client.get_metric_history(self.run_id, _FIRST)}
            return
        tags = {"run": run["id"], **({"group": config.group} if config.group is not None else {})}
        self.run_id = self.client.create_run(self._experiment(config.experiment), run_name=run["name"], tags=tags).info.run_id
        self.client.log_batch(self.run_id, params=[Param(name, str(value)) for name, value in settings.items()])
        self.logged = set()
        _note(out, {"mlflow": {"run_id": self.run_id, "experiment": config.experiment}})

    def _has_run(self) -> bool:
        """Whether this server has the run: a run may resume with another server."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(self.run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException:  # another run created it first
                experiment = self.client.get_experiment_by_name(name)
        return str(experiment.experiment_id)

    def log(self, history: Sequence[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        for line in history:
            if line["epoch"] not in self.logged:
                now = int(time.time() * 1000)
                self.client.log_batch(self.run_id, [Metric(name, value, now, line["epoch"]) for name, value in figures(line).items()])
                self.logged.add(line["epoch"])

    def close(self) -> None:
        self.client.set_terminated(self.run_id)
        if (self.out / _STOPPED).exists():  # looked at afterwards: whoever comes second leaves "KILLED"
            self.client.set_terminated(self.run_id, "KILLED")


def _mlflow_client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


class _Wandb:
    """A run of Weights & Biases, online or for `wandb sync`. It sends nothing about the machine, the code or the command line."""

    def __init__(self, out: Path, config: TrackConfig, settings: dict[str, Any], *, project: str) -> None:
        import wandb

        entity, _, name = project.rpartition("/")
        run = read_json(out / "run.json")
        self.out, self.note = out, {"project": project, "id": run["id"], "epochs": 0}
        if run.get("wandb", {}).get("project") == project:
            self.note = run["wandb"]
        if config.wandb_offline:
            _wait_for_another_second(out / "wandb")
        self.run = wandb.init(
            project=name,
            entity=entity or None,
            id=self.note["id"],
            name=run["name"],
            group=config.group,
            config=settings,
            dir=str(out),
            mode="offline" if config.wandb_offline else "online",
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                host="",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self.logged = max(self.note["epochs"], self.run.starting_step - 1)

    def log(self, history: Sequence[dict[str, Any]]) -> None:
        for line in history:
            if line["epoch"] > self.logged:
                self.run.log(figures(line), step=line["epoch"])
                self.logged = line["epoch"]
        _note(self.out, {"wandb": self.note | {"epochs": self.logged}})

    def close(self) -> None:
        self.run.finish()


def _wait_for_another_second(runs: Path) -> None:
    """W&B names the folder of an offline run by its second: a run that resumes within it would replace what is there."""
    newest = max((int(run.stat().st_mtime) for run in runs.glob("offline-run-*")), default=0)
    while 0 <= time.time() - newest < 1:
        time.sleep(0.05)


def _warn(name: str, error: Exception) -> None:
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    logger.warning("%s cannot record this run (%s: %s): training continues, history.jsonl has all", name, type(error).__name__, reason)


def _note(out: Path, values: dict[str, Any]) -> None:
    """Add values to run.json."""
    with _notes:
        path = out / "run.json"
        write_json(path, (read_json(path) if path.exists() else {}) | values)
