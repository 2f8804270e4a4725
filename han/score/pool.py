"""A pool of actors on Ray that score the shards of an input. Batch scoring and evaluation both use it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from han.cluster.datasets import configure_ray_data
from han.score.worker import Closed, Coordinator, Item, Report, Task, Worker, passed_on, report_progress

_POLL_S = 0.5


def run(items: Sequence[Item], task: Task, report: Report) -> Iterator[Closed]:
    """Yield what the sinks of all items return when they are closed. An actor's `UserError` or OSError stops all actors and is raised."""
    if not items:
        return
    configure_ray_data()
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_actors = min(len(items), task.config.num_actors or num_cpus)
    # On the driver's node: on another node it would die with that node, and all workers with it. Workers are restarted, it is not.
    on_this_node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    coordinator = ray.remote(num_cpus=0, label_selector=on_this_node)(Coordinator).remote()
    dataset = ray.data.from_items([{"item": index} for index in range(len(items))], override_num_blocks=len(items)).map_batches(
        _Actor,
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


_RESULT = pa.schema([("record", pa.string()), ("content", pa.binary())])


class _Actor:
    """A worker of the pool. It loads the model once."""

    def __init__(self, items: list[Any], task: Task, coordinator: Any) -> None:
        """items: references to the `Item`s, which are large where a shard lists its files."""
        self._items, self._coordinator = items, coordinator
        self._worker = Worker(task, task.make_scorer(task), self._progressed)
        ray.get(coordinator.ready.remote())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """No row if the run was stopped. The coordinator takes an error to the driver as it is."""
        item: Item = ray.get(self._items[batch["item"][0].as_py()])
        closed = None
        try:
            closed = self._worker.score(item)
        except Exception as error:
            failure = passed_on(error, item)
            if failure is None:
                raise
            ray.get(self._coordinator.stop.remote(failure))
        if closed is None:
            return _RESULT.empty_table()
        ray.get(self._coordinator.finish.remote(item.name))
        return pa.Table.from_pylist([{"record": json.dumps(closed[0]), "content": closed[1]}], schema=_RESULT)

    def _progressed(self, name: str, num_rows: int) -> bool:
        return bool(ray.get(self._coordinator.progressed.remote(name, num_rows)))


@contextmanager
def _watched(coordinator: Any, items: Sequence[Item], report: Report) -> Iterator[None]:
    """Report progress while the body runs, once the first actor is ready."""
    over = threading.Event()

    def watch() -> None:
        with suppress(RayError):  # the body meets it too, and raises it
            while not over.wait(_POLL_S):
                if ray.get(coordinator.is_ready.remote()):
                    report_progress(ray.get(coordinator.progress.remote()), items, report)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    done, _, _ = ray.get(coordinator.progress.remote())
    report("scored", done, done)
