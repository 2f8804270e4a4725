"""A dump of reviews to Parquet with attention: `python -m jobs.score --input 'dump/*.parquet' --out scores`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from han.config import ColumnsConfig, OutputConfig, ScoreConfig, as_json
from han.score import batch_job, publish
from han.score.batch_job import Plan
from han.score.pool import Asked, Task, local_scorer
from jobs import cli
from jobs.progress import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Score every review of an input on all CPUs. The same command goes on where a killed one stopped, and does nothing once it is over.

    Exit codes: 0 published; 2 a mistake in the input or the settings; 3 more bad records than --max-bad-ratio; 4 interrupted, to be
    gone on with; 5 the disk or the network failed.
    """

    input: str
    """reviews: a file, a glob or a folder of Parquet, CSV or JSONL (.gz, .zst) or of texts, an aclImdb folder or archive, or `sample`"""
    out: str
    """the folder of scores, or s3://bucket/folder: new, or what the same command left"""
    model: str = "imdb"
    """the folder of a run, a sweep or an artifact, models/best once one is promoted, or imdb, the shipped model"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    limit: int | None = None
    """score only so many records, from the first on"""
    via: Literal["pool", "serve"] = "pool"
    """who scores: a pool of processes of this job's own, or the replicas of the application that serves requests on this Ray"""
    application: str = "han"
    """its name (--via serve)"""
    dry_run: bool = False
    """score a small sample, say how many records there are and what all of them would take, and write nothing"""
    output: Annotated[OutputConfig, tyro.conf.arg(name="")] = field(default_factory=OutputConfig)
    pool: Annotated[ScoreConfig, tyro.conf.arg(name="")] = field(default_factory=ScoreConfig)


def main(job: Score, *, ask: Callable[[Task], Asked] = local_scorer, failpoint: str | None = None) -> None:
    """ask: who is asked, in every actor, unless `via` says otherwise; failpoint: where a process is to die (see `Failpoint`)."""
    if job.via == "serve":
        from serve import batch_client  # Serve takes a second to load

        ask = functools.partial(batch_client.ask, application=job.application)
    out = cli.path(job.out, "--out")
    source = job.input if job.input == "sample" else cli.path(job.input, "--input")
    model = job.model if job.model == "imdb" else cli.path(job.model, "--model")
    cli.show(f"score {source} -> {out}", as_json(job))
    plan = batch_job.plan(source, out, model=model, columns=job.columns, config=job.pool, output=job.output, limit=job.limit)
    if job.dry_run:
        _estimate(plan)
        return
    began = time.monotonic()
    scores = batch_job.published(plan)
    if scores is None:
        cli.connect()
        began = time.monotonic()
        scores = batch_job.score(plan, Rows(), ask=ask, failpoint=failpoint)
    took_s, counts = time.monotonic() - began, scores.manifest["counts"]
    for name, new in plan.renamed.items():
        print(f"the input's column {name} is now {new}: {name} is this model's")
    if not scores.rows_now and counts["rows_in"]:
        print(f"already complete: {out} holds these scores since {scores.manifest['run']['finished']}; nothing was done")
    elif scores.rows_now < counts["rows_in"]:
        print(f"{counts['rows_in'] - scores.rows_now:,} of {counts['rows_in']:,} records were done before, and are not done again")
    reasons = publish.told(scores.manifest["reasons"])
    quarantined = f"{counts['quarantined']:,} quarantined{f' ({reasons})' if reasons else ''}"
    print(f"{counts['rows_in']:,} records in = {counts['scored']:,} scored + {quarantined}; {counts['num_tokens']:,} tokens")
    if scores.rows_now:
        print(f"{took_s:,.1f} s, {scores.rows_now / took_s:,.0f} a second with start-up; model {scores.manifest['job']['model']}")
    print(f"next: read {out}/scores with any reader of Parquet, check it: python -m jobs.verify --out {out}")


def _estimate(plan: Plan) -> None:
    found = batch_job.estimate(plan)
    num_actors = min(len(plan.items), plan.config.num_actors or cli.num_cpus())
    about = "" if found.is_exact else "about "
    rows = f"{about}{found.num_rows:,} records in {len(plan.items):,} shards"
    took_s = found.num_rows / found.rows_per_s / max(1, num_actors)
    print(f"{rows}; {found.num_sampled:,} were scored now, {found.num_quarantined:,} of them quarantined")
    print(f"{found.rows_per_s:,.0f} a second and process: some {cli.duration(took_s)} on {num_actors} processes, and start-up")
    print(f"some {found.output_mb:,.1f} MB of Parquet; nothing was written")


if __name__ == "__main__":
    cli.run(Score, functools.partial(main, failpoint=cli.hidden("--failpoint")))
