"""Ray Train: `fit` trains a HAN on an encoded folder with any number of workers and writes an artifact.

A run folder:
  config.json      the request; another request on the same folder is refused
  checkpoints/     Ray Train's checkpoints, one for each epoch, the last two kept; each is enough to resume
  history.jsonl    one line for each epoch
  diverged.json    epoch and step of the first loss or gradient that was not finite, if any; such a run has no artifact
  run.json         its id, and the ids that trackers assigned (see `track`)
  tensorboard/     the history, and the loss within epochs
  stages/          results of the stages of semi-supervised training (see `semi_supervised`)
  artifact/        the model of the best epoch; written last
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.execution import context as reporting  # its logger has no public name
from safetensors.torch import load_file, save_file
from torch import Tensor

from han.cluster.metrics import Training, waited
from han.config import (
    ModelConfig,
    SemiSupervisedConfig,
    TrackConfig,
    TrainConfig,
    as_json,
    differences,
    from_json,
    read_json,
    without_settings,
)
from han.model import artifact, metrics
from han.model.metrics import best_epoch
from han.model.network import HAN
from han.model.ngrams import NgramTables
from han.storage import replace_file, write_json
from han.train.encoded import EncodedFolder, read_encoded, read_windows, windows
from han.train.learn import Learner, NotFinite, Seen, batches, read_soft_labels
from han.train.ngrams import NgramModel
from han.train.semi_supervised import Start, summary, teach
from han.train.track import Trackers, claim, link
from han.types import UserError

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0
DIVERGED = "diverged.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run."""

    artifact: Path
    best: dict[str, Any]  # the best epoch's line of history
    history: list[dict[str, Any]]


def fit(
    data: Path,
    out: Path,
    model: ModelConfig,
    train: TrainConfig,
    *,
    track: TrackConfig | None = None,
    callbacks: Sequence[UserCallback] = (),
    recipe: SemiSupervisedConfig | None = None,
    start: Start | None = None,
) -> Run:
    """Train on the encoded folder `data`, validate each epoch on its development split, and keep the best epoch's network.

    recipe: settings of semi-supervised training; start: files to start from, None for random weights and no n-grams. The same call resumes
    a killed run and returns a finished one. Paths are absolute, on storage of all nodes. track: trackers beside TensorBoard, None for none;
    they may change when a run resumes. callbacks: of Ray Train, called for every epoch. Raises `UserError` if the cluster is too small or
    `out` holds another run.
    """
    folder = read_encoded(data)
    track = track or TrackConfig()
    request: dict[str, Any] = {"data": str(data), "encoding": folder.fingerprint, "data_fingerprint": folder.data_fingerprint}
    request |= {"model": as_json(model), "train": as_json(train)}
    recipe = recipe or SemiSupervisedConfig()
    if train.semi_supervised:
        request["semi_supervised"] = as_json(recipe)
    if start is not None:
        request["start"] = dataclasses.asdict(start)
    if _finished(out, request):
        return read_run(out)
    _check_cluster(train)
    if train.soft_labels is not None:
        _check_soft_labels(folder, Path(train.soft_labels))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", request)
    (out / DIVERGED).unlink(missing_ok=True)
    claim(out, track)
    stages = Path(recipe.stages) if recipe.stages is not None else out / "stages"
    if train.semi_supervised:
        student = teach(folder, stages, model, train, recipe, fit=fit)
        model, train, start = student.model, student.train, student.start
        request |= {"model": as_json(model), "train": as_json(train), "start": dataclasses.asdict(start)}
    resources = {"CPU": float(train.cpus_per_worker)} | ({"GPU": 1.0} if train.gpu else {})
    TorchTrainer(
        work,
        train_loop_config=request | {"out": str(out), "track": as_json(track)},
        scaling_config=ScalingConfig(num_workers=train.num_workers, use_gpu=train.gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if train.gpu else "gloo"),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(out),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),  # type: ignore[arg-type]  # as below
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # mypy sees the class of Train V1
        ),
    ).fit()
    if (out / DIVERGED).exists():
        raise UserError(read_json(out / DIVERGED)["message"])
    _write_artifact(out, folder, model, start, summary(stages) if train.soft_labels == str(stages / "soft-labels.parquet") else None)
    return read_run(out)


def read_run(out: Path) -> Run:
    """The result of a finished run, from its folder."""
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return Run(artifact=out / "artifact", best=history[best_epoch(history)], history=history)


def work(request: dict[str, Any]) -> None:
    """The training function of every worker. Reports one checkpoint for each epoch, at the same moment on all workers."""
    # These loggers repeat every report. LoggingConfig does not reach them, and the second is named by the path of its file.
    for repeating in (logging.getLogger("ray.train"), reporting.logger):
        repeating.setLevel(logging.WARNING)
    train = from_json(TrainConfig, request["train"])
    folder = read_encoded(Path(request["data"]))
    out = Path(request["out"])
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(train.cpus_per_worker)
    torch.manual_seed(train.seed)  # the same first weights on every worker
    start = Start(**request["start"]) if "start" in request else None
    ngrams = _tables(start)
    soft = read_soft_labels(Path(train.soft_labels), folder.labels) if train.soft_labels is not None else None
    split = "train" if soft is None else "train+unlabelled"
    network = build(folder, from_json(ModelConfig, request["model"]), start, ngrams)
    learner = Learner(network, train, num_reviews=folder.num_reviews(split), device=get_device())
    history, best = _resume(learner, out)
    journal = _Journal(out, folder.num_reviews(split), train.epochs, _trackers(request, folder, history)) if rank == 0 else None
    batch_tokens = max(1, train.batch_tokens // num_workers)
    epochs = range(len(history) + 1, train.epochs + 1)
    passes = [a_pass for epoch in epochs for a_pass in ((split, _seed(train.seed, epoch)), ("development", None))]
    tables = (waited(share, str(out), rank=rank) for share in windows(folder, passes, rank=rank, num_workers=num_workers))
    for epoch in epochs:
        if len(history) - (best_epoch(history) if history else 0) > train.patience:
            break
        started = time.monotonic()
        steps = _Steps(journal.step(epoch) if journal else lambda seen: None)
        try:
            order = np.random.default_rng([_seed(train.seed, epoch), rank])
            shared = np.random.default_rng(_seed(train.seed, epoch)) if num_workers > 1 else None
            seen = learner.train_epoch(
                batches(next(tables), batch_tokens, order, shared=shared, ngrams=ngrams, soft=soft),
                seed=_seed(train.seed, epoch, rank),
                report=steps,
            )
            train_s = time.monotonic() - started
            logits, labels = learner.evaluate(batches(next(tables), batch_tokens, None))
            if not np.isfinite(logits).all():
                raise NotFinite("logits on the development split", seen.learning_rate)
        except NotFinite as error:  # on every worker at the same step: a retry would diverge again
            if rank == 0:
                write_json(out / DIVERGED, {"epoch": epoch, "step": steps.number, "message": _diverged(error, epoch, steps.number)})
            break
        line = _line(epoch, seen, train_s, logits, labels, folder.labels, train.coverage)
        history.append(line)
        if best_epoch(history) == len(history) - 1:
            best = {f"best.{name}": value.detach().cpu().clone() for name, value in network.state_dict().items()}
        if journal:
            journal.epoch(history)
        _checkpoint(learner.state() | best, history, rank)
    if journal:
        journal.trackers.close()


class _Steps:
    """Counts the steps of an epoch and passes each report on."""

    def __init__(self, report: Callable[[Seen], None]) -> None:
        self.number, self.report = 1, report  # number: of the step in progress, from 1

    def __call__(self, seen: Seen) -> None:
        self.number += 1
        self.report(seen)


def _diverged(error: NotFinite, epoch: int, step: int) -> str:
    """One line for the user: where the training diverged and what to try."""
    last = f"the last checkpoint is of epoch {epoch - 1}" if epoch > 1 else "there is no checkpoint yet"
    return (
        f"training diverged: the {error.quantity} is not finite at epoch {epoch}, step {step}, learning rate {error.learning_rate:g} "
        f"({last}): start a new run with a lower --train.learning-rate, or with a lower --train.clip-norm"
    )


def build(folder: EncodedFolder, model: ModelConfig, start: Start | None, ngrams: NgramTables | None) -> HAN:
    """A new network for an encoded folder: its embedding has the folder's vectors, and `start` gives other weights."""
    num_words, embedding_size = folder.vectors.shape
    table = ngrams.whole if ngrams is not None else None
    network = HAN(model, num_words=num_words, embedding_size=embedding_size, num_classes=len(folder.labels), ngrams=table)
    network.embedding.weight.data.copy_(torch.from_numpy(folder.vectors))
    if start is not None:
        network.load_state_dict(load_file(start.weights), strict=False)
    return network


def _tables(start: Start | None) -> NgramTables | None:
    return NgramModel.read(Path(start.ngrams)).tables() if start is not None and start.reads_ngrams else None


def _line(epoch: int, seen: Seen, train_s: float, logits: Any, labels: Any, names: tuple[str, ...], coverage: float) -> dict[str, Any]:
    """One line of history. Development metrics use the logits after the temperature that was fitted on them."""
    temperature = metrics.fit_temperature(logits, labels)
    probabilities = metrics.softmax(logits / temperature)
    figures = metrics.measure(probabilities, labels, label_names=names)
    chosen = {"temperature": temperature, "uncertain_below": float(np.quantile(probabilities.max(axis=1), 1 - coverage))}
    learnt = {"train_loss": seen.loss, "reviews_per_s": seen.num_reviews / train_s, "train_s": train_s}
    return {"epoch": epoch, **figures, **chosen, **learnt}


def _checkpoint(tensors: dict[str, Tensor], history: list[dict[str, Any]], rank: int) -> None:
    """Report to Ray Train. This is a barrier: every worker must call it. Rank 0 brings the files."""
    line = history[-1]
    if rank != 0:
        ray.train.report(line)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / "state.safetensors")
        (Path(folder) / "history.json").write_text(json.dumps(history))
        ray.train.report(line, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=f"epoch-{line['epoch']:03d}")


def _resume(learner: Learner, out: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return [], {}
    with checkpoint.as_directory() as folder:
        tensors = load_file(Path(folder) / "state.safetensors")
        history = json.loads((Path(folder) / "history.json").read_text())
    best = {name: value for name, value in tensors.items() if name.startswith("best.")}
    learner.load_state({name: value for name, value in tensors.items() if name not in best})
    return history, best


def _trackers(request: dict[str, Any], folder: EncodedFolder, history: list[dict[str, Any]]) -> Trackers:
    settings = {name: request[name] for name in ("model", "train", "encoding", "data_fingerprint")} | {"counts": folder.counts}
    return Trackers(Path(request["out"]), from_json(TrackConfig, request["track"]), settings, history)


class _Journal:
    """Rank 0's records: a progress line every few seconds, history.jsonl, the trackers, Prometheus."""

    def __init__(self, out: Path, num_reviews: int, epochs: int, trackers: Trackers) -> None:
        self.out, self.num_reviews, self.epochs, self.trackers = out, num_reviews, epochs, trackers
        self.watched = Training(str(out), num_reviews=num_reviews, epochs=epochs)

    def step(self, epoch: int) -> Callable[[Seen], None]:
        self.watched.seen(epoch, 0)
        first: tuple[float, int] | None = None  # time and reviews of the first step: start-up does not count as training speed
        shown = 0.0

        def report(seen: Seen) -> None:
            nonlocal first, shown
            now = time.monotonic()
            first = first or (now, seen.num_reviews)
            self.trackers.step(seen.loss, (epoch - 1) * self.num_reviews + seen.num_reviews)
            shown = shown or now
            if now - shown < PROGRESS_EVERY_S:
                return
            shown = now
            self.watched.seen(epoch, seen.num_reviews, seen.loss)
            rate = (seen.num_reviews - first[1]) / (now - first[0])
            left_s = (self.num_reviews * (self.epochs - epoch + 1) - seen.num_reviews) / rate
            print(
                f"epoch {epoch}/{self.epochs}  {seen.num_reviews:,}/{self.num_reviews:,} reviews  {rate:,.0f} reviews/s  "
                f"loss {seen.loss:.4f}  at most {int(left_s // 60)}:{int(left_s % 60):02d} left",
                flush=True,
            )

        return report

    def epoch(self, history: list[dict[str, Any]]) -> None:
        line = history[-1]
        self.watched.epoch(line)
        lines = "".join(json.dumps(entry) + "\n" for entry in history)
        replace_file(self.out / "history.jsonl", lambda temporary: temporary.write_text(lines))
        self.trackers.epoch(history)
        print(
            f"epoch {line['epoch']}/{self.epochs}  development accuracy {line['accuracy']:.2%}  log loss {line['log_loss']:.4f}  "
            f"train loss {line['train_loss']:.4f}  {line['reviews_per_s']:,.0f} reviews/s"
            + ("  (best so far)" if best_epoch(history) == len(history) - 1 else ""),
            flush=True,
        )


def _write_artifact(out: Path, folder: EncodedFolder, model: ModelConfig, start: Start | None, stages: dict[str, Any] | None) -> None:
    """Write the best epoch's network. Its temperature is divided into the read-out, so its logits are calibrated."""
    run = json.loads((out / "history.jsonl").read_text().splitlines()[-1])
    history = read_run(out).history
    best = history[best_epoch(history)]
    tensors = load_file(out / "checkpoints" / f"epoch-{run['epoch']:03d}" / "state.safetensors")
    network = build(folder, model, start, _tables(start))
    network.load_state_dict({name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")})
    for parameter in network.read_out.parameters():
        parameter.data /= best["temperature"]
    artifact.save(
        out / "artifact",
        encoder=folder.encoder,
        network=network,
        labels=folder.labels,
        metrics={"development": best, "temperature": best["temperature"], "uncertain_below": best["uncertain_below"]},
        provenance=_provenance(out, folder) | ({"semi_supervised": stages} if stages is not None else {}),
    )


def _provenance(out: Path, folder: EncodedFolder) -> dict[str, Any]:
    """The run and the data of an artifact, by names and fingerprints. Artifacts are shared, so it contains no path of this machine."""
    prepared = as_json(folder.config)
    prepared["vectors"]["source"] = Path(folder.config.vectors.source).name
    request = read_json(out / "config.json")
    recipe = {name: value for name, value in request.get("semi_supervised", {}).items() if name != "stages"}
    return {
        "run": link(out),
        "data": {"name": folder.path.name, "encoding": folder.fingerprint, "fingerprint": folder.data_fingerprint},
        "counts": folder.counts,
        "prepared": prepared,
        "trained": request["train"],
    } | ({"recipe": recipe} if recipe else {})


def _finished(out: Path, request: dict[str, Any]) -> bool:
    existing = without_settings(path.name for path in out.iterdir()) if out.exists() else []
    if not existing:
        return False
    if not (out / "config.json").exists():
        if foreign := [name for name in existing if not name.startswith(".config.json.")]:
            raise UserError(f"--out {out} holds something else ({foreign[0]}): give a new folder")
        return False
    changed = differences(request, read_json(out / "config.json"))
    if changed:
        raise UserError(f"{out} holds a run with other settings ({'; '.join(changed[:3])}): give another --out, or the same settings")
    return (out / "artifact").exists()


def _check_soft_labels(folder: EncodedFolder, path: Path) -> None:
    """Refuse a file that lacks an unlabelled review."""
    known = read_soft_labels(path, folder.labels).rows
    unlabelled = [name for table in read_windows(folder, "unlabelled") for name in table["review_id"].to_pylist()]
    missing = [name for name in unlabelled if name not in known]
    if missing or not unlabelled:
        example = f", as {missing[0]}" if missing else ""
        raise UserError(
            f"{path} has probabilities for {len(unlabelled) - len(missing):,} of the {len(unlabelled):,} unlabelled reviews of "
            f"{folder.path}{example}: score all of them, e.g. with han score"
        )


def _check_cluster(train: TrainConfig) -> None:
    """Refuse a cluster that is too small, because Ray would wait without a message."""
    available = ray.cluster_resources()
    for kind, needed in (("CPU", train.num_workers * train.cpus_per_worker), ("GPU", train.num_workers if train.gpu else 0)):
        if available.get(kind, 0) < needed:
            raise UserError(
                f"{train.num_workers} worker{'s' * (train.num_workers > 1)} need {needed} {kind}s, "
                f"the cluster has {int(available.get(kind, 0))}: "
                f"lower --train.num-workers or --train.cpus-per-worker, or add nodes"
            )


def _seed(*parts: int) -> int:
    """One seed derived from several numbers, independent of nearby ones."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
