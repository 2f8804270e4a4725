"""Scoring the shards of an input: what a worker does, and a few workers on this machine without Ray.

A worker reads a shard, scores it, passes the answers to a sink and returns a small record, so nobody holds all reviews. `run_here` forks
workers that share one loaded model, for inputs that do not deserve a cluster; `pool.run` has them as actors on Ray. In both, a worker that
dies is replaced, and its shard is begun again, as often as `Attempts` allows.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from han.config import ColumnsConfig, ScoreConfig
from han.data import sources
from han.data.files import BadReason, BadRecord, InputChanged, excerpt, without
from han.data.sources import Batch, Shard
from han.model import artifact
from han.processes import follow_parent
from han.score.retries import Attempts, BatchState, RecordState, batch_state, record_state
from han.score.scorer import Scored, Scorer
from han.types import EffectDetail, UserError

log = logging.getLogger(__name__)

BATCH_ROWS = 1024  # records scored in one call: enough to form batches of similar length; with word attention about 4 MB
_SINGLE_SHARE = 5  # a record on its own has a fifth of the time of a batch
_DEATHS_BEFORE_WORK = 3  # of processes in a row that die before they begin a shard
_STOP_S = 10.0  # until a process that was stopped is killed

Closed = tuple[dict[str, Any], bytes | None]  # what a sink returns


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

    def close(self) -> Closed:
        """The shard's record, as JSON, and optional bytes for the driver."""


class Report(Protocol):
    def __call__(self, what: str, done: int, total: int, *, exact: bool = True, quarantined: int = 0) -> None:
        """Rows done and total rows: 0 if the total is not known yet, an estimate unless `exact`. quarantined: in finished parts."""


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


class Worker:
    """Scores one shard at a time."""

    def __init__(self, task: Task, scorer: BatchScorer, progressed: Callable[[str, int], bool]) -> None:
        """progressed: called with the name of an item and its rows so far; returns whether the run was stopped."""
        self._task, self._scorer, self._progressed = task, scorer, progressed

    def score(self, item: Item) -> Closed | None:
        """What the sink returns when the item is complete; None if the run was stopped."""
        if self._progressed(item.name, 0):
            return None
        if self._scorer.fingerprint != self._task.fingerprint:
            actual, expected = self._scorer.fingerprint, self._task.fingerprint
            raise UserError(f"a node has {actual} as {self._task.model}, not {expected}: put one model on all nodes")
        sink = self._task.sink(item, self._scorer.labels)
        num_rows = 0
        for batch in self._batches(item, sink):
            for piece, reviews, scored in self._scored(batch, item.shard, sink.attempts):
                sink.add(piece, reviews, scored)
            num_rows += len(batch.rows) + len(batch.bad)
            if self._progressed(item.name, num_rows):
                if sink.attempts:
                    sink.attempts.clear()
                return None
        if sink.attempts:
            sink.attempts.clear()
        return sink.close()

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
            except UserError as mistake:
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
        except (UserError, OSError):
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


class Coordinator:
    """Collects the progress of all workers, and stops them after the first error."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}  # of each item, since it was last begun
        self._finished: set[str] = set()
        self._is_ready = False
        self._failure: Exception | None = None

    def ready(self) -> None:
        """The first worker can score."""
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

    def is_ready(self) -> bool:
        """Whether any worker can score."""
        return self._is_ready

    def progress(self) -> tuple[int, int, int]:
        """Rows done, rows of the finished items, number of finished items."""
        return sum(self._rows.values()), sum(self._rows[name] for name in self._finished), len(self._finished)


def passed_on(error: Exception, item: Item) -> Exception | None:
    """The error as the driver raises it, if it is a user's or the disk's; None for a bug."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror or str(error), error.filename or item.name)
    return None


def report_progress(progress: tuple[int, int, int], items: Sequence[Item], report: Report) -> None:
    """Report rows done and total rows, while some are left. progress: as `Coordinator.progress`."""
    done, rows, finished = progress
    sizes = [item.known_rows for item in items]
    is_exact = None not in sizes
    total = sum(size or 0 for size in sizes) if is_exact else rows * len(items) // max(finished, 1)
    if done < total or not total:
        report("scored", done, total, exact=is_exact)


def run_here(items: Sequence[Item], task: Task, report: Report, *, num_processes: int) -> Iterator[Closed]:
    """As `pool.run`, in processes that are forked from this one and share its model. They end with this process, however it ends."""
    crew = _Crew(items, task)
    try:
        for _ in range(min(num_processes, len(items))):
            crew.add()
        while crew.workers:
            yield from crew.closed()
            report_progress(crew.coordinator.progress(), items, report)
    finally:
        crew.end()
    failure = crew.coordinator.failure()
    if failure is not None:
        raise failure
    done, _, _ = crew.coordinator.progress()
    report("scored", done, done)


class _Crew:
    """Forked workers, each with one item at a time."""

    def __init__(self, items: Sequence[Item], task: Task) -> None:
        self._items, self._task = items, task
        self._context = multiprocessing.get_context("fork")
        self._is_stopped = self._context.RawValue("b", 0)
        self._scorer = task.make_scorer(task)
        self._waiting = deque(range(len(items)))
        self._deaths = 0  # in a row, before any work
        self.coordinator = Coordinator()
        self.workers: dict[Connection, tuple[BaseProcess, int]] = {}  # by connection: the process, and the index of its item

    def add(self) -> None:
        """Fork a worker for the next item."""
        ours, theirs = self._context.Pipe()
        work = (theirs, self._items, self._task, self._scorer, self._is_stopped)
        process = self._context.Process(target=_work, args=work, daemon=True)
        process.start()
        theirs.close()
        self._give(ours, process)

    def closed(self) -> Iterator[Closed]:
        """Wait for messages of the workers; yields what the sinks of finished items returned."""
        for connection in wait(list(self.workers)):
            assert isinstance(connection, Connection)  # noqa: S101
            process, index = self.workers[connection]
            try:
                kind, content = connection.recv()
            except (EOFError, OSError):
                self._replace(connection)
                continue
            if kind == "rows":
                self._deaths = 0
                self.coordinator.progressed(self._items[index].name, content)
                continue
            if kind == "failed":
                self.coordinator.stop(content)
                self._is_stopped.value = 1
            elif content is not None:
                self.coordinator.finish(self._items[index].name)
                yield content
            self._give(connection, process)

    def end(self) -> None:
        """Stop the workers that are left at the end of their batch."""
        self._is_stopped.value = 1
        for connection in self.workers:
            with suppress(OSError):
                connection.send(None)
        for process, _ in self.workers.values():
            process.join(_STOP_S)
            process.kill()
            process.join()
        self.workers = {}

    def _give(self, connection: Connection, process: BaseProcess) -> None:
        """Give a worker the next item, or let it end."""
        if self._waiting and not self._is_stopped.value:
            self.workers[connection] = process, self._waiting.popleft()
            with suppress(OSError):  # it has died, which its connection will show
                connection.send(self.workers[connection][1])
            return
        self.workers.pop(connection, None)
        with suppress(OSError):
            connection.send(None)
        process.join()

    def _replace(self, connection: Connection) -> None:
        """A worker died: another one begins its item again."""
        process, index = self.workers.pop(connection)
        connection.close()
        process.join()
        self._deaths += 1
        if self._deaths == _DEATHS_BEFORE_WORK:
            raise UserError(f"a scoring process died {self._deaths} times before it began: free some memory, or give --num-actors 1")
        self._waiting.appendleft(index)
        self.add()


def _work(connection: Connection, items: Sequence[Item], task: Task, scorer: BatchScorer, is_stopped: Any) -> None:
    """A forked worker: it scores the items whose indices it receives, until it receives None."""
    follow_parent()

    def progressed(_: str, num_rows: int) -> bool:
        try:
            connection.send(("rows", num_rows))
        except OSError:
            return True
        return bool(is_stopped.value)

    worker = Worker(task, scorer, progressed)
    with suppress(EOFError, OSError):
        while (index := connection.recv()) is not None:
            connection.send(_outcome(worker, items[index]))


def _outcome(worker: Worker, item: Item) -> tuple[str, Any]:
    try:
        return "closed", worker.score(item)
    except Exception as error:
        failure = passed_on(error, item)
        if failure is None:
            error.add_note(traceback.format_exc())
        return "failed", failure or error
