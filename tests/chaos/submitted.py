"""Submit jobs to a cluster as users do, and find the nodes they run on."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_actors, list_nodes
from ray.util.state.exception import RayStateApiException

from deploy import local
from deploy.local import LocalCluster
from tests.chaos import repeated
from tests.helpers.cluster import interrupt_on_sigterm

# While a node dies, calls to the cluster may fail.
until = partial(repeated.until, every_s=0.2, despite=(OSError, RuntimeError, KeyError, StopIteration, psutil.Error, RayStateApiException))
ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
ACTORS = {
    "training": "RayTrainWorker",
    "scoring": "MapWorker",
    "serving": "ServeReplica:han:Model",
}  # prefixes of the names of their classes


@contextmanager
def cluster(folder: Path, num_nodes: int, config: local.NodeConfig) -> Iterator[LocalCluster]:
    """Start a cluster with a token; its settings are in this process's environment while the body runs."""
    interrupt_on_sigterm()
    started = local.start(folder, num_nodes=num_nodes, config=config)
    before = dict(os.environ)
    os.environ.update({**started.environment, "RAY_USAGE_STATS_ENABLED": "0"})
    try:
        yield started
    finally:
        os.environ.clear()
        os.environ.update(before)
        local.stop(local.read(folder))


class Job:
    """`ray job submit --no-wait … -- COMMAND`, with this checkout as its working folder."""

    def __init__(self, dashboard: str, *command: str) -> None:
        self.name = f"han-{secrets.token_hex(4)}"
        call = [RAY, "job", "submit", "--address", dashboard, "--working-dir", str(ROOT), "--no-wait", "--submission-id", self.name]
        done = subprocess.run([*call, "--", *command], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        self._client = JobSubmissionClient(dashboard)

    def status(self) -> JobStatus:
        return self._client.get_job_status(self.name)

    def wait(self, deadline_s: float) -> bool:
        """Wait for the job and return whether it succeeded. If not, print its output; after the deadline, stop it."""
        until(lambda: self.status().is_terminal(), deadline_s, every_s=0.5)
        succeeded = self.status() == JobStatus.SUCCEEDED
        if not succeeded:
            print(f"{self.name} is {self.status()}:\n{self.output()[-4_000:]}", flush=True)
            with suppress(RuntimeError):
                self._client.stop_job(self.name)
        return succeeded

    def output(self) -> str:
        return str(self._client.get_job_logs(self.name))


def actors_by_node(dashboard: str, kind: str) -> dict[str, set[str]]:
    """Ids of the live actors of a kind, by the name of their node."""
    names = {node.node_id: _name(node.resources_total) for node in list_nodes(dashboard, detail=True, timeout=30)}
    actors: dict[str, set[str]] = {}
    for actor in list_actors(dashboard, filters=[("state", "=", "ALIVE")], detail=True, limit=1_000, timeout=30):
        if actor.class_name.startswith(ACTORS[kind]) and actor.pid:
            actors.setdefault(names[actor.node_id], set()).add(actor.actor_id)
    return actors


def _name(resources: dict[str, Any]) -> str:
    """The name of a node of `deploy.local`, which is also the name of one of its resources."""
    return next(name for name in resources if name == "head" or (name.startswith("node") and name[4:].isdigit()))
