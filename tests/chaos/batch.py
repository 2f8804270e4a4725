"""Test the guarantees of batch scoring: `python -m tests.chaos.batch [--seed N] [--only D1 D3 …]`; see docs/reliability.md.

One Ray is started. Every job is a separate driver that joins it, as `jobs.score` does on a cluster. Each guarantee prints one line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from ray.util.state import list_actors, list_jobs

from deploy import local
from deploy.local import LocalCluster
from han import failpoint
from han.data.samples import planted
from tests.chaos.driver import FAULTS
from tests.chaos.repeated import Repeated, until
from tests.chaos.report import close, reliability
from tests.helpers.cluster import RAY, SETTINGS, Cluster, head

NUM_REVIEWS, NUM_SMALL, NUM_EMPTY, SHARD_ROWS = 20_000, 5_000, 10, 500
DEADLINE_S = 240
ROOT = Path(__file__).parents[2]


class Run:
    """A driver in its own process group."""

    def __init__(
        self, cluster: Cluster | LocalCluster, source: Path, out: Path, *flags: str, through: tuple[str, ...] = ("jobs.score",)
    ) -> None:
        self.log = out.parent / f".{out.name}.{secrets.token_hex(4)}.log"
        if "--failpoint" in flags and through == ("jobs.score",):
            through = ("tests.chaos.driver", "none", "-")
        command = [sys.executable, "-m", *through, "--input", str(source), "--out", str(out), "--num-actors", "2", *flags]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            print(self.output()[-3_000:])
            return -1

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()

    def output(self) -> str:
        return self.log.read_text()


def score(cluster: Cluster, source: Path, out: Path, *flags: str, **options: Any) -> tuple[int, str]:
    run = Run(cluster, source, out, *flags, **options)
    code = run.wait()
    return code, run.output()


def write_dump(path: Path, num_reviews: int, *, seed: int, extra: dict[int, str] | None = None) -> None:
    """Write generated reviews, NUM_EMPTY of them without a word. Each row group is a shard."""
    texts = [review.text for review in planted.generate(num_reviews, seed=seed)]
    for number in range(NUM_EMPTY):
        texts[number * (num_reviews // NUM_EMPTY) + 7] = "..."
    for row, text in (extra or {}).items():
        texts[row] = text
    ids = [f"{seed}/{row}" for row in range(num_reviews)]
    pq.write_table(pa.table({"review_id": ids, "text": texts}), path, row_group_size=SHARD_ROWS)


def oracle(source: Path, out: Path) -> dict[str, int]:
    """Count records. Each record of the input must be in the output or in quarantine exactly once."""
    rows = pq.read_table(source, columns=["review_id"])["review_id"].to_pylist()
    inputs = Counter(rows)
    scored = Counter(pq.read_table(out, columns=["review_id"])["review_id"].to_pylist()) if (out / "scores").exists() else Counter()
    quarantined = Counter(line["review_id"] or f"row {line['row']}" for line in quarantine(out))
    quarantined = Counter(rows[int(name[4:])] if name.startswith("row ") else name for name in quarantined.elements())
    outputs = scored + quarantined
    return {
        "in": sum(inputs.values()),
        "out": sum(scored.values()),
        "quarantine": sum(quarantined.values()),
        "duplicates": sum(max(0, outputs[name] - inputs[name]) for name in outputs),
        "missing": sum(max(0, inputs[name] - outputs[name]) for name in inputs),
    }


def holds(counts: dict[str, int], quarantined: int = NUM_EMPTY) -> bool:
    """Whether the counts of `oracle` show no duplicate, no missing record and the expected quarantine."""
    return counts["duplicates"] == counts["missing"] == 0 and counts["quarantine"] == quarantined


def quarantine(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(out.glob("_quarantine/*.jsonl")) for line in path.read_text().splitlines()]


def digest(out: Path) -> str:
    """The sum of the hashes of all rows, independent of their order and files. Numbers are rounded to 1e-6."""
    total = 0
    for path in sorted((out / "scores").glob("*.parquet")):
        for row in pq.read_table(path).drop_columns(["model"]).to_pylist():
            output = json.dumps(row, default=str, sort_keys=True, cls=_Rounded)
            total += int.from_bytes(hashlib.sha256(output.encode()).digest(), "big")
    return f"{total % (1 << 256):064x}"[:16]


class _Rounded(json.JSONEncoder):
    def iterencode(self, o: Any, _one_shot: bool = False) -> Iterator[str]:
        return super().iterencode(_rounded(o), _one_shot)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def everything(out: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(out.rglob("*")) if path.is_file()}


class Poller(Repeated):
    """Read a folder every 50 ms without waiting for its _SUCCESS."""

    every_s = 0.05

    def __init__(self, out: Path, rows: int) -> None:
        self.polls = self.torn = self.seen = 0
        self._out, self._rows = out, rows

    def look(self) -> None:
        self.polls += 1
        names = [path for path in self._out.rglob("*.parquet") if path.is_file()]
        if names:
            self.seen += 1
            try:
                rows = sum(pq.read_metadata(path).num_rows for path in names)
                self.torn += rows != self._rows or pq.ParquetDataset(self._out).files != sorted(map(str, names))
            except (OSError, pa.ArrowException):
                self.torn += 1


def ray_dies(part: Literal["raylet", "gcs_server"], dump: Path, out: Path) -> tuple[int, str, float]:
    """Kill a part of a Ray of its own while it scores: exit code and output of the driver, and the seconds until its end."""
    config = local.NodeConfig(num_cpus=2, store_mb=100, settings=SETTINGS)
    cluster = local.start(Path(tempfile.mkdtemp(prefix="han-")), num_nodes=1, config=config, auth=False)
    try:
        run = Run(cluster, dump, out)
        assert until(lambda: len(list(out.glob(".staging/records/*.json"))) >= 1, DEADLINE_S), run.output()
        began = time.monotonic()
        for process in local.processes(cluster.nodes[0]):
            if process.name() == part:
                process.kill()
        return run.wait(), run.output(), time.monotonic() - began
    finally:
        local.stop(cluster)


def scorers(cluster: Cluster) -> list[int]:
    """Process ids of the live actors of all pools."""
    actors = list_actors(address=cluster.dashboard, filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
    return [actor.pid for actor in actors if actor.class_name.startswith("MapWorker") and actor.pid]


def _begun(out: Path, *, recorded: bool) -> set[tuple[str, str]]:
    """Pairs of driver and shard for every shard that the driver began last, with a record (`recorded`) or without one."""
    staging = out / ".staging"
    begun = {(json.loads(path.read_text())["run"], path.stem) for path in staging.glob("attempts/*.json")}
    records = {path.stem for path in staging.glob("records/*.json")}
    return {(run_id, shard) for run_id, shard in begun if (shard in records) == recorded}


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="han-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


class Batch:
    """All runs, on one cluster and one dump."""

    def __init__(self, cluster: Cluster, folder: Path, seed: int) -> None:
        self.cluster, self.folder, self.random = cluster, folder, random.Random(seed)
        self.dump, self.small = folder / "dump.parquet", folder / "small.parquet"
        self._digests: dict[Path, str] = {}
        for dump, num_reviews in ((self.dump, NUM_REVIEWS), (self.small, NUM_SMALL)):
            write_dump(dump, num_reviews, seed=seed)

    def whole(self, dump: Path) -> str:
        """The digest of the dump's scores from an undisturbed job, whose folder DUMP-whole is kept."""
        if dump not in self._digests:
            began = time.monotonic()
            out = self.folder / f"{dump.stem}-whole"
            code, output = score(self.cluster, dump, out)
            if code:
                sys.exit(f"the undisturbed job failed with exit code {code}\n{output}")
            self._digests[dump] = digest(out)
            print(f"{dump.name} undisturbed: {time.monotonic() - began:.1f} s, digest {self._digests[dump]}", flush=True)
        return self._digests[dump]

    def d1_driver_killed(self, kills: int = 10) -> None:
        """D1 and D7: the driver is killed at random moments, from its start to its last shard, while a reader polls."""
        out, done, in_flight = self.folder / "d1", 0, set[tuple[str, str]]()
        moments = sorted(self.random.sample(range(NUM_REVIEWS // SHARD_ROWS - 1), kills))
        with Poller(out, NUM_REVIEWS - NUM_EMPTY) as poller:
            for moment in moments:
                run = Run(self.cluster, self.dump, out)
                until(lambda enough=moment: len(list(out.glob(".staging/records/*.json"))) >= enough, DEADLINE_S)
                time.sleep(self.random.uniform(0, 1 if moment else 8))
                done += run.process.poll() is None
                run.kill()
                in_flight |= _begun(out, recorded=False)
            until(lambda: not scorers(self.cluster), 60)  # the actors of a killed driver may still finish a batch
            redone = Counter(run_id for run_id, _ in in_flight - _begun(out, recorded=True))
            code, _ = score(self.cluster, self.dump, out)
        counts = oracle(self.dump, out)
        same = digest(out) == self.whole(self.dump)
        reliability(
            "D1",
            ok=code == 0 and holds(counts) and same and done == kills and max(redone.values(), default=0) <= 2,
            kills=done,
            **counts,
            digest_equal=same,
            most_shards_redone=max(redone.values(), default=0),
            rescored_percent=100 * redone.total() * SHARD_ROWS / NUM_REVIEWS,
        )
        reliability("D7", ok=poller.torn == 0 and poller.seen > 0, polls=poller.polls, with_scores=poller.seen, torn=poller.torn)

    def d1_control(self) -> None:
        """Control: without the commit, the same kills must leave duplicates or missing records."""
        out = self.folder / "control"
        through = ("tests.chaos.driver", "uncommitted", "-")
        for enough in (3, 6):
            run = Run(self.cluster, self.dump, out, through=through)
            until(lambda enough=enough: len(list(out.glob("scores/*.parquet"))) >= enough, DEADLINE_S)
            run.kill()
        code, _ = score(self.cluster, self.dump, out, through=through)
        counts = oracle(self.dump, out)
        reliability("D1-control", ok=counts["duplicates"] + counts["missing"] > 0, code=code, **counts)

    def d2_failpoints(self) -> None:
        """Kill at every failpoint without Ray (tests/score/test_publish.py), then at one of a worker and one of the driver on Ray."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/score/test_publish.py",
            "-k",
            "killed_at_any_point",
        ]
        alone = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        points = len(failpoint.OF_A_PART + failpoint.OF_THE_DRIVER)
        passed = points if alone.returncode == 0 else -1
        through_ray = 0
        for point in ("synced:3", "gathered"):
            out = self.folder / f"d2-{point.partition(':')[0]}"
            code, _ = score(self.cluster, self.small, out, "--failpoint", point)
            if point == "gathered":
                killed = code == -signal.SIGKILL
                code, _ = score(self.cluster, self.small, out)
                code = code if killed else 1
            through_ray += code == 0 and holds(oracle(self.small, out)) and digest(out) == self.whole(self.small)
        reliability("D2", ok=passed == points and through_ray == 2, without_ray=f"{passed}/{points}", through_ray=f"{through_ray}/2")

    def d3_workers_killed(self, kills: int = 10) -> None:
        out, killed = self.folder / "d3", 0
        run = Run(self.cluster, self.dump, out)
        while killed < kills and run.process.poll() is None:
            time.sleep(self.random.uniform(0.5, 2.0))
            alive = scorers(self.cluster)
            if alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.random.choice(alive), signal.SIGKILL)
                    killed += 1
        code = run.wait()
        counts = oracle(self.dump, out)
        same = digest(out) == self.whole(self.dump)
        reliability("D3", ok=code == 0 and holds(counts) and same and killed == kills, kills=killed, **counts, digest_equal=same)

    def d4_double_fault(self) -> None:
        """A worker dies after its commit and before the driver knows; the driver dies while the shard is retried."""
        out = self.folder / "d4"
        run = Run(self.cluster, self.small, out, "--failpoint", "recorded:3")
        fired = until(lambda: (out / ".staging" / ".recorded.failpoint").exists(), 90)
        time.sleep(1.0)
        run.kill()
        code, _ = score(self.cluster, self.small, out)
        counts = oracle(self.small, out)
        same = digest(out) == self.whole(self.small)
        reliability("D4", ok=fired and code == 0 and holds(counts) and same, fired=fired, **counts, digest_equal=same)

    def d5_again(self) -> None:
        self.whole(self.small)
        out = self.folder / "small-whole"
        before = everything(out)
        same, output = score(self.cluster, self.small, out)
        changed = sum(before[name] != now for name, now in everything(out).items())
        other, refusal = score(self.cluster, self.small, out, "--attention", "none")
        changed += sum(before[name] != now for name, now in everything(out).items())
        ok = (same, other, changed) == (0, 2, 0) and "already complete" in output and "belongs to another job" in refusal
        reliability("D5", ok=ok, same_exit=same, other_exit=other, files_changed=changed)

    def d6_two_drivers(self) -> None:
        out = self.folder / "d6"
        runs = [Run(self.cluster, self.small, out) for _ in range(2)]
        codes = sorted(run.wait() for run in runs)
        output = [run.output() for run in runs]
        counts = oracle(self.small, out)
        clear = sum("is being written by another process" in each for each in output)
        reliability("D6", ok=codes == [0, 2] and clear == 1 and holds(counts), exits=codes, clear_messages=clear, **counts)

    def d8_disk_full(self) -> None:
        with small_disk(5) as disk:
            out = disk / "out"
            code, output = score(self.cluster, self.small, out)
            error = next((line for line in output.splitlines() if line.startswith("error:")), "")
            visible = len(list(out.rglob("*.parquet"))) + (out / "_SUCCESS").exists()
            print(error)
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            again, _ = score(self.cluster, self.small, out)
            counts = oracle(self.small, out)
            names_path, names_bytes = str(disk) in error or "part-" in error, "MB more" in error
            ok = (code, visible, again) == (5, 0, 0) and holds(counts) and names_path and names_bytes
            reliability("D8", ok=ok, exit=code, visible=visible, names_path=names_path, names_bytes=names_bytes, exit_after=again, **counts)

    def d16_poison(self) -> None:
        """Records that end, crash, hang or fail the process that scores them, in two shards."""
        dump, out, log = self.folder / "poison.parquet", self.folder / "d16", self.folder / "faults.log"
        words = dict(zip((100, 300, 1_200, 1_800), FAULTS, strict=True))
        write_dump(dump, 2_000, seed=5, extra={row: f"A film like {word}. It was fine." for row, word in words.items()})
        began = time.monotonic()
        through = ("tests.chaos.driver", "poison", str(log))
        flags = ("--stall-s", "25", "--max-bad-ratio", "0.05")
        code, _ = score(self.cluster, dump, out, *flags, through=through)
        tries = Counter(word for line in log.read_text().splitlines() for word in FAULTS if word in line)
        reasons = {line["row"]: line["reason"] for line in quarantine(out) if line["reason"] in ("poison", "failed")}
        right = sum(reasons.get(row) == ("failed" if word == "POISONMEMORY" else "poison") for row, word in words.items())
        counts = oracle(dump, out)
        reliability(
            "D16",
            ok=code == 0 and right == len(words) == len(reasons) and max(tries.values()) <= 3 and holds(counts, NUM_EMPTY + len(words)),
            right=f"{right}/{len(words)}",
            most_tries=max(tries.values()),
            tries=",".join(f"{word.removeprefix('POISON').lower()}:{number}" for word, number in sorted(tries.items())),
            seconds=time.monotonic() - began,
            **counts,
        )

    def d19_one_csv(self) -> None:
        """Two actors score one CSV file; the driver is killed half-way and the job resumes."""
        dump, out = self.folder / "dump.csv", self.folder / "d19"
        csv.write_csv(pq.read_table(self.dump), dump)
        run = Run(self.cluster, dump, out)
        # The first actor records shards before the second one has loaded its model.
        fired = until(lambda: len(scorers(self.cluster)) == 2 and len(list(out.glob(".staging/records/*.json"))) >= 4, DEADLINE_S)
        actors = len(scorers(self.cluster))
        run.kill()
        until(lambda: not scorers(self.cluster), 60)
        kept = len(list(out.glob(".staging/records/*.json")))
        redone = len(_begun(out, recorded=False))
        code, output = score(self.cluster, dump, out)
        counts = oracle(self.dump, out)
        ok = fired and code == 0 and holds(counts) and actors == 2 and redone <= 2 and "were complete and were kept" in output
        reliability("D19", ok=ok, actors=actors, shards_kept=kept, shards_redone=redone, **counts)

    def d20_input_changes(self) -> None:
        """While they are scored, a JSONL file is truncated, another is replaced by one of equal length, and a folder of texts grows."""
        texts = [review.text for review in planted.generate(NUM_SMALL, seed=4)]
        right, outputs = 0, []
        for name in ("truncated", "replaced", "grown"):
            source, out = self.folder / f"{name}.jsonl", self.folder / f"d20-{name}"
            if name == "grown":
                source = self.folder / name
                source.mkdir()
                for row, text in enumerate(texts):
                    (source / f"{row + 1:05d}.txt").write_text(text)
            else:
                source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            run = Run(self.cluster, source, out)
            until(lambda out=out: len(list(out.glob(".staging/attempts/*.json"))) >= 1, DEADLINE_S)
            if name == "grown":
                (source / "00000.txt").write_text("A new review.")
            else:
                content = source.read_bytes()
                source.write_bytes(content[: len(content) // 2] if name == "truncated" else content.swapcase())
            code = run.wait()
            is_clear = "changed or was removed while the job ran" in run.output() and "Traceback" not in run.output()
            right += code == 2 and is_clear and not (out / "_SUCCESS").exists() and not list(out.rglob("*.parquet"))
            outputs.append(f"{name}:{code}")
        reliability("D20", ok=right == 3, right=f"{right}/3", exits=",".join(outputs))

    def d21_ray_dies(self) -> None:
        """The raylet of the driver's node dies, then the GCS of another Ray: one line each, and the same command resumes on a third Ray."""
        right, outputs, slowest_s = 0, [], 0.0
        for part in ("raylet", "gcs_server"):
            out = self.folder / f"d21-{part}"
            code, output, took_s = ray_dies(part, self.small, out)
            errors = [line for line in output.splitlines() if line.startswith("error: ")]
            kept = len(list(out.glob(".staging/records/*.json")))
            again, _ = score(self.cluster, self.small, out)
            right += code == 6 and len(errors) == 1 and kept > 0 and again == 0 and holds(oracle(self.small, out))
            outputs.append(f"{part}:{code},{again}")
            slowest_s = max(slowest_s, took_s)
        reliability("D21", ok=right == 2, right=f"{right}/2", exits=";".join(outputs), slowest_exit_s=slowest_s)

    def _no_actor_left(self) -> bool:
        return until(lambda: not scorers(self.cluster), 20)

    def d18_interrupted(self) -> None:
        rows, output = [], []
        for name, number in (("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT)):
            out = self.folder / f"d18-{name}"
            run = Run(self.cluster, self.small, out)
            until(lambda out=out: len(list(out.glob(".staging/records/*.json"))) >= 2, 60)
            children = psutil.Process(run.process.pid).children(recursive=True)
            began = time.monotonic()
            run.kill(number)
            code = run.wait(30)
            took_s = time.monotonic() - began
            left = sum(child.is_running() for child in children) + (not self._no_actor_left())
            again, _ = score(self.cluster, self.small, out)
            output.append(f"{name}:{code},{again}")
            rows.append((code == 4 and left == 0 and again == 0 and holds(oracle(self.small, out)), took_s, left))
        out = self.folder / "d18-job"
        command = [RAY, "job", "submit", "--address", self.cluster.dashboard, "--no-wait", "--submission-id", "d18", "--"]
        command += [sys.executable, "-m", "jobs.score", "--input", str(self.small), "--out", str(out), "--num-actors", "2"]
        subprocess.run(command, check=True, capture_output=True)
        until(lambda: len(list(out.glob(".staging/records/*.json"))) >= 2, 90)
        subprocess.run([RAY, "job", "stop", "--address", self.cluster.dashboard, "d18"], check=True, capture_output=True)
        stopped = until(
            lambda: any(job.submission_id == "d18" and job.status == "STOPPED" for job in list_jobs(address=self.cluster.dashboard)), 30
        )
        left = not self._no_actor_left()
        again, _ = score(self.cluster, self.small, out)
        output.append(f"job:{'stopped' if stopped else 'not_stopped'},{again}")
        rows.append((stopped and not left and again == 0 and holds(oracle(self.small, out)), 0.0, int(left)))
        right = sum(row[0] for row in rows)
        reliability(
            "D18",
            ok=right == 3,
            right=f"{right}/3",
            exits=";".join(output),
            slowest_exit_s=max(row[1] for row in rows),
            left_behind=sum(row[2] for row in rows),
        )


RUNS: dict[str, Callable[[Batch], None]] = {
    "D1": Batch.d1_driver_killed,
    "D1-control": Batch.d1_control,
    "D2": Batch.d2_failpoints,
    "D3": Batch.d3_workers_killed,
    "D4": Batch.d4_double_fault,
    "D5": Batch.d5_again,
    "D6": Batch.d6_two_drivers,
    "D8": Batch.d8_disk_full,
    "D16": Batch.d16_poison,
    "D18": Batch.d18_interrupted,
    "D19": Batch.d19_one_csv,
    "D20": Batch.d20_input_changes,
    "D21": Batch.d21_ray_dies,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="seed of all random choices")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="runs to do")
    arguments = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job of a shell ignores SIGINT, and its drivers would inherit that
    print(f"seed {arguments.seed}; to repeat this run: --seed {arguments.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="han-chaos-"))
    try:
        with head() as cluster:
            batch = Batch(cluster, folder, arguments.seed)
            for name in arguments.only:
                RUNS[name](batch)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    close()


if __name__ == "__main__":
    main()
