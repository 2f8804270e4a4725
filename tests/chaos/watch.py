"""Test that every query of the dashboard returns data: `python -m tests.chaos.watch`, one line for each row; see docs/watching.md.

A real Prometheus scrapes a separate Ray and a service on it during training, scoring and serving. Every query of deploy/grafana/han.json
must return data for some moment of the run, and a query with a typo must return none.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from deploy.local import free_ports
from deploy.watch import DASHBOARD, NO_PROMETHEUS, plain, prometheus, read_queries
from han.config import PrepareConfig, VectorsConfig, VocabConfig
from han.data.samples import planted
from han.model import artifact
from han.score.scorer import Scorer
from tests.chaos.batch import write_dump
from tests.chaos.load import Load, by_status
from tests.chaos.report import close, reliability
from tests.chaos.service import Service, golden, kill_one
from tests.helpers.cluster import Cluster, head
from tests.helpers.serving import until

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240
NUM_TRAIN, NUM_EPOCHS, NUM_SCORE = 3_000, 6, 10_000  # each takes longer than the 10 s between two exports of Ray
STEP_S = 5
TYPO = "sum by (run) (rate(ray_han_score_row_total[1m]))"


class Watched:
    """The jobs and the service that Prometheus watches."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.began = cluster, folder, time.time()
        self.service = Service(cluster.dashboard)

    def job(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": self.cluster.address}, stdout=log, stderr=log)

    def train(self) -> bool:
        """Train a few epochs on generated reviews with two workers."""
        from han.train.prepare import prepare

        reviews, data = self.folder / "reviews.jsonl", self.folder / "data"
        planted.write_jsonl(reviews, NUM_TRAIN, seed=1, num_neutral=500)
        config = PrepareConfig(vocab=VocabConfig(min_count=1), vectors=VectorsConfig(size=32), punkt_sample=0)
        prepare(str(reviews), data, config, dev_ids=None, report=lambda *step: None)
        flags = ["--train.num-workers", 2, "--train.epochs", NUM_EPOCHS, "--train.patience", NUM_EPOCHS, "--train.batch-tokens", 8192]
        return self._done("train", "--data", data, "--out", self.folder / "watched" / "run", *flags)

    def score(self) -> bool:
        """Score a dump with some records that cannot be scored."""
        dump = self.folder / "dump.parquet"
        write_dump(dump, NUM_SCORE, seed=2)
        return self._done("score", "--input", dump, "--out", self.folder / "watched" / "scores", "--num-actors", 2)

    def serve(self) -> str:
        """Send more requests than the service accepts and kill a replica, to cause refusals and retries."""
        self.service.deploy(max_waiting_tokens=4_000)
        requests = golden([Scorer(artifact.load(artifact.find("imdb")))], num_texts=100)
        bodies = [request.body for request in requests]
        with Load(self.service.score_url, bodies, per_s=10) as load:
            killed = kill_one(self.service, random.Random(0))
            with Load(self.service.score_url, bodies, num_clients=40, num_requests=400):
                pass
            with contextlib.suppress(AssertionError):
                until(lambda: load.since_s() > 25, 30)
        return f"{by_status(load.replies)}{'' if killed else ',nothing_killed'}"

    def _done(self, name: str, *arguments: object) -> bool:
        process = self.job(name, *arguments)
        try:
            if process.wait(DEADLINE_S) == 0:
                return True
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print((self.folder / f"{name}.log").read_text()[-3_000:], flush=True)
        return False


def num_points(url: str, query: str, since: float) -> int:
    """Number of points with a number that the query returns from `since` until now."""
    params: dict[str, str | float] = {"query": plain(query), "start": since, "end": time.time(), "step": STEP_S}
    response: dict[str, Any] = httpx.get(f"{url}/api/v1/query_range", params=params, timeout=30).json()
    if response["status"] != "success":
        raise ValueError(f"{query}: {response['error']}")
    return sum(value != "NaN" for series in response["data"]["result"] for _, value in series["values"])


def main() -> None:
    if shutil.which("prometheus") is None:
        sys.exit(f"error: {NO_PROMETHEUS}")
    folder = Path(tempfile.mkdtemp(prefix="han-watch-"))
    try:
        with head() as cluster:
            watched = Watched(cluster, folder)
            address = f"127.0.0.1:{watched.service.port}"
            with prometheus(folder / "watch", free_ports(1)[0], ray=cluster.folder, service=address, key_file=None, every_s=STEP_S) as url:
                began = time.monotonic()
                trained, scored, replies = watched.train(), watched.score(), watched.serve()
                took_s = time.monotonic() - began
                reliability("W0", ok=trained and scored, trained=trained, scored=scored, replies=replies, took_s=took_s)
                with contextlib.suppress(AssertionError):
                    until(lambda: num_points(url, "sum(rate(han_retries_total[1m])) > 0", watched.began) > 0, 30)
                report(url, watched.began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    close()


def report(url: str, since: float) -> None:
    """Print one line for each row: how many of its queries returned data, and which did not."""
    for number, (row, queries) in enumerate(read_queries(DASHBOARD).items(), start=1):
        empty = [f"{title}: {query}" for title, query in queries if not num_points(url, query, since)]
        reliability(f"W{number}", ok=not empty, row=row, queries=len(queries), with_data=len(queries) - len(empty), empty=empty or "none")
    down = [target for target in _targets(url) if target["health"] != "up"]
    firing = sorted({alert["labels"]["alertname"] for alert in httpx.get(f"{url}/api/v1/alerts").json()["data"]["alerts"]})
    reliability("W5", ok=not down, targets=len(_targets(url)), down=len(down), alerts=",".join(firing) or "none")
    points = num_points(url, TYPO, since)
    reliability("W1-control", ok=points == 0, points=points, query="a_name_with_a_typo")


def _targets(url: str) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = httpx.get(f"{url}/api/v1/targets").json()["data"]["activeTargets"]
    return targets


if __name__ == "__main__":
    main()
