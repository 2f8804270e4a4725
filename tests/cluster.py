"""A Ray of its own for tests and reliability runs, started as a cluster's head is and apart from any other that runs on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "RAY_raylet_start_wait_time_s": "90",  # on a busy machine
}
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    address: str  # of its head, for RAY_ADDRESS
    dashboard: str  # URL, for `ray job submit --address`
    folder: Path  # Ray's temporary one, with prom_metrics_service_discovery.json


@contextmanager
def head(num_cpus: int = 4) -> Iterator[Cluster]:
    """A head, to which this process is connected. The dashboard is on: jobs, and what Ray Train frees, need it."""
    os.environ.update(SETTINGS)
    port, dashboard, *others = _free_ports(5)
    folder = tempfile.mkdtemp(prefix="han-")  # short: Ray's socket paths may have 107 characters
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={others[0]}", f"--dashboard-agent-listen-port={others[1]}"]
    command += [f"--dashboard-agent-grpc-port={others[2]}", "--min-worker-port=0", "--max-worker-port=0", f"--num-cpus={num_cpus}"]
    command += ["--object-store-memory=300000000", "--disable-usage-stats"]
    with Path(folder, "head.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    cluster = Cluster(address=f"127.0.0.1:{port}", dashboard=f"http://127.0.0.1:{dashboard}", folder=Path(folder))
    try:
        _connect(cluster.address, process, Path(folder, "head.log"))
        yield cluster
    finally:
        import ray

        ray.shutdown()
        everything = [process]
        with contextlib.suppress(psutil.NoSuchProcess):
            everything += psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for left in everything:  # after many jobs Ray takes half a minute to stop of its own accord
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                left.kill()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _connect(address: str, process: subprocess.Popen[bytes], log: Path, deadline_s: float = 90) -> None:
    import ray

    end = time.monotonic() + deadline_s
    while True:
        if "Ray runtime started" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"ray start did not come up: {log.read_text(errors='replace')[-2_000:]}")
            time.sleep(0.2)
            continue
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return
        except (ConnectionError, RuntimeError, ValueError):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _free_ports(number: int) -> list[int]:
    """Ports nobody listens on, outside 10002 to 19999, which Ray keeps for its workers."""
    listeners: list[socket.socket] = []
    while len(listeners) < number:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listeners.append(listener)
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
