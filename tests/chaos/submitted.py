"""Jobs as users submit them to a cluster, and where on its nodes they run."""

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

# While a node dies, what asks may fail.
until = partial(repeated.until, every_s=0.2, despite=(OSError, RuntimeError, KeyError, StopIteration, psutil.Error, RayStateApiException))
ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
ACTORS = {"training": "RayTrainWorker", "scoring": "MapWorker", "serving": "ServeReplica:han:Model"}  # how their classes begin


@contextmanager
def cluster(folder: Path, num_nodes: int, config: local.NodeConfig) -> Iterator[LocalCluster]:
    """A cluster with a token, which this process has in its environment meanwhile."""
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
        """Whether it succeeded; what it printed is shown if not, and it is stopped if it takes too long."""
        until(lambda: self.status().is_terminal(), deadline_s, every_s=0.5)
        succeeded = self.status() == JobStatus.SUCCEEDED
        if not succeeded:
            print(f"{self.name} is {self.status()}:\n{self.told()[-4_000:]}", flush=True)
            with suppress(RuntimeError):
                self._client.stop_job(self.name)
        return succeeded

    def told(self) -> str:
        return str(self._client.get_job_logs(self.name))


def where(dashboard: str, kind: str) -> dict[str, set[str]]:
    """Names of the nodes that have living actors of a kind, with the ids of these actors."""
    names = {node.node_id: _name(node.resources_total) for node in list_nodes(dashboard, detail=True, timeout=30)}
    found: dict[str, set[str]] = {}
    for actor in list_actors(dashboard, filters=[("state", "=", "ALIVE")], detail=True, limit=1_000, timeout=30):
        if actor.class_name.startswith(ACTORS[kind]) and actor.pid:
            found.setdefault(names[actor.node_id], set()).add(actor.actor_id)
    return found


def _name(resources: dict[str, Any]) -> str:
    """A node of `deploy.local` has a resource of its own name."""
    return next(name for name in resources if name == "head" or (name.startswith("node") and name[4:].isdigit()))
