"""The service as tests deploy it: from serve/config.yaml, by a command given in another folder, on another port."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.cluster import Cluster

DEADLINE_S = 6.0
ROOT = Path(__file__).parents[1]
SERVE = str(Path(sys.executable).with_name("serve"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    url: str
    port: int
    config: dict[str, Any]
    deploy: Callable[[dict[str, Any]], None]


@contextmanager
def serving(cluster: Cluster, folder: Path) -> Iterator[Service]:
    """Serve's one instance of a session; the first deployment starts it. The config has two processes of each kind."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
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
    """serve/config.yaml with two processes that speak HTTP and two that score, each of these with half a CPU."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    config["http_options"]["port"] = port
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == "Model":
            del deployment["autoscaling_config"]
            deployment["ray_actor_options"] = {"num_cpus": 0.5}
        if deployment["name"] != "Totals":
            deployment["num_replicas"] = 2
    return config


def status(url: str) -> int:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code
    except httpx.TransportError:
        return 0


def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)
