"""A dump of reviews to Parquet with attention: `han score --input 'dump/*.parquet' --out scores`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from han.config import ColumnsConfig, OutputConfig, ScoreConfig
from jobs import cli

if TYPE_CHECKING:
    from han.score.batch_job import Plan
    from han.score.worker import BatchScorer, Task

EXAMPLES = (
    "--input 'dump/*.parquet' --out scores",
    "--input reviews.csv --columns.text body --out scores --dry-run",
    "--input s3://bucket/dump --out s3://bucket/scores --model models/best --attention sentences",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Score every review of an input on all CPUs. The same command resumes an interrupted job, and does nothing once it is complete.

    Exit codes: 0 published; 2 user error; 3 more bad records than --max-bad-ratio; 4 interrupted, resumable; 5 disk or network failure;
    6 Ray stopped working, resumable.
    """

    input: str
    """reviews: a file, a glob or a folder of Parquet, CSV, JSONL (.gz, .zst) or .txt files, an aclImdb folder or archive, or `sample`"""
    out: str
    """the folder of scores, or s3://bucket/folder: new, or from the same command"""
    model: str = "imdb"
    """folder of a run, a sweep or an artifact; models/best after `promote`; or imdb, the shipped model"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    limit: int | None = None
    """score only this many records, the first ones"""
    via: Literal["pool", "serve"] = "pool"
    """where reviews are scored: in a pool of processes of this job, or in the replicas of the deployed service"""
    application: str = "han"
    """name of the service's application (--via serve)"""
    dry_run: bool = False
    """score a small sample, estimate records, time and size, and write nothing"""
    output: Annotated[OutputConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=OutputConfig)
    pool: Annotated[ScoreConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=ScoreConfig)


def main(job: Score, *, ask: Callable[[Task], BatchScorer] | None = None, failpoint: str | None = None) -> None:
    """ask: makes the scorer of an actor, unless `via` is serve; failpoint: where a process is to die (see `Failpoint`)."""
    out = cli.path(job.out, "--out")
    source = job.input if job.input == "sample" else cli.path(job.input, "--input")
    model = cli.model(job.model)
    cli.show(f"score {source} -> {out}", job)
    _check(source, out, model, job)
    print("loading the model", flush=True)
    with cli.loading():
        from han.score import batch_job, publish
        from han.score.manifest import SETTINGS
        from han.score.worker import local_scorer
        from jobs.progress import Rows

    plan = batch_job.plan(source, out, model=model, columns=job.columns, config=job.pool, output=job.output, limit=job.limit)
    if job.dry_run:
        _estimate(plan)
        return
    if job.via == "serve":
        from serve import batch_client

        ask = functools.partial(batch_client.ask, application=job.application)
    began = time.monotonic()
    scores = batch_job.published(plan)
    if scores is None:
        num_processes = _processes_here(plan) if ask is None else None
        if num_processes is None:
            cli.connect()
        settings = cli.settings_toml(replace(job, input=source, out=out, model=plan.model), SETTINGS)
        scores = batch_job.score(
            plan, Rows(), num_processes=num_processes, make_scorer=ask or local_scorer, failpoint=failpoint, settings=settings
        )
    took_s, counts = time.monotonic() - began, scores.manifest["counts"]
    for name, new in plan.renamed.items():
        print(f"the input's column {name} is now {new}, because {name} holds the prediction")
    if not scores.rows_now and counts["rows_in"]:
        print(f"already complete: {out} holds these scores since {scores.manifest['run']['finished']}; nothing was done")
    elif scores.rows_now < counts["rows_in"]:
        print(f"resumed: {counts['rows_in'] - scores.rows_now:,} of {counts['rows_in']:,} records were complete and were kept")
    reasons = publish.summary(scores.manifest["reasons"])
    quarantined = f"{counts['quarantined']:,} quarantined{f' ({reasons})' if reasons else ''}"
    print(f"{counts['rows_in']:,} records in = {counts['scored']:,} scored + {quarantined}; {counts['num_tokens']:,} tokens")
    if scores.flagged:
        flagged = [f"{number:,} {'is' if number == 1 else 'are'} {flag}" for flag, number in scores.flagged.items()]
        print(f"of {counts['scored']:,} scored records, {' and '.join(flagged)}")
    if scores.accuracy is not None:
        print(f"{scores.accuracy:.2%} of {scores.num_labelled:,} labelled records have the predicted label")
    if scores.rows_now:
        print(
            f"{took_s:,.1f} s including start-up, {scores.rows_now / took_s:,.0f} records a second; model {scores.manifest['job']['model']}"
        )
    print(f"next: read {out}/scores with any Parquet reader, or verify it: {cli.command('verify')} --out {out}")


def _processes_here(plan: Plan) -> int | None:
    """The number of processes that score the input without Ray; None if Ray was requested or the input is large."""
    from han.score import batch_job

    if cli.has_ray() or not batch_job.fits_here(plan):
        return None
    print("scoring on this machine without Ray (--num-actors N starts Ray)", flush=True)
    return cli.num_cpus()


def _check(source: str, out: str, model: str, job: Score) -> None:
    """Find errors in the input and in --out before torch and Ray are loaded."""
    from han.data import sources
    from han.model import artifact
    from han.score import publish
    from han.score.manifest import MANIFEST, STAGING

    if not job.dry_run:
        cli.check_out(out, STAGING, MANIFEST)
    shards = sources.find_shards(source, job.columns, labelled=False)
    if not job.dry_run:
        fingerprint = artifact.read_fingerprint(artifact.find(model))
        publish.check(out, publish.job_of(shards, model=fingerprint, columns=job.columns, output=job.output, limit=job.limit))


def _estimate(plan: Plan) -> None:
    from han.score import batch_job

    estimate = batch_job.estimate(plan, num_cpus=cli.num_cpus())
    about = "" if estimate.is_exact else "about "
    rows = f"{about}{estimate.num_rows:,} records in {cli.plural(len(plan.items), 'shard')}"
    print(f"{rows}; {estimate.num_sampled:,} were scored as a sample, {estimate.num_quarantined:,} of them quarantined")
    start_up = f"of which start-up takes {cli.duration(estimate.start_up_s)}"
    print(
        f"{estimate.rows_per_s:,.0f} records a second in each process: about {cli.duration(estimate.took_s)} "
        f"with --num-actors {estimate.num_actors}, {start_up}"
    )
    print(f"about {estimate.output_mb:,.1f} MB of Parquet; nothing was written")


def run() -> None:
    cli.run(Score, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
