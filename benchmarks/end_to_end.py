"""Time scoring from raw text to Parquet with word attention: `python -m benchmarks.end_to_end --data FILE [--before COMMIT]`.

Each pipeline scores a small and a large part of the same reviews. The difference gives reviews/s after start-up, and the intercept gives
the start-up time. The pipelines alternate and medians are compared, because the machine may be shared:

- this checkout's `jobs.score`, and the same with the effects of sentences;
- an earlier commit's `jobs.score`, exported with `git archive` into a temporary folder;
- a straightforward Ray Data pipeline: NLTK and `nn.GRU` over packed sentences in an actor pool, then `write_parquet`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import pyarrow.parquet as pq

from tests.chaos.repeated import Repeated

ROOT = Path(__file__).parents[1]
SMALL = 5_000  # reviews: enough for every actor to have work
SHARD_ROWS = 2_500
WITH_EFFECTS = "with effects"


class PeakMemory(Repeated):
    """The largest sum of the proportional memory, in MB, of all processes below this one. Shared pages count once."""

    every_s = 0.5

    def __init__(self) -> None:
        self.peak_mb = 0.0

    def look(self) -> None:
        total = 0.0
        for process in psutil.Process().children(recursive=True):
            try:
                total += process.memory_full_info().pss / 1e6
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
        self.peak_mb = max(self.peak_mb, total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Measurements of one command, start-up included."""

    reviews: int
    seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Medians over the rounds of one pipeline."""

    name: str
    reviews_per_s: float  # after start-up
    start_s: float  # start-up: time of a run without reviews
    total_s: float  # of the large part
    peak_mb: float  # of the large part

    def show(self) -> None:
        print(
            f"{self.name:<24} {self.reviews_per_s:>7,.0f} reviews/s once started, {self.total_s:>6.1f} s from command to prompt, "
            f"start-up {self.start_s:>5.1f} s, peak {self.peak_mb:,.0f} MB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Parquet with a column text")
    parser.add_argument("--before", default="575541b", help="commit to compare with; empty leaves it out")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each pipeline")
    parser.add_argument("--limit", type=int, default=25_000, help="reviews of the large part")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="han-bench-") as folder:
        for result in measure(arguments.data, Path(folder), before=arguments.before, rounds=arguments.rounds, limit=arguments.limit):
            result.show()


def measure(data: Path, folder: Path, *, before: str, rounds: int, limit: int) -> list[Result]:
    """Results of every pipeline, this checkout's first: without effects, then with."""
    parts = {size: _part(data, folder, size) for size in (SMALL, limit)}
    pipelines: dict[str, Callable[[Path, Path], Sequence[str]]] = {"this checkout": _ours, WITH_EFFECTS: _with_effects}
    environments = {name: _environment(ROOT) for name in (*pipelines, "straightforward")}
    if before:
        pipelines[before] = _ours
        environments[before] = _environment(_export(before, folder / "before"))
    pipelines["straightforward"] = _straightforward
    runs: dict[str, list[list[Run]]] = {name: [] for name in pipelines}
    for number in range(rounds):
        for name, command in pipelines.items():
            where = folder / f"{name.replace(' ', '-')}-{number}"
            measured = [_run(command(part, Path(f"{where}-{size}")), size, environments[name]) for size, part in parts.items()]
            runs[name].append(measured)
    return [_result(name, measured) for name, measured in runs.items()]


def _part(data: Path, folder: Path, size: int) -> Path:
    path = folder / f"{size}.parquet"
    table = pq.read_table(data, columns=["text"]).slice(0, size)
    if len(table) < size:
        sys.exit(f"{data} has {len(table):,} reviews: use --limit {len(table)} or another file")
    pq.write_table(table, path, row_group_size=SHARD_ROWS)
    return path


def _ours(part: Path, out: Path) -> Sequence[str]:
    return [sys.executable, "-m", "jobs.score", "--input", str(part), "--out", str(out)]


def _with_effects(part: Path, out: Path) -> Sequence[str]:
    return [*_ours(part, out), "--effects", "sentences"]


def _straightforward(part: Path, out: Path) -> Sequence[str]:
    return [sys.executable, "-m", "benchmarks.straightforward", "--input", str(part), "--out", str(out)]


def _environment(checkout: Path) -> dict[str, str]:
    """Put `checkout` first on the path, also in Ray's workers. No running Ray is used, so that every start-up is counted."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": str(checkout), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def _export(commit: str, folder: Path) -> Path:
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract", "--directory", str(folder)], input=archive, check=True)
    return folder


def _run(command: Sequence[str], reviews: int, environment: dict[str, str]) -> Run:
    began = time.monotonic()
    with PeakMemory() as memory:
        done = subprocess.run(command, cwd=environment["PYTHONPATH"], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Run(reviews=reviews, seconds=time.monotonic() - began, peak_mb=memory.peak_mb)


def _result(name: str, rounds: list[list[Run]]) -> Result:
    rates, starts = [], []
    for small, large in rounds:
        rate = (large.reviews - small.reviews) / (large.seconds - small.seconds)
        rates.append(rate)
        starts.append(small.seconds - small.reviews / rate)
    return Result(
        name=name,
        reviews_per_s=median(rates),
        start_s=median(starts),
        total_s=median(large.seconds for _, large in rounds),
        peak_mb=median(large.peak_mb for _, large in rounds),
    )


if __name__ == "__main__":
    main()
