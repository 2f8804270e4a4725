"""Metrics of training and scoring for Prometheus: set by the process that knows them, exported by Ray on that process's node.

Ray exports values every 10 seconds in its own thread, so setting a value takes microseconds and never blocks. Ray adds labels such as
WorkerId: sum over them. Our own labels never contain a text, a file or the id of a review. A gauge disappears 20 seconds after its last
update, so all gauges are set again each time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from ray.util.metrics import Counter, Gauge

T = TypeVar("T")


class Family(NamedTuple):
    """One metric of Prometheus."""

    name: str
    kind: str  # counter or gauge
    help: str
    labels: tuple[str, ...]


_RUN = ("run",)  # the last two names of the path of --out
_SCORING = ("run", "model")  # model: fingerprint of the artifact

FAMILIES = (
    Family("ray_han_train_reviews_total", "counter", "reviews trained on, by all workers together", _RUN),
    Family("ray_han_train_epoch", "gauge", "epoch that is under way, from 1", _RUN),
    Family("ray_han_train_epochs", "gauge", "configured number of epochs; patience may end a run earlier", _RUN),
    Family("ray_han_train_loss", "gauge", "mean cross-entropy a training review, nats, of the epoch so far", _RUN),
    Family("ray_han_train_development_accuracy", "gauge", "share of development reviews that are right, after the last epoch", _RUN),
    Family("ray_han_train_development_log_loss", "gauge", "mean cross-entropy a development review, nats, after the last epoch", _RUN),
    Family("ray_han_train_data_wait_seconds_total", "counter", "seconds that a worker waited for reviews", ("run", "rank")),
    Family("ray_han_score_rows_total", "counter", "records scored or quarantined, by all starts of the job on this Ray", _SCORING),
    Family("ray_han_score_rows_left", "gauge", "remaining records; an estimate for some formats", _SCORING),
    Family("ray_han_score_quarantined_total", "counter", "records set aside, once their shard is done", (*_SCORING, "reason")),
    Family("ray_han_score_shards_done", "gauge", "shards that are finished", _SCORING),
    Family("ray_han_score_shards_left", "gauge", "shards that are not", _SCORING),
)


def run_name(out: str) -> str:
    """The last two names of the path of a run: `out/train/run` is `train/run`."""
    return "/".join(out.rstrip("/").split("/")[-2:])


class Training:
    """Metrics of a run, from rank 0."""

    def __init__(self, out: str, *, num_reviews: int, epochs: int) -> None:
        """num_reviews: of one epoch, over all workers."""
        self._labels = {"run": run_name(out)}
        self._num_reviews = num_reviews
        self._told: int | None = None  # reviews since the run's first
        self._gauges: dict[str, float] = {"ray_han_train_epochs": epochs}

    def seen(self, epoch: int, num_reviews: int, loss: float | None = None) -> None:
        """Reviews of this epoch so far, and their mean loss."""
        before = (epoch - 1) * self._num_reviews
        self._told = before if self._told is None else self._told  # a resumed run starts at its epoch
        if before + num_reviews > self._told:
            _counter("ray_han_train_reviews_total").inc(before + num_reviews - self._told, self._labels)
            self._told = before + num_reviews
        self._gauges["ray_han_train_epoch"] = epoch
        if loss is not None:
            self._gauges["ray_han_train_loss"] = loss
        _set(self._gauges, self._labels)

    def epoch(self, line: dict[str, Any]) -> None:
        """A line of history."""
        self._gauges |= {f"ray_han_train_development_{name}": line[name] for name in ("accuracy", "log_loss")}
        self.seen(line["epoch"], self._num_reviews, line["train_loss"])


def waited(windows: Iterator[T], out: str, *, rank: int) -> Iterator[T]:
    """The same windows; counts the seconds that this worker waits for each."""
    labels = {"run": run_name(out), "rank": str(rank)}
    while True:
        began = time.monotonic()
        window = next(windows, None)
        _counter("ray_han_train_data_wait_seconds_total").inc(max(time.monotonic() - began, 1e-9), labels)
        if window is None:
            return
        yield window


class Scoring:
    """Metrics of a scoring job, from its driver."""

    def __init__(self, out: str, *, model: str, num_shards: int) -> None:
        self._labels = {"run": run_name(out), "model": model}
        self._num_shards, self._told = num_shards, 0
        self._gauges: dict[str, float] = {}

    def rows(self, done: int, total: int) -> None:
        """Records that this driver has done, and all records; 0 if the total is unknown."""
        if done > self._told:  # fewer after a shard was restarted
            _counter("ray_han_score_rows_total").inc(done - self._told, self._labels)
            self._told = done
        if total:
            self._gauges["ray_han_score_rows_left"] = total - done
        _set(self._gauges, self._labels)

    def shards(self, done: int, reasons: dict[str, int]) -> None:
        """Finished shards, and the records that the newest one quarantined."""
        self._gauges |= {"ray_han_score_shards_done": done, "ray_han_score_shards_left": self._num_shards - done}
        _set(self._gauges, self._labels)
        for reason, number in reasons.items():
            _counter("ray_han_score_quarantined_total").inc(number, self._labels | {"reason": reason})


def _set(values: dict[str, float], labels: dict[str, str]) -> None:
    for name, value in values.items():
        _gauge(name).set(value, labels)


@functools.cache
def _counter(name: str) -> Counter:
    return Counter(*_as_ray_wants(name))


@functools.cache
def _gauge(name: str) -> Gauge:
    return Gauge(*_as_ray_wants(name))


def _as_ray_wants(name: str) -> tuple[str, str, tuple[str, ...]]:
    """Ray adds the prefix `ray_`, and the suffix `_total` to a counter."""
    family = next(family for family in FAMILIES if family.name == name)
    return name.removeprefix("ray_").removesuffix("_total"), family.help, family.labels
