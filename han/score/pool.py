"""A pool of Scorers over an input's shards: the one way by which many reviews are scored, for files and for figures alike.

A shard is the unit: one actor reads it, scores it, gives it to its sink and hands back a small record, so the driver never holds reviews.
An actor that dies is started anew by Ray Data and begins its shard again, as often as `Attempts` allows.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from han.cluster.datasets import configure_ray_data
from han.config import ColumnsConfig, ScoreConfig
from han.data import sources
from han.data.files import BadReason, BadRecord, excerpt, without
from han.data.sources import Batch, Shard
from han.model import artifact
from han.score.retries import ALONE_TRIES, BATCH_DEATHS, Attempts
from han.score.scorer import Scored, Scorer
from han.types import Mistake

log = logging.getLogger(__name__)

_BATCH_ROWS = 1024  # scored together: enough for batches of like length; with word attention about 4 MB
_ALONE_SHARE = 5  # a record on its own has a fifth of the time of a batch
_POLL_S = 0.5


class Asked(Protocol):
    """What answers: a `Scorer`, or something that passes the texts on to one."""

    labels: tuple[str, ...]
    fingerprint: str

    def score_flat(self, texts: Sequence[str]) -> Scored:
        """As `Scorer.score_flat`."""


class Sink(Protocol):
    """What becomes of one shard's answers."""

    @property
    def attempts(self) -> Attempts | None:
        """Where a worker writes down what it is at; None: a record that fails fails the run."""

    def add(self, batch: Batch, reviews: pa.Table, scored: Scored) -> None:
        """Take some records of the shard; `scored` is of the rows of `reviews`, which `sources.reviews` made of the batch."""

    def set_aside(self, bad: BadRecord) -> None:
        """Take a record that was lost with its file."""

    def close(self) -> tuple[dict[str, Any], bytes | None]:
        """The shard's record, as JSON, and any bytes that are to reach the driver."""


class Report(Protocol):
    def __call__(self, what: str, done: int, total: int, *, exact: bool = True) -> None:
        """Rows done and rows in all: 0 where nobody knows yet, an estimate unless `exact`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A shard to score."""

    name: str
    shard: Shard
    num_rows: int | None  # records that count, from the shard's first on; None: all

    @property
    def known_rows(self) -> int | None:
        """Records, where that is known before they are read."""
        if self.num_rows is None and self.shard.kind in ("parquet", "folder", "texts"):
            return self.shard.stop - self.shard.start
        return self.num_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What every actor knows."""

    model: str  # as `artifact.find` takes it
    fingerprint: str  # of that model; a node with another one under the same name is found out
    columns: ColumnsConfig
    labelled: bool  # whether labels are read
    config: ScoreConfig
    sink: Callable[[Item, tuple[str, ...]], Sink]  # called with the item and the model's labels
    ask: Callable[[Task], Asked]  # called once in every actor; `local_scorer` loads the model there
    cpus: float  # of an actor
    goes_on: bool  # where a file breaks off: whether what is left of it is set aside


def local_scorer(task: Task) -> Asked:
    """The model, in this process."""
    torch.set_num_threads(1)
    loaded = artifact.load(artifact.find(task.model))
    return Scorer(loaded, device="cuda" if task.config.gpu else "cpu", batch_tokens=task.config.batch_tokens)


def run(items: Sequence[Item], task: Task, report: Report) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """What the sinks of all items closed with, as they come. A `Mistake`, or a disk's OSError, stops every actor before it is raised."""
    if not items:
        return
    configure_ray_data(preserve_order=False)
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_actors = min(len(items), task.config.num_actors or num_cpus)
    # On the driver's node: on another it would die with that node, and every worker with it. Workers are started again, it is not.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    counter = ray.remote(num_cpus=0, label_selector=here)(_Counter).remote()
    dataset = ray.data.from_items([{"item": index} for index in range(len(items))], override_num_blocks=len(items)).map_batches(
        _Worker,
        fn_constructor_args=(list(items), task, counter),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=min(num_actors, num_cpus), max_size=num_actors),
        num_cpus=task.cpus,
        num_gpus=1 if task.config.gpu else None,
    )
    failure: Exception | None = None
    with _watched(counter, items, report):
        for row in dataset.iter_rows():
            record = json.loads(row["record"])
            if "mistake" in record:
                failure = Mistake(record["mistake"])
            elif "errno" in record:
                failure = OSError(record["errno"], record["why"], record["part"])
            elif "stopped" not in record:
                yield record, row["content"]
    if failure:
        raise failure


def first(batches: Iterable[Batch], num_rows: int | None) -> Iterator[Batch]:
    """The batches up to the first `num_rows` records, bad ones among them; None is all."""
    for batch in batches:
        rows = np.sort(np.concatenate([batch.rows, [bad.row for bad in batch.bad]]))
        if num_rows is not None and len(rows) >= num_rows:
            last = rows[num_rows - 1] if num_rows else -1
            size = int(np.searchsorted(batch.rows, last, side="right"))
            yield _slice(batch, 0, size, bad=tuple(bad for bad in batch.bad if bad.row <= last))
            return
        num_rows = None if num_rows is None else num_rows - len(rows)
        yield batch


def _slice(batch: Batch, start: int, size: int, *, bad: tuple[BadRecord, ...]) -> Batch:
    end = start + size
    offsets = None if batch.byte_offsets is None else batch.byte_offsets[start:end]
    return Batch(table=batch.table.slice(start, size), rows=batch.rows[start:end], byte_offsets=offsets, bad=bad)


class _Worker:
    """What an actor of the pool runs: it loads the model once, then scores a shard at a time."""

    def __init__(self, items: list[Item], task: Task, counter: Any) -> None:
        self._items, self._task, self._counter = items, task, counter
        self._asked = task.ask(task)
        ray.get(counter.ready.remote())

    def __call__(self, batch: pa.Table) -> pa.Table:
        item = self._items[batch["item"][0].as_py()]
        try:
            record, content = self._score(item)
        except Mistake as mistake:
            record, content = {"mistake": str(mistake)}, None
        except OSError as error:
            if error.errno is None:
                raise
            record, content = {"errno": error.errno, "why": error.strerror or str(error), "part": item.name}, None
        if "mistake" in record or "errno" in record:
            ray.get(self._counter.stop.remote())
        return pa.table({"record": [json.dumps(record)], "content": pa.array([content], pa.binary())})

    def _score(self, item: Item) -> tuple[dict[str, Any], bytes | None]:
        if not self._goes_on(item, 0):
            return {"stopped": item.name}, None
        if self._asked.fingerprint != self._task.fingerprint:
            found, wanted = self._asked.fingerprint, self._task.fingerprint
            raise Mistake(f"a node has {found} as {self._task.model}, not {wanted}: put one model on all nodes")
        sink = self._task.sink(item, self._asked.labels)
        num_rows = 0
        for batch in self._batches(item, sink):
            for piece, reviews, scored in self._scored(batch, item.shard, sink.attempts):
                sink.add(piece, reviews, scored)
            num_rows += len(batch.rows) + len(batch.bad)
            if not self._goes_on(item, num_rows):
                if sink.attempts:
                    sink.attempts.over()
                return {"stopped": item.name}, None
        if sink.attempts:
            sink.attempts.over()
        closed = sink.close()
        ray.get(self._counter.finish.remote(item.name))
        return closed

    def _batches(self, item: Item, sink: Sink) -> Iterator[Batch]:
        """The item's records; what is lost where its file breaks off goes to the sink, if that is to be survived."""
        shard = item.shard
        batches = first(sources.read(shard, self._task.columns, batch_rows=_BATCH_ROWS), item.num_rows)
        next_row = shard.first_row
        while True:
            if sink.attempts:
                sink.attempts.reading(next_row)
            try:
                batch = next(batches, None)
            except Mistake as mistake:
                if not self._task.goes_on:
                    raise
                end = next_row + 1 if item.known_rows is None else shard.first_row + item.known_rows
                for row in range(next_row, end):
                    sink.set_aside(BadRecord(row=row, byte_offset=None, reason="unreadable", excerpt=excerpt(str(mistake))))
                return
            if batch is None:
                return
            next_row = 1 + max([*batch.rows[-1:].tolist(), *(bad.row for bad in batch.bad[-1:])])
            yield batch

    def _scored(self, batch: Batch, shard: Shard, attempts: Attempts | None) -> Iterator[tuple[Batch, pa.Table, Scored]]:
        """The batch's answers, in one piece unless something is wrong with it: then without the records that end or fail their worker."""
        deaths = failures = 0
        if attempts and len(batch.rows):
            first_row, last_row = int(batch.rows[0]), int(batch.rows[-1])
            deaths, failures = attempts.deaths(first_row, last_row), attempts.failures(first_row, last_row)
        answer = None if deaths or failures else self._answer(batch, shard, attempts, is_last_try=attempts is None)
        if answer:
            yield answer
            return
        batch = without(batch, self._guilty(batch, shard, attempts))
        size = len(batch.rows) if 0 < deaths < BATCH_DEATHS and not failures else 1
        for start in range(0, max(len(batch.rows), 1), max(size, 1)):
            piece = _slice(batch, start, size, bad=() if start else batch.bad)
            answer = self._answer(piece, shard, attempts, is_last_try=True)
            if answer:
                yield answer

    def _answer(self, batch: Batch, shard: Shard, attempts: Attempts | None, *, is_last_try: bool) -> tuple[Batch, pa.Table, Scored] | None:
        """A batch, its reviews, their answers; None where scoring them raised and that is not the last word."""
        reviews = sources.reviews(batch, shard, self._task.columns, labelled=self._task.labelled)
        limit_s = self._task.config.stall_s if len(batch.rows) > 1 else self._task.config.stall_s / _ALONE_SHARE
        try:
            with _at(attempts, batch, limit_s):
                return batch, reviews, self._asked.score_flat(reviews["text"].to_pylist())
        except (Mistake, OSError):
            raise
        except Exception as error:
            if is_last_try:
                raise
            log.warning("%s, rows %s: %s", shard.path, batch.rows[:1], type(error).__name__)
            if attempts and len(batch.rows):
                attempts.failed(int(batch.rows[0]), int(batch.rows[-1]))
            return None

    def _guilty(self, batch: Batch, shard: Shard, attempts: Attempts | None) -> dict[int, BadRecord]:
        """The records that may not be scored, by their place in the batch: each is tried on its own, some for the last time."""
        guilty: dict[int, BadRecord] = {}
        for place, row in enumerate(batch.rows.tolist()):
            alone = _slice(batch, place, 1, bad=())
            tried = attempts.deaths(row, row) + attempts.failures(row, row) if attempts else 0
            if not any(self._answer(alone, shard, attempts, is_last_try=False) for _ in range(ALONE_TRIES - tried)):
                reason: BadReason = "failed" if attempts is None or attempts.failures(row, row) else "poison"
                offset = None if batch.byte_offsets is None else int(batch.byte_offsets[place])
                text = excerpt(alone.table[self._task.columns.text][0].as_py())
                guilty[place] = BadRecord(row=row, byte_offset=offset, reason=reason, excerpt=text)
        return guilty

    def _goes_on(self, item: Item, num_rows: int) -> bool:
        return bool(ray.get(self._counter.now.remote(item.name, num_rows)))


@contextmanager
def _at(attempts: Attempts | None, batch: Batch, limit_s: float) -> Iterator[None]:
    """While the body runs, it is on disk what it is at, and a watch that needs no Python ends this process once it takes too long."""
    if attempts and len(batch.rows):
        attempts.scoring(int(batch.rows[0]), int(batch.rows[-1]))
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class _Counter:
    """An actor that knows what all others have done so far, and whether they are to go on."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}  # of each item that was begun, since its last beginning
        self._finished: set[str] = set()
        self._is_ready, self._goes_on = False, True

    def ready(self) -> None:
        self._is_ready = True

    def now(self, name: str, num_rows: int) -> bool:
        self._rows[name] = num_rows
        return self._goes_on

    def finish(self, name: str) -> None:
        self._finished.add(name)

    def stop(self) -> None:
        self._goes_on = False

    def progress(self) -> tuple[int, int, int] | None:
        """Rows done, rows of the finished items, finished items; None before the first worker is ready."""
        if not self._is_ready:
            return None
        return sum(self._rows.values()), sum(self._rows[name] for name in self._finished), len(self._finished)


@contextmanager
def _watched(counter: Any, items: Sequence[Item], report: Report) -> Iterator[None]:
    """Report rows done and rows in all while the body runs, from the first actor's readiness on."""
    sizes = [item.known_rows for item in items]
    known = None if None in sizes else sum(size or 0 for size in sizes)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            progress = ray.get(counter.progress.remote())
            if progress is not None:
                done, rows, finished = progress
                total = rows * len(items) // finished if known is None and finished else known or 0
                if done < total or not total:
                    report("scored", done, total, exact=known is not None)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    progress = ray.get(counter.progress.remote())
    done = progress[0] if progress else 0
    report("scored", done, done)
