"""The service for tests: serve/config.yaml on another port, deployed by a command from another folder."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from deploy.local import free_ports
from tests.helpers.cluster import Cluster

DEADLINE_S = 6.0  # of the service
PATIENCE_S = 180.0  # deadline of a test; a busy machine takes minutes instead of seconds
ROOT = Path(__file__).parents[2]
SERVE = str(Path(sys.executable).with_name("serve"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    url: str
    port: int
    config: dict[str, Any]
    deploy: Callable[[dict[str, Any]], None]


@contextmanager
def serving(cluster: Cluster, folder: Path) -> Iterator[Service]:
    """The only Serve of a test session. The first deployment starts it. The config has two ingresses and two replicas."""
    (port,) = free_ports(1)
    config = two_of_each(port)
    config["applications"][0]["args"]["deadline_s"] = DEADLINE_S

    def deploy(changed: dict[str, Any]) -> None:
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(changed))
        command = [SERVE, "deploy", "--address", cluster.dashboard, str(path)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        yield Service(url=f"http://127.0.0.1:{port}", port=port, config=config, deploy=deploy)
    finally:
        from ray import serve

        serve.shutdown()


def two_of_each(port: int) -> dict[str, Any]:
    """serve/config.yaml with two ingresses and two replicas of Model; a replica has half a CPU."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    config["http_options"]["port"] = port
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == "Model":
            del deployment["autoscaling_config"]
            deployment["ray_actor_options"] = {"num_cpus": 0.5}
        if deployment["name"] != "Coordinator":
            deployment["num_replicas"] = 2
    return config


def status(url: str) -> int:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code
    except httpx.TransportError:
        return 0


def until(condition: Callable[[], bool], deadline_s: float = PATIENCE_S) -> float:
    """Wait for the condition and return the seconds. Raises AssertionError after the deadline; a refused connection counts as false."""
    began = time.monotonic()
    while True:
        with suppress(httpx.TransportError, KeyError, psutil.Error):
            if condition():
                return time.monotonic() - began
        assert time.monotonic() - began < deadline_s, f"not within {deadline_s} s"
        time.sleep(0.05)
