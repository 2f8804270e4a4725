"""A scoring job without Ray: the same reader, `Scorer` and commit, one shard after another in one process that tests may kill."""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from han.config import ColumnsConfig, OutputConfig, ScoreConfig
from han.data import sources
from han.model import artifact
from han.score import batch_job, publish
from han.score.batch_job import Plan
from han.score.scorer import Scored, Scorer

LABELS = ("negative", "positive")  # of the tiny model


def plan(source: str, out: str, model: Path, **options: Any) -> Plan:
    return batch_job.plan(
        source, out, model=str(model), columns=ColumnsConfig(), config=ScoreConfig(), output=OutputConfig(**options), limit=None
    )


def commit(job: Plan, answer: Callable[[list[str]], Scored], *, failpoint: str | None = None) -> dict[str, Any] | None:
    """Do the work of `batch_job.score` in this process. Returns the manifest, or None if the job was already complete."""
    with publish.claimed(job.out, job.job, failpoint=failpoint) as claim:
        if claim is None:
            return None
        records = dict(claim.records)
        for item in job.items:
            if item.name not in records:
                part = batch_job.begin_part(item, LABELS, plan=job, began=claim.began, run="test", failpoint=failpoint)
                for batch in sources.read(item.shard, job.columns):
                    reviews = sources.reviews(batch, item.shard, job.columns, labelled=False)
                    part.add(batch, reviews, answer(reviews["text"].to_pylist()))
                records[item.name] = part.close()[0]
        sources.refuse_changed(job.shards)
        return publish.publish(claim, [records[item.name] for item in job.items], {})


def killed(work: Callable[[], object]) -> bool:
    """Do the work in a forked process and return whether it was killed. A failure of the process is an error here."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the forked process failed"
        return False
    return True


def precomputed(job: Plan) -> Callable[[list[str]], Scored]:
    """The model's scores of the job's batches, computed before a fork, because torch must not be used in a forked process."""
    scorer = Scorer(artifact.load(artifact.find(job.model)))
    batches = [
        sources.reviews(batch, item.shard, job.columns, labelled=False)["text"].to_pylist()
        for item in job.items
        for batch in sources.read(item.shard, job.columns)
    ]
    known = {tuple(texts): scorer.score_flat(texts) for texts in batches}
    return lambda texts: known[tuple(texts)]


def digest(out: str | Path) -> int:
    """The sum of the hashes of all rows, independent of their order. Scores are rounded to 1e-6."""
    table = pq.read_table(out).drop_columns(["model"])
    total = 0
    for row in table.to_pylist():
        numbers = [row["probability"], *row["probabilities"].values()]
        for sentence in row["sentences"] or ():
            numbers += [sentence["attention"], *(word["attention"] for word in sentence["words"] or ())]
        spans = [(s["start"], s["end"], [(w["start"], w["end"]) for w in s["words"] or ()]) for s in row["sentences"] or ()]
        rounded = (row["review_id"], row["text"], row["label"], np.round(numbers, 6).tolist(), spans)
        total += int.from_bytes(hashlib.sha256(repr(rounded).encode()).digest(), "big")
    return total % (1 << 256)
