"""A pool of Scorers over an input's shards: the one way by which many reviews are scored, for files and for figures alike.

A shard is the unit: one actor reads it, scores it, gives it to its sink and hands back a small record, so the driver never holds reviews.
"""

from __future__ import annotations

import json
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

from han import artifact, sources
from han.config import ColumnsConfig, ScoreConfig
from han.ray_data import Report, quiet_progress
from han.score import Scored, Scorer
from han.sources import Batch, Shard
from han.types import Mistake

_BATCH_ROWS = 1024  # scored together: enough for batches of like length; with word attention about 4 MB
_POLL_S = 0.5


class Sink(Protocol):
    """What becomes of one shard's answers."""

    def add(self, batch: Batch, reviews: pa.Table, scored: Scored) -> None:
        """Take some records of the shard; `scored` is of the rows of `reviews`, which `sources.reviews` made of the batch."""

    def close(self) -> tuple[dict[str, Any], bytes | None]:
        """The shard's record, as JSON, and any bytes that are to reach the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A shard to score."""

    name: str
    shard: Shard
    num_rows: int | None  # records that count, from the shard's first on; None: all


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What every actor knows."""

    model: str  # as `artifact.find` takes it
    fingerprint: str  # of that model; a node with another one under the same name is found out
    columns: ColumnsConfig
    labelled: bool  # whether labels are read
    config: ScoreConfig
    sink: Callable[[Item, tuple[str, ...]], Sink]  # called with the item and the model's labels


def run(items: Sequence[Item], task: Task, report: Report) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """What the sinks of all items closed with, as they come. A `Mistake` stops every actor before it is raised here."""
    if not items:
        return
    quiet_progress(preserve_order=False)
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_actors = min(len(items), task.config.num_actors or num_cpus)
    counter = ray.remote(num_cpus=0)(_Counter).remote()
    dataset = ray.data.from_items([{"item": index} for index in range(len(items))], override_num_blocks=len(items)).map_batches(
        _Worker,
        fn_constructor_args=(list(items), task, counter),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=min(num_actors, num_cpus), max_size=num_actors),
        num_cpus=1,
        num_gpus=1 if task.config.gpu else None,
    )
    mistake = None
    with _watched(counter, items, report):
        for row in dataset.iter_rows():
            record = json.loads(row["record"])
            if "mistake" in record:
                mistake = record["mistake"]
            elif "stopped" not in record:
                yield record, row["content"]
    if mistake:
        raise Mistake(mistake)


def first(batches: Iterable[Batch], num_rows: int | None) -> Iterator[Batch]:
    """The batches up to the first `num_rows` records, bad ones among them; None is all."""
    for batch in batches:
        rows = np.sort(np.concatenate([batch.rows, [bad.row for bad in batch.bad]]))
        if num_rows is not None and len(rows) >= num_rows:
            kept = set(rows[:num_rows].tolist())
            size = sum(row in kept for row in batch.rows.tolist())
            yield Batch(table=batch.table[:size], rows=batch.rows[:size], bad=tuple(bad for bad in batch.bad if bad.row in kept))
            return
        num_rows = None if num_rows is None else num_rows - len(rows)
        yield batch


class _Worker:
    """What an actor of the pool runs: it loads the model once, then scores a shard at a time."""

    def __init__(self, items: list[Item], task: Task, counter: Any) -> None:
        torch.set_num_threads(1)
        self._items, self._task, self._counter = items, task, counter
        loaded = artifact.load(artifact.find(task.model))
        self._scorer = Scorer(loaded, device="cuda" if task.config.gpu else "cpu", batch_tokens=task.config.batch_tokens)
        self._goes_on(0)

    def __call__(self, batch: pa.Table) -> pa.Table:
        try:
            record, content = self._score(self._items[batch["item"][0].as_py()])
        except Mistake as mistake:
            ray.get(self._counter.stop.remote())
            record, content = {"mistake": str(mistake)}, None
        return pa.table({"record": [json.dumps(record)], "content": pa.array([content], pa.binary())})

    def _score(self, item: Item) -> tuple[dict[str, Any], bytes | None]:
        task, shard = self._task, item.shard
        if self._scorer.fingerprint != task.fingerprint:
            raise Mistake(f"a node has {self._scorer.fingerprint} as {task.model}, not {task.fingerprint}: put one model on all nodes")
        sink = task.sink(item, self._scorer.labels)
        for batch in first(sources.read(shard, task.columns, batch_rows=_BATCH_ROWS), item.num_rows):
            reviews = sources.reviews(batch, shard, task.columns, labelled=task.labelled)
            sink.add(batch, reviews, self._scorer.score_flat(reviews["text"].to_pylist()))
            if not self._goes_on(len(batch.rows) + len(batch.bad)):
                return {"stopped": item.name}, None
        return sink.close()

    def _goes_on(self, num_rows: int) -> bool:
        return bool(ray.get(self._counter.add.remote(num_rows)))


class _Counter:
    """An actor that knows what all others have done so far, and whether they are to go on."""

    def __init__(self) -> None:
        self._rows: int | None = None  # None until the first actor is ready
        self._goes_on = True

    def add(self, rows: int) -> bool:
        self._rows = (self._rows or 0) + rows
        return self._goes_on

    def rows(self) -> int | None:
        return self._rows

    def stop(self) -> None:
        self._goes_on = False


@contextmanager
def _watched(counter: Any, items: Sequence[Item], report: Report) -> Iterator[None]:
    """Report rows done and rows in all while the body runs, from the first actor's readiness on; rows in all are 0 where unknown."""
    sizes = [_known_rows(item) for item in items]
    total = 0 if None in sizes else sum(size or 0 for size in sizes)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            done = ray.get(counter.rows.remote())
            if done is not None and done != total:
                report("scored", done, total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    done = ray.get(counter.rows.remote())
    report("scored", done, done)


def _known_rows(item: Item) -> int | None:
    if item.num_rows is None and item.shard.kind in ("parquet", "folder"):
        return item.shard.stop - item.shard.start
    return item.num_rows
