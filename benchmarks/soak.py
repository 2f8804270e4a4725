"""Check that memory and speed of scoring stay constant: `python -m benchmarks.soak [--num-reviews 200000] [--data FILE]` (make soak).

It scores a tenth of the reviews, then all of them, with word attention. Peak memory is the largest resident memory of any process of the
job's Ray. The speeds of the first and the last tenth of the shards, in the order in which they finished, are compared without start-up.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from han.data.samples import planted
from tests.chaos.repeated import Repeated
from tests.chaos.report import close, reliability
from tests.helpers.cluster import Cluster, head

ROOT = Path(__file__).parents[1]
SHARD_ROWS = 2_000
MAX_GROWTH, MIN_SPEED = 1.2, 0.85


class Memory(Repeated):
    """The largest resident memory, in MB, of each kind of child process, polled four times a second."""

    def __init__(self) -> None:
        self.peak_mb: dict[str, float] = {}

    def look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            try:
                name = _kind(process.cmdline())
                own_mb = process.memory_info().rss / 1e6
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), own_mb)


def _kind(command: list[str]) -> str:
    line = " ".join(command)
    for mark, name in (("MapWorker", "scorer"), ("jobs.score", "driver"), ("raylet/raylet", "raylet"), ("gcs_server", "gcs")):
        if mark in line:
            return name
    return "other"


def write_dump(path: Path, num_reviews: int, data: Path | None) -> None:
    """Reviews of a file, repeated as often as needed, or generated reviews."""
    texts = pq.read_table(data, columns=["text"])["text"].to_pylist() if data else [r.text for r in planted.generate(5_000, seed=1)]
    rows = itertools.islice(itertools.cycle(texts), num_reviews)
    schema = pa.schema([("review_id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_reviews, SHARD_ROWS):
            some = list(itertools.islice(rows, SHARD_ROWS))
            ids = [f"soak/{row}" for row in range(start, start + len(some))]
            writer.write_table(pa.table([ids, some], schema=schema), row_group_size=SHARD_ROWS)


def soak(cluster: Cluster, dump: Path, out: Path) -> tuple[dict[str, float], float, float]:
    """Peak memory by kind of process, rows a second, and the speed of the last tenth divided by the speed of the first."""
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    command = [sys.executable, "-m", "jobs.score", "--input", str(dump), "--out", str(out), "--num-actors", "2"]
    finished: dict[str, float] = {}
    with Memory() as memory, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        records = out / ".staging" / "records"
        while process.poll() is None:
            now = time.monotonic()
            for path in records.glob("*.json"):
                finished.setdefault(path.name, now)
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"jobs.score failed with exit code {process.returncode}")
    times = np.sort(list(finished.values()))
    tenth = max(2, len(times) // 10)
    first, last = times[tenth] - times[0], times[-1] - times[-1 - tenth]
    rate = (len(times) - 1) * SHARD_ROWS / (times[-1] - times[0])
    return memory.peak_mb, float(rate), float(first / last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-reviews", type=int, default=200_000, help="reviews to score")
    parser.add_argument("--data", type=Path, help="Parquet with a column text; without it, reviews are generated")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="han-soak-"))
    try:
        peaks, steadiness, rate = [], 1.0, 0.0
        for num_reviews in (arguments.num_reviews // 10, arguments.num_reviews):
            dump, out = folder / f"{num_reviews}.parquet", folder / str(num_reviews)
            write_dump(dump, num_reviews, arguments.data)
            with head() as cluster:
                peak, rate, steadiness = soak(cluster, dump, out)
            peaks.append(peak)
            print(
                f"{num_reviews:,} reviews: {rate:,.0f} a second, peak MB { ({name: round(mb) for name, mb in peak.items()}) }", flush=True
            )
            shutil.rmtree(out)
        growth = {name: peaks[1][name] / peaks[0][name] for name in peaks[0]}
        reliability(
            "SOAK",
            ok=max(growth.values()) <= MAX_GROWTH and steadiness >= MIN_SPEED,
            reviews=arguments.num_reviews,
            rows_per_s=rate,
            last_tenth_over_first=steadiness,
            **{f"{name}_growth": value for name, value in growth.items()},
            scorer_peak_mb=peaks[1]["scorer"],
            driver_peak_mb=peaks[1]["driver"],
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    close()


if __name__ == "__main__":
    main()
