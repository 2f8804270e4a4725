"""A service for a reliability run: serve/config.yaml on a free port, and the expected responses."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from ray.util.state import list_actors

from deploy.local import free_ports
from han.data import samples
from han.score.scorer import Scorer, as_json
from han.types import AttentionDetail, EffectDetail, Score
from tests.helpers.serving import two_of_each, until

ROOT = Path(__file__).parents[2]
MODEL, INGRESS, PROXY = "ServeReplica:han:Model", "ServeReplica:han:Ingress", "ProxyActor"  # classes of actors
DETAILS: tuple[AttentionDetail, ...] = ("words", "sentences", "none")


class Service:
    """The application `han` with two ingresses and two replicas of Model; a replica has half a CPU."""

    def __init__(self, dashboard: str, *, import_path: str = "serve.app:build", headers: dict[str, str] | None = None) -> None:
        """headers: headers for the dashboard, for example a token."""
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.score_url = f"{self.url}/v1/score"
        self._dashboard, self._headers = dashboard, headers
        self._rest = f"{dashboard}/api/serve/applications/"
        self.config = two_of_each(self.port)
        self.config["applications"][0]["import_path"] = import_path

    @property
    def deadline_s(self) -> float:
        return float(self.config["applications"][0]["args"]["deadline_s"])

    def put(self, **arguments: object) -> None:
        """Send what `serve deploy` sends. arguments: the arguments of `serve.app:build` that change."""
        config = copy.deepcopy(self.config)
        config["applications"][0]["args"] |= arguments
        httpx.put(self._rest, headers=self._headers, json=config, timeout=30).raise_for_status()

    def deploy(self, **arguments: object) -> float:
        """Deploy and return the seconds until all replicas have this configuration."""
        began = time.monotonic()
        self.put(**arguments)
        until(lambda: self.status() == "RUNNING" and self.is_whole(), 120)
        return time.monotonic() - began

    def withdraw(self) -> None:
        """Deploy a config without applications, as `serve deploy` does, and wait until the application is deleted."""
        httpx.put(self._rest, headers=self._headers, json={**self.config, "applications": []}, timeout=30).raise_for_status()
        until(lambda: self.status() == "NONE", 90)

    def shut_down(self) -> None:
        """Shut Serve down, as `serve shutdown` does, and wait until it has stopped."""
        httpx.delete(self._rest, headers=self._headers, timeout=90).raise_for_status()

    def status(self) -> str:
        return str(self._details().get("status", "NONE"))

    def is_whole(self) -> bool:
        """Whether exactly the target number of replicas runs, and each is ready."""
        deployments = self._details().get("deployments", {})
        return bool(deployments) and all(
            [replica["state"] for replica in deployment["replicas"]] == ["RUNNING"] * deployment["target_num_replicas"]
            for deployment in deployments.values()
        )

    def running(self) -> list[int]:
        """Process ids of the replicas of Model that get requests."""
        return [replica["pid"] for replica in self._details()["deployments"]["Model"]["replicas"] if replica["state"] == "RUNNING"]

    def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = httpx.get(self._rest, headers=self._headers, timeout=30).json()["applications"].get("han", {})
        return details

    def metrics(self) -> dict[str, float]:
        """The values of /metrics by series."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def total(self, name: str) -> float:
        return sum(value for series, value in self.metrics().items() if series.partition("{")[0] == name)

    def codes(self, route: str = "/v1/score") -> dict[str, int]:
        """Requests of a route by status, from /metrics."""
        pattern = re.compile(rf'han_requests_total\{{route="{route}",code="(\d+)"\}}')
        return {match[1]: int(value) for series, value in self.metrics().items() if (match := pattern.fullmatch(series))}

    def pids(self, *kinds: str) -> list[int]:
        """Process ids of live actors, from Ray's state API. kinds: prefixes of the names of their classes."""
        actors = list_actors(self._dashboard, filters=[("state", "=", "ALIVE")], detail=True, limit=1000, timeout=30)
        return [actor.pid for actor in actors if actor.class_name.startswith(kinds) and actor.pid]

    def readyz(self) -> int:
        """The status of /readyz; 0 without a response."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code
        except httpx.TransportError:
            return 0


def kill_one(service: Service, chance: random.Random, deadline_s: float = 60) -> bool:
    """Kill a replica of Model once all replicas run, if possible one that works within the next 5 seconds."""
    with contextlib.suppress(AssertionError):
        until(service.is_whole, deadline_s)
        victims = service.pids(MODEL)
        chance.shuffle(victims)
        end = time.monotonic() + 5
        busy = next((pid for _ in iter(lambda: time.monotonic() > end, True) for pid in victims if _is_working(pid)), victims[0])
        os.kill(busy, signal.SIGKILL)
        return True
    return False


def _is_working(pid: int) -> bool:
    """Whether a thread of the process is on a CPU, or waits for one, twice within 2 ms (Linux only)."""
    for _ in range(2):
        stats = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        if "R" not in stats:
            return False
        time.sleep(0.002)
    return True


def resident_mb(pids: Sequence[int]) -> float:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids if psutil.pid_exists(pid)) / 2**20


def open_files(pids: Sequence[int]) -> int:
    return sum(psutil.Process(pid).num_fds() for pid in pids if psutil.pid_exists(pid))


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRequest:
    """The body of a request and its correct results, by the fingerprint of the model."""

    body: bytes
    results: dict[str, list[dict[str, Any]]]

    def is_wrong(self, content: bytes) -> bool:
        response = json.loads(content)
        return response["model"] not in self.results or differ(response["results"], self.results[response["model"]])


def golden(
    scorers: Sequence[Scorer], *, num_texts: int, size: int = 1, details: Sequence[AttentionDetail] = DETAILS
) -> list[GoldenRequest]:
    """Requests of `size` bundled reviews, with each scorer's results as the service gives them: with effects where there is attention.

    A single text is sent without a list.
    """
    lines = samples.REVIEWS.read_text(encoding="utf-8").splitlines()[:num_texts]
    texts = [json.loads(line)["text"] for line in lines]
    requests = []
    for number, first in enumerate(range(0, len(texts), size)):
        some, detail = texts[first : first + size], details[number % len(details)]
        effects: EffectDetail = "none" if detail == "none" else "sentences"
        results = {
            scorer.fingerprint: [
                as_json(score) for score in scorer.score(some, attention=detail, effects=effects) if isinstance(score, Score)
            ]
            for scorer in scorers
        }
        body = json.dumps({"inputs": some[0] if size == 1 else some, "attention": detail}).encode()
        requests.append(GoldenRequest(body=body, results=results))
    return requests


def differ(one: Any, other: Any) -> bool:
    """Whether two results differ by more than 1e-6 anywhere."""
    if isinstance(other, dict):
        return one.keys() != other.keys() or any(differ(one[name], other[name]) for name in other)
    if isinstance(other, list | tuple):
        return len(one) != len(other) or any(differ(first, second) for first, second in zip(one, other, strict=True))
    return abs(one - other) > 1e-6 if isinstance(other, float) else one != other
