"""Peak memory of `han prepare` on a large CSV: `python -m benchmarks.prepare_memory --data train.parquet [--num-reviews 1000000] [--gz]`.

The texts have the lengths of the reviews in `--data`, and their sentences in random order. Two sizes are prepared, a tenth of the reviews
and all of them, with random word vectors. Peak memory is the largest resident memory of a process of each kind.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
POLL_S = 0.25
COMPRESSION = 1  # level of gzip


def write_csv(path: Path, num_reviews: int, data: Path) -> None:
    """Reviews as long as those of `data`, of its sentences; half of them are positive."""
    texts = pq.read_table(data, columns=["text"])["text"].to_pylist()
    sentences = [sentence for text in texts for sentence in text.split(". ")]
    draw = random.Random(1)  # noqa: S311 - no secret
    with gzip.open(path, "wt", COMPRESSION, newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review_id", "text", "label"])
        for row in range(num_reviews):
            length, chosen, size = len(draw.choice(texts)), [], 0
            while size < length:
                chosen.append(draw.choice(sentences))
                size += len(chosen[-1]) + 2
            writer.writerow([f"r{row}", ". ".join(chosen), ("negative", "positive")[row % 2]])


def prepare(source: Path, out: Path) -> tuple[dict[str, float], float]:
    """Peak memory in MB of the driver, of the largest worker, and of all processes together; seconds."""
    command = [sys.executable, "-m", "jobs.prepare", "--input", str(source), "--out", str(out), "--vectors.source", "random"]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.DEVNULL) as process:
        peaks: dict[str, float] = {}
        watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peaks), daemon=True)
        watcher.start()
        code = process.wait()
        watcher.join()
    if code:
        sys.exit(f"jobs.prepare failed with exit code {code}")
    return peaks, time.monotonic() - began


def _watch(driver: psutil.Process, peaks: dict[str, float]) -> None:
    """Until the driver ends. Pages that processes share (Ray's object store, libraries) count for each of them."""
    while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
        sizes = {"driver": 0.0, "worker": 0.0, "total": 0.0}
        for process in [driver, *driver.children(recursive=True)]:
            try:
                name = "driver" if process == driver else _kind(process.cmdline())
                size = process.memory_info().rss / 1e6
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            sizes["total"] += size
            if name in sizes:
                sizes[name] = max(sizes[name], size)
        for name, size in sizes.items():
            peaks[name] = max(peaks.get(name, 0.0), size)
        time.sleep(POLL_S)


def _kind(command: list[str]) -> str:
    return "worker" if any("ray::" in part for part in command[:1]) and "IDLE_SPILL" not in command[0] else "other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Parquet with a column text")
    parser.add_argument("--num-reviews", type=int, default=1_000_000, help="reviews of the larger file")
    parser.add_argument("--gz", action="store_true", help="prepare a compressed file, which is one shard")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="han-prepare-"))
    try:
        for num_reviews in (arguments.num_reviews // 10, arguments.num_reviews):
            source = folder / f"{num_reviews}.csv{'.gz' if arguments.gz else ''}"
            write_csv(source, num_reviews, arguments.data)
            peaks, took_s = prepare(source, folder / f"{num_reviews}")
            size = source.stat().st_size / 1e6
            shown = ", ".join(f"{name} {mb:,.0f} MB" for name, mb in peaks.items())
            print(f"{num_reviews:,} reviews, {size:,.0f} MB: {shown}; {took_s:,.0f} s", flush=True)
            shutil.rmtree(folder / f"{num_reviews}")
            source.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
