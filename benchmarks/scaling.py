"""Measure scaling and write docs/scale.md: `python -m benchmarks.scaling [--data FILE]` (make bench-scaling, under 8 minutes).

It measures scoring and training on 1, 2 and 4 processes, and the cost of a shard for the driver, and writes benchmarks/scaling.json. The
model of benchmarks/plan.py is not fitted to held-out runs; they show its error. `--render` writes the page again without measuring.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import plan as model
from benchmarks.numbers import Number, record
from benchmarks.plan import ScoreRun, TrainRun
from benchmarks.scale_page import render
from han.config import ColumnsConfig, ModelConfig, OutputConfig, PrepareConfig, ScoreConfig, TrainConfig, VectorsConfig
from han.data import sources
from han.data.samples import planted
from han.model import artifact
from han.score import batch_job, publish
from han.score.scorer import Scorer, to_arrow
from han.train.encoded import read_encoded
from han.train.prepare import prepare
from han.train.trainer import fit
from tests.chaos.repeated import Repeated
from tests.helpers.cluster import head

ROOT = Path(__file__).parents[1]
MEASURED, PRICES, PAGE = ROOT / "benchmarks" / "scaling.json", ROOT / "benchmarks" / "prices.json", ROOT / "docs" / "scale.md"
COLUMNS = ColumnsConfig()

# actors, reviews, shards, held out. Shards of one review show the cost of a shard.
SCORING = [
    (1, 1_500, 4, False),
    (1, 4_500, 4, False),
    (1, 300, 300, False),
    (2, 6_000, 8, False),
    (2, 12_000, 6, True),
    (4, 6_000, 8, True),
    (2, 3_000, 150, True),
    (1, 3_000, 40, True),
]
# workers, tokens a step, held out
TRAINING = [(1, 16_384, False), (1, 4_096, False), (2, 16_384, False), (4, 16_384, True), (2, 8_192, True), (1, 8_192, True)]
MICRO_SHARDS = 300


class Busy(Repeated):
    """CPU seconds of this process and the head's processes by kind, from `begin` to the end of the body, polled ten times a second."""

    every_s = 0.1

    def __init__(self) -> None:
        self._begun = False
        self._seconds: dict[tuple[str, int], float] = {}

    def begin(self) -> None:
        """Start counting. CPU time before this call (start of processes, import of torch) is left out."""
        if not self._begun:
            self._own = time.process_time()
            self._before = {process.pid: sum(process.cpu_times()[:2]) for process in _descendants()}
            self._begun = True

    def __exit__(self, *_: object) -> None:
        self.begin()
        super().__exit__()
        self.by_kind: dict[str, float] = {"driver": time.process_time() - self._own}
        for (kind, _), seconds in self._seconds.items():
            self.by_kind[kind] = max(self.by_kind.get(kind, 0.0), seconds)

    def look(self) -> None:
        for process in _descendants() if self._begun else []:
            try:
                kind, spent = _kind(process.cmdline()), sum(process.cpu_times()[:2])
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if kind:
                self._seconds[kind, process.pid] = spent - self._before.get(process.pid, 0.0)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _kind(command: list[str]) -> str | None:
    """The kind of a process of the head whose work grows with the shards, else None. Scorers are spread over all nodes."""
    line = " ".join(command)
    return next(
        (name for mark, name in (("ray::_Counter", "counter"), ("raylet/raylet", "raylet"), ("gcs_server", "gcs")) if mark in line), None
    )


def write_dump(folder: Path, texts: Sequence[str], *, reviews: int, shards: int) -> str:
    """Write files of equal size, one for each shard."""
    folder.mkdir()
    for shard in range(shards):
        some = [texts[row % len(texts)] for row in range(shard * reviews // shards, (shard + 1) * reviews // shards)]
        pq.write_table(pa.table({"text": some}), folder / f"{shard:05d}.parquet", row_group_size=max(1, len(some)))
    return str(folder)


def measure_scoring(
    folder: Path, texts: Sequence[str], runs: Sequence[tuple[int, int, int, bool]]
) -> tuple[list[ScoreRun], list[dict[str, float]]]:
    """Time each run from its plan to its published folder, and the CPU seconds of the head's processes."""
    measured, busy = [], []
    for number, (actors, reviews, shards, held_out) in enumerate([(1, 64, 2, False), *runs]):  # the first run only fills caches
        dump = write_dump(folder / f"dump-{number}", texts, reviews=reviews, shards=shards)
        with Busy() as spent:
            began = time.monotonic()
            plan = _plan(dump, folder / f"scores-{number}", actors)
            batch_job.score(plan, lambda *_, **__: spent.begin())
            seconds = time.monotonic() - began
        if number:
            measured.append(ScoreRun(actors=actors, reviews=reviews, shards=shards, seconds=seconds, held_out=held_out))
            busy.append(spent.by_kind | {"shards": shards})
            print(f"scoring: {actors} processes, {reviews:,} reviews, {shards} shards: {seconds:.1f} s", spent.by_kind, flush=True)
    return measured, busy


def _plan(dump: str, out: Path, actors: int) -> batch_job.Plan:
    config, output = ScoreConfig(num_actors=actors), OutputConfig()
    return batch_job.plan(dump, str(out), model="imdb", columns=COLUMNS, config=config, output=output, limit=None)


def measure_driver(folder: Path, shards: int) -> dict[str, float]:
    """Bytes and seconds that a shard of one short review costs the driver, measured in this process."""
    from ray import cloudpickle

    dump = write_dump(folder / "micro", ["Good film."], reviews=shards, shards=shards)
    single = write_dump(folder / "single", ["Good film."], reviews=1, shards=1)
    sources.find_shards(single, COLUMNS, labelled=False)  # the first call imports modules
    began = time.monotonic()
    sources.find_shards(dump, COLUMNS, labelled=False)
    plan_s = time.monotonic() - began
    # the first call loads what stays in memory, and all of them hold the model
    held_bytes = [_held_bytes(partial(_plan, source, folder / "micro-scores", 1)) for source in (single, single, dump)]
    plan = _plan(dump, folder / "micro-scores", 1)
    scorer = Scorer(artifact.load(artifact.find("imdb")))
    with publish.claimed(plan.out, plan.job, failpoint=None) as claim:
        assert claim is not None  # noqa: S101 - the folder is new
        begin = partial(batch_job.begin_part, plan=plan, began=claim.began, run="", failpoint=None)
        records = []
        for item in plan.items:
            part = begin(item, scorer.labels)
            for batch in sources.read(item.shard, COLUMNS):
                reviews = sources.reviews(batch, item.shard, COLUMNS, labelled=False)
                part.add(batch, reviews, scorer.score_flat(reviews["text"].to_pylist()))
            records.append(part.close()[0])
        lines = [json.dumps(each) for each in records]
        record_bytes = _held_bytes(lambda: [json.loads(line) for line in lines])
        began = time.monotonic()
        publish.publish(claim, records, {})
        publish_s = time.monotonic() - began
    manifest_bytes = (folder / "micro-scores" / "_manifest.json").stat().st_size
    return {
        "shards": shards,
        "record_bytes": sum(map(len, lines)) / shards,
        "items_bytes": len(cloudpickle.dumps(list(plan.items))) / shards,
        "manifest_bytes": manifest_bytes / shards,
        "driver_bytes": (held_bytes[2] - held_bytes[1] + 2 * record_bytes + 2 * manifest_bytes)
        / shards,  # the manifest holds the records again, and as text
        "plan_s": plan_s / shards,
        "publish_s": publish_s / shards,
    }


def _held_bytes(make: Callable[[], object]) -> int:
    """Bytes that Python allocates for the object that `make` returns."""
    tracemalloc.start()
    result = make()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del result
    return held


def dispatch_s(busy: Sequence[dict[str, float]]) -> tuple[float, str]:
    """CPU seconds that a shard costs the busiest process of the head, and its kind, from the run with the most shards."""
    most = max(busy, key=lambda each: each["shards"])
    return max((most[kind] / most["shards"], kind) for kind in most if kind != "shards")


def measure_bytes(texts: Sequence[str]) -> dict[str, Any]:
    """Bytes of Parquet for a review: its text (input), and its text with scores (output) for each detail of attention."""
    scorer = Scorer(artifact.load(artifact.find("imdb")))
    scored = scorer.score_flat(texts)
    table = pa.table({"text": list(texts)})

    def size(part: pa.Table) -> float:
        sink = pa.BufferOutputStream()
        pq.write_table(part, sink, compression="zstd")
        return sink.getvalue().size / len(texts)

    out = {
        detail: size(table) + size(to_arrow(scored, labels=scorer.labels, fingerprint=scorer.fingerprint, attention=detail))
        for detail in ("words", "sentences", "none")
    }
    return {"input_bytes": size(table), "output_bytes": out}


def measure_training(folder: Path, texts: Sequence[str], reviews: int, runs: Sequence[tuple[int, int, bool]]) -> list[TrainRun]:
    """Time the second of two epochs of each run; the first includes start-up."""
    labelled = pa.table({"text": [texts[row % len(texts)] for row in range(reviews)], "label": ["ab"[row % 2] for row in range(reviews)]})
    pq.write_table(labelled, folder / "train.parquet")
    config = PrepareConfig(vectors=VectorsConfig(source="random"))
    prepare(str(folder / "train.parquet"), folder / "data", config, dev_ids=None, report=lambda what, done, total: None)
    data = read_encoded(folder / "data")
    tokens = sum(
        len(row) for name in data.files["train"] for row in pq.read_table(folder / "data" / "train" / name)["token_ids"].to_pylist()
    )
    measured = []
    for number, (workers, batch_tokens, held_out) in enumerate(runs):
        settings = TrainConfig(num_workers=workers, batch_tokens=batch_tokens, epochs=2)
        second = fit(folder / "data", folder / f"run-{number}", ModelConfig(), settings).history[1]
        count = data.num_reviews("train")
        run = TrainRun(
            workers=workers, batch_tokens=batch_tokens, reviews=count, tokens=tokens, seconds=second["train_s"], held_out=held_out
        )
        measured.append(run)
        print(f"training: {workers} workers, {batch_tokens:,} tokens a step: {second['reviews_per_s']:.0f} reviews/s", flush=True)
    return measured


def measure(data: Path | None, share: float, folder: Path) -> dict[str, Any]:
    """All measurements, in one Ray. share: share of the reviews of each run that is used."""
    texts = pq.read_table(data, columns=["text"])["text"].to_pylist() if data else [each.text for each in planted.generate(5_000, seed=1)]
    texts = texts[:: max(1, len(texts) // 5_000)][:5_000]  # spread over the whole file, which may be sorted
    load = os.getloadavg()[0]
    os.environ["PYTHONPATH"] = str(ROOT)
    micro = measure_driver(folder, math.ceil(MICRO_SHARDS * share))
    sizes = measure_bytes(texts[:1_000])
    with head(num_cpus=6) as cluster:
        os.environ["RAY_ADDRESS"] = cluster.address
        scoring, busy = measure_scoring(folder, texts, [_smaller(run, share) for run in SCORING])
        training = measure_training(folder, texts, math.ceil(1_800 * share), TRAINING)
    micro["dispatch_s"], busiest = dispatch_s(busy)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "data": data.name if data else "generated reviews",
        "command": "make bench-scaling" + (f" ARGS='--data {data.name}'" if data else ""),
        "cores": os.cpu_count(),
        "load_before": load,
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "scoring": model.as_json(scoring),
        "training": model.as_json(training),
        "driver": micro,
        "busiest": busiest,
        **sizes,
    }


def _smaller(run: tuple[int, int, int, bool], share: float) -> tuple[int, int, int, bool]:
    actors, reviews, shards, held_out = run
    return actors, max(shards, int(reviews * share)), shards, held_out


def write_page() -> None:
    measured, prices = json.loads(MEASURED.read_text(encoding="utf-8")), json.loads(PRICES.read_text(encoding="utf-8"))
    PAGE.write_text(render(measured, prices), encoding="utf-8")


def write_numbers() -> None:
    """Record the two figures of the page that docs/numbers.md repeats."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    scoring, runs, training, epochs = model.as_measured(measured)
    for name, what, errors in (
        ("70-scale-scoring", "scoring", [(run.held_out, error) for run, _, error in model.score_errors(scoring, runs)]),
        ("71-scale-training", "training", [(run.held_out, error) for run, _, error in model.train_errors(training, epochs)]),
    ):
        held = [error for is_held_out, error in errors if is_held_out]
        record(
            Number(
                name=name,
                what=f"the model of {what} in docs/scale.md: largest error on {len(held)} held-out runs ({measured['data']})",
                value=f"{max(map(abs, held)):.0%}",
                command=measured["command"],
                note=", ".join(f"{error:+.0%}" for error in held),
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="Parquet with a column text; without it, reviews are generated")
    parser.add_argument("--share", type=float, default=1.0, help="share of the reviews of each run; below 1 to try this script")
    parser.add_argument("--render", action="store_true", help="write docs/scale.md from benchmarks/scaling.json without measuring")
    arguments = parser.parse_args()
    if not arguments.render:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="han-scale-") as folder:
            measured = measure(arguments.data, arguments.share, Path(folder))
        measured["took_s"] = time.monotonic() - began
        MEASURED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        write_numbers()
        print(f"{measured['took_s']:.0f} s")
    write_page()
    print(f"next: read {PAGE.relative_to(ROOT)}, then make numbers")


if __name__ == "__main__":
    main()
