"""A separate Ray for tests and reliability runs, started like the head of a cluster and independent of any other Ray on this machine."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy import local

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
RAY = local.RAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    address: str  # of its head, for RAY_ADDRESS
    dashboard: str  # URL, for `ray job submit --address`
    folder: Path  # Ray's temporary folder, with prom_metrics_service_discovery.json


@contextmanager
def head(num_cpus: int = 4, *, num_nodes: int = 1) -> Iterator[Cluster]:
    """Start a head and further equal nodes, and connect this process. The dashboard is on, because jobs and Ray Train need it."""
    import ray

    os.environ.update(SETTINGS | {"RAY_AUTH_MODE": "disabled"})
    folder = Path(tempfile.mkdtemp(prefix="han-"))
    config = local.NodeConfig(num_cpus=num_cpus, store_mb=300, settings=SETTINGS)
    interrupt_on_sigterm()
    cluster = local.start(folder, num_nodes=num_nodes, config=config, auth=False)
    try:
        _connect(cluster.address)
        interrupt_on_sigterm()
        yield Cluster(address=cluster.address, dashboard=cluster.dashboard, folder=folder / cluster.nodes[0].name)
    finally:
        ray.shutdown()
        local.stop(cluster)


def interrupt_on_sigterm() -> None:
    """Raise KeyboardInterrupt on SIGTERM, so that `finally` blocks run. The handler of `ray.init` would abort."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _connect(address: str, deadline_s: float = 90) -> None:
    import ray

    end = time.monotonic() + deadline_s
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return
        except (ConnectionError, RuntimeError, ValueError):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
