"""A pool of actors that score the shards of an input. Batch scoring and evaluation both use it.

An actor reads a shard, scores it, passes the answers to a sink and returns a small record, so the driver never holds reviews. Ray Data
restarts an actor that dies, and the actor begins its shard again, as often as `Attempts` allows.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from han.cluster.datasets import configure_ray_data
from han.config import ColumnsConfig, ScoreConfig
from han.data import sources
from han.data.files import BadReason, BadRecord, InputChanged, excerpt, without
from han.data.sources import Batch, Shard
from han.model import artifact
from han.score.retries import Attempts, BatchState, RecordState, batch_state, record_state
from han.score.scorer import Scored, Scorer
from han.types import EffectDetail, Mistake

log = logging.getLogger(__name__)

BATCH_ROWS = 1024  # records scored in one call: enough to form batches of similar length; with word attention about 4 MB
_SINGLE_SHARE = 5  # a record on its own has a fifth of the time of a batch
_POLL_S = 0.5


class BatchScorer(Protocol):
    """A `Scorer`, or an object that forwards texts to one."""

    labels: tuple[str, ...]
    fingerprint: str

    def score_flat(self, texts: Sequence[str], *, effects: EffectDetail = "none") -> Scored:
        """As `Scorer.score_flat`."""


class Sink(Protocol):
    """Receives the answers of one shard."""

    @property
    def attempts(self) -> Attempts | None:
        """The markers of the shard's worker; None: an error in scoring a record ends the run."""

    def add(self, batch: Batch, reviews: pa.Table, scored: Scored) -> None:
        """Take some records of the shard. `scored` has the answers to `reviews`, which `sources.reviews` made from the batch."""

    def set_aside(self, bad: BadRecord) -> None:
        """Take a record that cannot be read because its file is damaged."""

    def close(self) -> tuple[dict[str, Any], bytes | None]:
        """The shard's record, as JSON, and optional bytes for the driver."""


class Report(Protocol):
    def __call__(self, what: str, done: int, total: int, *, exact: bool = True) -> None:
        """Rows done and total rows: 0 if the total is not known yet, an estimate unless `exact`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A shard to score."""

    name: str
    shard: Shard
    num_rows: int | None  # records to score, from the first of the shard; None: all

    @property
    def known_rows(self) -> int | None:
        """Number of records, None if it is not known before they are read."""
        if self.num_rows is None and self.shard.kind in ("parquet", "folder", "texts"):
            return self.shard.stop - self.shard.start
        return self.num_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The settings of every actor."""

    model: str  # as `artifact.find` takes it
    fingerprint: str  # of that model; an actor that loads another model under this name ends the run
    columns: ColumnsConfig
    labelled: bool  # whether labels are read
    config: ScoreConfig
    sink: Callable[[Item, tuple[str, ...]], Sink]  # called with the item and the model's labels
    make_scorer: Callable[[Task], BatchScorer]  # called once in every actor; `local_scorer` loads the model there
    cpus: float  # of an actor
    survives_broken_files: bool  # whether the rest of a file that cannot be read is quarantined, or ends the run
    effects: EffectDetail = "none"


def local_scorer(task: Task) -> BatchScorer:
    """The model, loaded in this process."""
    torch.set_num_threads(1)
    loaded = artifact.load(artifact.find(task.model))
    return Scorer(loaded, device="cuda" if task.config.gpu else "cpu", batch_tokens=task.config.batch_tokens)


def run(items: Sequence[Item], task: Task, report: Report) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """Yield what the sinks of all items return when they are closed. An actor's `Mistake` or OSError stops all actors and is raised."""
    if not items:
        return
    configure_ray_data(preserve_order=False)
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_actors = min(len(items), task.config.num_actors or num_cpus)
    # On the driver's node: on another node it would die with that node, and all workers with it. Workers are restarted, it is not.
    on_this_node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    coordinator = ray.remote(num_cpus=0, label_selector=on_this_node)(_Coordinator).remote()
    dataset = ray.data.from_items([{"item": index} for index in range(len(items))], override_num_blocks=len(items)).map_batches(
        _Worker,
        fn_constructor_args=([ray.put(item) for item in items], task, coordinator),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=min(num_actors, num_cpus), max_size=num_actors),
        num_cpus=task.cpus,
        num_gpus=1 if task.config.gpu else None,
    )
    with _watched(coordinator, items, report):
        for row in dataset.iter_rows():
            yield json.loads(row["record"]), row["content"]
    failure = cast(Exception | None, ray.get(cast(Any, coordinator).failure.remote()))
    if failure is not None:
        raise failure


def first(batches: Iterable[Batch], num_rows: int | None) -> Iterator[Batch]:
    """The batches up to the first `num_rows` records, bad records included; None is all."""
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


_RESULT = pa.schema([("record", pa.string()), ("content", pa.binary())])


class _Worker:
    """An actor of the pool. It loads the model once, then scores one shard at a time."""

    def __init__(self, items: list[Any], task: Task, coordinator: Any) -> None:
        """items: references to the `Item`s, which are large where a shard lists its files."""
        self._items, self._task, self._coordinator = items, task, coordinator
        self._scorer = task.make_scorer(task)
        ray.get(coordinator.ready.remote())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """No row if the run was stopped. The coordinator takes an error to the driver as it is."""
        item: Item = ray.get(self._items[batch["item"][0].as_py()])
        closed = None
        try:
            closed = self._score(item)
        except Mistake as mistake:
            ray.get(self._coordinator.stop.remote(mistake))
        except OSError as error:
            if error.errno is None:
                raise
            ray.get(self._coordinator.stop.remote(OSError(error.errno, error.strerror or str(error), error.filename or item.name)))
        rows = [] if closed is None else [{"record": json.dumps(closed[0]), "content": closed[1]}]
        return pa.Table.from_pylist(rows, schema=_RESULT)

    def _score(self, item: Item) -> tuple[dict[str, Any], bytes | None] | None:
        """What the sink returned; None if the run was stopped."""
        if self._is_stopped(item, 0):
            return None
        if self._scorer.fingerprint != self._task.fingerprint:
            found, wanted = self._scorer.fingerprint, self._task.fingerprint
            raise Mistake(f"a node has {found} as {self._task.model}, not {wanted}: put one model on all nodes")
        sink = self._task.sink(item, self._scorer.labels)
        num_rows = 0
        for batch in self._batches(item, sink):
            for piece, reviews, scored in self._scored(batch, item.shard, sink.attempts):
                sink.add(piece, reviews, scored)
            num_rows += len(batch.rows) + len(batch.bad)
            if self._is_stopped(item, num_rows):
                if sink.attempts:
                    sink.attempts.clear()
                return None
        if sink.attempts:
            sink.attempts.clear()
        closed = sink.close()
        ray.get(self._coordinator.finish.remote(item.name))
        return closed

    def _batches(self, item: Item, sink: Sink) -> Iterator[Batch]:
        """The item's records. If its file cannot be read to the end, the rest goes to the sink as unreadable records, or ends the run."""
        shard = item.shard
        batches = first(sources.read(shard, self._task.columns, batch_rows=BATCH_ROWS), item.num_rows)
        next_row = shard.first_row
        while True:
            if sink.attempts:
                sink.attempts.reading(next_row)
            try:
                batch = next(batches, None)
            except InputChanged:
                raise
            except Mistake as mistake:
                if not self._task.survives_broken_files:
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
        """The batch's answers as its `BatchState` says, without the records that kill or fail their worker."""
        state = BatchState.TOGETHER
        if attempts and len(batch.rows):
            first_row, last_row = int(batch.rows[0]), int(batch.rows[-1])
            state = batch_state(deaths=attempts.deaths(first_row, last_row), failures=attempts.failures(first_row, last_row))
        if state is BatchState.TOGETHER:
            answer = self._answer(batch, shard, attempts, is_last_try=attempts is None)
            if answer or attempts is None:
                yield from [answer] if answer else []
                return
            state = BatchState.SINGLY
        assert attempts is not None  # noqa: S101 - without attempts the state is TOGETHER
        batch = without(batch, self._unscorable(batch, shard, attempts))
        size = len(batch.rows) if state is BatchState.SIFT else 1
        for start in range(0, max(len(batch.rows), 1), max(size, 1)):
            piece = _slice(batch, start, size, bad=() if start else batch.bad)
            answer = self._answer(piece, shard, attempts, is_last_try=True)
            if answer:
                yield answer

    def _answer(self, batch: Batch, shard: Shard, attempts: Attempts | None, *, is_last_try: bool) -> tuple[Batch, pa.Table, Scored] | None:
        """A batch, its reviews and their answers; None if scoring raised an error and this is not the last try."""
        reviews = sources.reviews(batch, shard, self._task.columns, labelled=self._task.labelled)
        limit_s = self._task.config.stall_s if len(batch.rows) > 1 else self._task.config.stall_s / _SINGLE_SHARE
        try:
            with _marked(attempts, batch, limit_s):
                return batch, reviews, self._scorer.score_flat(reviews["text"].to_pylist(), effects=self._task.effects)
        except (Mistake, OSError):
            raise
        except Exception as error:
            if is_last_try:
                raise
            log.warning("%s, rows %s: %s", shard.path, batch.rows[:1], type(error).__name__)
            if attempts and len(batch.rows):
                attempts.failed(int(batch.rows[0]), int(batch.rows[-1]))
            return None

    def _unscorable(self, batch: Batch, shard: Shard, attempts: Attempts) -> dict[int, BadRecord]:
        """The records that cannot be scored, by their position in the batch. Each record is tried on its own."""
        unscorable: dict[int, BadRecord] = {}
        for place, row in enumerate(batch.rows.tolist()):
            single = _slice(batch, place, 1, bad=())
            state, answer = RecordState.UNTRIED, None
            while answer is None:
                state = record_state(deaths=attempts.deaths(row, row), failures=attempts.failures(row, row))
                if state is not RecordState.UNTRIED:
                    break
                answer = self._answer(single, shard, attempts, is_last_try=False)
            if answer is None:
                reason: BadReason = "failed" if state is RecordState.FAILED else "poison"
                offset = None if batch.byte_offsets is None else int(batch.byte_offsets[place])
                text = excerpt(single.table[self._task.columns.text][0].as_py())
                unscorable[place] = BadRecord(row=row, byte_offset=offset, reason=reason, excerpt=text)
        return unscorable

    def _is_stopped(self, item: Item, num_rows: int) -> bool:
        return bool(ray.get(self._coordinator.progressed.remote(item.name, num_rows)))


@contextmanager
def _marked(attempts: Attempts | None, batch: Batch, limit_s: float) -> Iterator[None]:
    """Mark on disk what the body scores, and kill this process if the body takes too long; the timer does not need the interpreter."""
    if attempts and len(batch.rows):
        attempts.scoring(int(batch.rows[0]), int(batch.rows[-1]))
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class _Coordinator:
    """An actor that collects the progress of all workers, and stops them after the first error."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}  # of each item, since it was last begun
        self._finished: set[str] = set()
        self._is_ready = False
        self._failure: Exception | None = None

    def ready(self) -> None:
        self._is_ready = True

    def progressed(self, name: str, num_rows: int) -> bool:
        """Whether the worker must stop."""
        self._rows[name] = num_rows
        return self._failure is not None

    def finish(self, name: str) -> None:
        self._finished.add(name)

    def stop(self, failure: Exception) -> None:
        self._failure = self._failure or failure

    def failure(self) -> Exception | None:
        """The first error of any worker."""
        return self._failure

    def progress(self) -> tuple[int, int, int] | None:
        """Rows done, rows of the finished items, number of finished items; None before the first worker is ready."""
        if not self._is_ready:
            return None
        return sum(self._rows.values()), sum(self._rows[name] for name in self._finished), len(self._finished)


@contextmanager
def _watched(coordinator: Any, items: Sequence[Item], report: Report) -> Iterator[None]:
    """Report rows done and total rows while the body runs, once the first actor is ready."""
    sizes = [item.known_rows for item in items]
    known = None if None in sizes else sum(size or 0 for size in sizes)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            progress = ray.get(coordinator.progress.remote())
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
    progress = ray.get(coordinator.progress.remote())
    done = progress[0] if progress else 0
    report("scored", done, done)
