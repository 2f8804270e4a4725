"""Score a dump of reviews into a folder, on many processes, each record once (see `publish` for the folder)."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import math
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import han
from han.config import ColumnsConfig, OutputConfig, ScoreConfig
from han.data import files, sources
from han.data.sources import Shard
from han.model import artifact
from han.score import publish, worker
from han.score.manifest import STAGING
from han.score.publish import Job, Part, PartPlan, Record
from han.score.worker import BatchScorer, Closed, Item, Report, Task, local_scorer
from han.types import TooManyBad, UserError

_SAMPLE = 512  # records that a dry run scores
_BYTES_HERE = 500_000_000  # of decompressed input: about 380,000 reviews as long as IMDB's, which two cores score in under a minute
_PARQUET_RATIO = 2  # text over its compressed column, IMDB
_RAY_S = 6.0  # until a Ray on this machine has started and its first actor begins to load
_MOST_IMPORTS_S = 6.0
_FORWARDING_CPUS = 0.01  # of an actor that forwards texts to other scorers


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job whose settings were checked against its input and its model, before any work."""

    out: str
    model: str
    fingerprint: str  # of the model
    columns: ColumnsConfig
    config: ScoreConfig
    output: OutputConfig
    items: tuple[Item, ...]
    shards: tuple[Shard, ...]  # all shards of the files and folders of the items; with a limit, not every shard has an item
    job: Job
    renamed: dict[str, str]  # names of input columns that the answers use, and the new names of those columns in the scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A finished folder of scores."""

    manifest: dict[str, Any]  # see `publish`
    rows_now: int  # scored or quarantined by this call; earlier calls did the others

    @property
    def num_labelled(self) -> int:
        """Scored records with a label that the model knows."""
        return int(self.manifest.get("agreement", {}).get("labelled", 0))

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled records whose label is the prediction; None without labels."""
        return self.manifest["agreement"]["agreeing"] / self.num_labelled if self.num_labelled else None

    @property
    def flagged(self) -> dict[str, int]:
        """Scored records with each flag, without flags that none has; empty if an older version did not count them."""
        return {flag: number for flag, number in self.manifest.get("flagged", {}).items() if number}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The expected time and output of a job, from a sample of its input."""

    num_rows: int
    is_exact: bool  # whether rows are known, not estimated from bytes
    num_sampled: int  # records
    num_quarantined: int  # of them
    num_actors: int
    rows_per_s: float  # of one process
    start_up_s: float  # until the first record is scored
    took_s: float  # of the whole job, start-up included
    output_mb: float


def plan(
    source: str, out: str, *, model: str, columns: ColumnsConfig, config: ScoreConfig, output: OutputConfig, limit: int | None
) -> Plan:
    """Check the input, the model and the settings; an error in them is a `UserError`. limit: number of records to score; None is all."""
    shards = sources.find_shards(source, columns, labelled=False)
    model = artifact.resolve(model)
    loaded = artifact.load(artifact.find(model))
    names = shards[0].schema.names
    missing = sorted(set(output.carry or ()) - set(names))
    if missing:
        raise UserError(f"{source} has no column {', '.join(missing)} to carry: it has {', '.join(names)}")
    job = publish.job_of(shards, model=loaded.fingerprint, columns=columns, output=output, limit=limit)
    used = None if output.carry is None else {*output.carry, columns.text, columns.review_id, columns.label}
    shards = shards if used is None else sources.select(shards, used)
    items = tuple(_items(shards, columns, limit))
    paths = {item.shard.path for item in items}
    return Plan(
        out=out,
        model=model,
        fingerprint=loaded.fingerprint,
        columns=columns,
        config=config,
        output=output,
        items=items,
        shards=tuple(shard for shard in shards if shard.path in paths),
        job=job,
        renamed=publish.renamed([name for name in names if name in (output.carry or names)], review_id=columns.review_id),
    )


def published(plan: Plan) -> Scores | None:
    """The scores, if the job is complete already; the scores of another job are a `UserError`."""
    if not publish.is_published(plan.out, plan.job):
        return None
    return Scores(manifest=publish.read_manifest(plan.out), rows_now=0)


def fits_here(plan: Plan) -> bool:
    """Whether the input is small enough for forked processes of this machine, which are faster than a Ray on this machine alone."""
    return (
        sys.platform == "linux"
        and not plan.config.gpu
        and plan.config.num_actors is None
        and not any("://" in place for place in (plan.out, *(item.shard.path for item in plan.items)))
        and _input_bytes([item.shard for item in plan.items]) <= _BYTES_HERE
    )


def score(
    plan: Plan,
    report: Report,
    *,
    num_processes: int | None = None,
    make_scorer: Callable[[Task], BatchScorer] = local_scorer,
    failpoint: str | None = None,
    settings: str | None = None,
) -> Scores:
    """Run the job; its folder must be visible to every node. The same call again resumes the job, or does nothing.

    num_processes: of this machine, without Ray (see `fits_here`); None: a pool of actors on Ray.

    Raises `TooManyBad` if more records are bad than `max_bad_ratio` allows; nothing is published, and finished parts stay staged. An input
    that changes during the run raises `InputChanged`, and nothing is published. A disk that fails raises its OSError. make_scorer: makes
    the scorer of an actor; failpoint: where a process kills itself (see `Failpoint`); settings: TOML that repeats the job.
    """
    with publish.claimed(plan.out, plan.job, failpoint=failpoint, settings=settings) as claim:
        if claim is None:
            return Scores(manifest=publish.read_manifest(plan.out), rows_now=0)
        # Actors get their shards in another way, so their plan is small.
        small = dataclasses.replace(plan, items=(), shards=(), job={**plan.job, "input": {}})
        task = _task(
            plan,
            sink=functools.partial(begin_part, plan=small, began=claim.began, run=secrets.token_hex(4), failpoint=failpoint),
            make_scorer=make_scorer,
        )
        finished = dict(claim.records)
        bad = bad_before = sum(record["quarantined"] for record in finished.values())
        rows_now = 0
        num_rows = _known_rows(plan)
        items = [item for item in plan.items if item.name not in finished]
        run = (
            functools.partial(worker.run_here, num_processes=num_processes) if num_processes else _on_ray(plan, num_finished=len(finished))
        )

        def shown(what: str, done: int, total: int, *, exact: bool = True, quarantined: int = 0) -> None:
            report(what, done, total, exact=exact, quarantined=bad - bad_before)

        try:
            for record, _ in run(items, task, shown):
                finished[record["part"]] = record
                rows_now += record["rows_in"]
                bad += record["quarantined"]
                if num_rows is not None and bad > plan.output.max_bad_ratio * num_rows:
                    break
            sources.refuse_changed(plan.shards)
        except UserError:
            if claim.is_new and not finished:
                publish.abandon(claim)
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(error.errno, f"{error.strerror}; {_space_needed(plan, list(finished.values()))}", plan.out) from None
            raise
        num_rows = num_rows or sum(record["rows_in"] for record in finished.values())
        if bad > plan.output.max_bad_ratio * num_rows:
            raise _too_many(plan, list(finished.values()), num_rows)
        records = [finished[item.name] for item in plan.items]
        return Scores(manifest=publish.publish(claim, records, {"model": plan.model, "rows_now": rows_now}), rows_now=rows_now)


def _on_ray(plan: Plan, *, num_finished: int) -> Callable[[Sequence[Item], Task, Report], Iterator[Closed]]:
    """`pool.run`, with metrics for Prometheus."""
    from han.cluster.metrics import Scoring
    from han.score import pool

    watched = Scoring(plan.out, model=plan.fingerprint, num_shards=len(plan.items))
    watched.shards(num_finished, {})

    def run(items: Sequence[Item], task: Task, report: Report) -> Iterator[Closed]:
        def both(what: str, done: int, total: int, *, exact: bool = True, quarantined: int = 0) -> None:
            watched.rows(done, total)
            report(what, done, total, exact=exact)

        for number, (record, content) in enumerate(pool.run(items, task, both), start=num_finished + 1):
            watched.shards(number, record["reasons"])
            yield record, content

    return run


def estimate(plan: Plan, *, num_cpus: int) -> Estimate:
    """Score records of the first, middle and last shard in this process, into a folder that is removed. num_cpus: of the job's Ray."""
    imports_s, loading = _imports_s(), time.monotonic()
    scorer = local_scorer(_task(plan, sink=functools.partial(begin_part, plan=plan, began="", run="", failpoint=None)))
    load_s = time.monotonic() - loading
    chosen = [plan.items[index] for index in sorted({0, len(plan.items) // 2, len(plan.items) - 1})] if plan.items else []
    rows_of_shard = math.ceil(_SAMPLE / max(1, len(chosen)))
    took_s, read_bytes = 0.0, 0
    with tempfile.TemporaryDirectory() as folder, publish.claimed(f"{folder}/sample", plan.job, failpoint=None) as claim:
        assert claim is not None  # noqa: S101 - the folder is new
        sink = functools.partial(
            begin_part, plan=dataclasses.replace(plan, out=f"{folder}/sample"), began=claim.began, run="", failpoint=None
        )
        records = []
        for item in chosen:
            began = time.monotonic()
            part = sink(item, scorer.labels)
            for batch in worker.first(sources.read(item.shard, plan.columns, batch_rows=_SAMPLE), rows_of_shard):
                reviews = sources.reviews(batch, item.shard, plan.columns, labelled=False)
                part.add(batch, reviews, scorer.score_flat(reviews["text"].to_pylist(), effects=plan.output.effects))
                read_bytes += batch.table.nbytes
            records.append(part.close()[0])
            took_s += time.monotonic() - began
    counts = publish.total(records)
    known = _known_rows(plan)
    if known is None and chosen == list(plan.items) and all(record["rows_in"] < rows_of_shard for record in records):
        known = counts["rows_in"]  # the sample is the whole input
    rows = max(1, counts["rows_in"])
    num_rows = known if known is not None else round(sum(_bytes_of(item.shard) for item in plan.items) * rows / max(1, read_bytes))
    num_actors = max(1, min(len(plan.items), plan.config.num_actors or num_cpus))
    rows_per_s = rows / max(took_s, 1e-9)
    start_up_s = load_s + imports_s + (0 if fits_here(plan) else _RAY_S)
    return Estimate(
        num_rows=num_rows,
        is_exact=known is not None,
        num_sampled=counts["rows_in"],
        num_quarantined=counts["quarantined"],
        num_actors=num_actors,
        rows_per_s=rows_per_s,
        start_up_s=start_up_s,
        took_s=start_up_s + _in_parallel(num_rows, len(plan.items), num_actors) / rows_per_s,
        output_mb=num_rows / rows * sum(file["bytes"] for record in records for file in record["files"]) / 1e6,
    )


def _in_parallel(num_rows: int, num_shards: int, num_actors: int) -> float:
    """Rows of the busiest actor, if shards are alike: an actor scores whole shards."""
    return num_rows * math.ceil(num_shards / num_actors) / num_shards if num_shards else 0.0


def _imports_s() -> float:
    """Time that this process took to import its modules, which an actor imports too: the CPU time before the sample was scored."""
    return min(time.process_time(), _MOST_IMPORTS_S)


def _input_bytes(shards: Sequence[Shard]) -> float:
    """Bytes of the input, decompressed; an estimate if its files are compressed."""
    total, counted = 0.0, set[str]()
    for shard in shards:
        if shard.members:
            total += sum(member.size for member in shard.members)
        elif shard.kind in ("jsonl", "csv") and shard.stop >= 0:
            total += _bytes_of(shard)
        elif shard.path not in counted:  # the shards of a Parquet file share its bytes
            counted.add(shard.path)
            total += _bytes_of(shard) * (_PARQUET_RATIO if shard.kind == "parquet" else 1)
    return total


def _bytes_of(shard: Shard) -> float:
    """Bytes of the shard's records, decompressed; an estimate if its file is compressed."""
    if shard.kind in ("jsonl", "csv") and shard.stop >= 0:
        return shard.stop - shard.start
    return files.size_of(shard.path) * files.expansion(shard.path)


def _known_rows(plan: Plan) -> int | None:
    known = [item.known_rows for item in plan.items]
    return None if None in known else sum(size or 0 for size in known)


def _too_many(plan: Plan, records: Sequence[Record], num_rows: int) -> TooManyBad:
    bad = publish.total(records)["quarantined"]
    return TooManyBad(
        f"{bad:,} of {num_rows:,} records cannot be scored ({publish.summary(publish.reasons(records))}), over --max-bad-ratio "
        f"{plan.output.max_bad_ratio:g}: nothing is published. They are in {plan.out}/{STAGING}/parts/*.jsonl.tmp; with a higher "
        f"ratio the same command resumes from here"
    )


def _space_needed(plan: Plan, records: Sequence[Record]) -> str:
    num_rows, done = _known_rows(plan), publish.total(records)["rows_in"]
    if not done:
        return "not one part fits: --dry-run True shows the size of all"
    parts_left = len(plan.items) - len(records)
    share = (num_rows - done) / done if num_rows else parts_left / len(records)
    return f"about {share * sum(file['bytes'] for record in records for file in record['files']) / 1e6:,.1f} MB more are needed"


def _task(plan: Plan, *, sink: Callable[[Item, tuple[str, ...]], Part], make_scorer: Callable[[Task], BatchScorer] = local_scorer) -> Task:
    return Task(
        model=plan.model,
        fingerprint=plan.fingerprint,
        columns=plan.columns,
        labelled=False,
        config=plan.config,
        sink=sink,
        make_scorer=make_scorer,
        cpus=1 if make_scorer is local_scorer else _FORWARDING_CPUS,
        survives_broken_files=plan.output.bad_files == "quarantine",
        effects=plan.output.effects if plan.output.attention != "none" else "none",
    )


def _items(shards: Sequence[Shard], columns: ColumnsConfig, limit: int | None) -> list[Item]:
    """The shards that hold the first `limit` records of the input. A shard has the same name in every run."""
    items: list[Item] = []
    for index, shard in enumerate(shards):
        if limit == 0:
            break
        num_rows = None
        if limit is not None:
            num_rows = sum(len(batch.rows) + len(batch.bad) for batch in worker.first(sources.read(shard, columns), limit))
            limit -= num_rows
        where = hashlib.sha256(f"{shard.path} {shard.group} {shard.start}".encode()).hexdigest()[:8]
        items.append(Item(name=f"part-{index:05d}-{where}", shard=shard, num_rows=num_rows))
    return items


def begin_part(item: Item, labels: tuple[str, ...], *, plan: Plan, began: str, run: str, failpoint: str | None) -> Part:
    metadata = {"model": plan.fingerprint, "version": han.__version__, "began": began, "settings": json.dumps(plan.job["settings"])}
    part = PartPlan(
        place=plan.out,
        name=item.name,
        file=item.shard.path,
        schema=item.shard.schema,
        labels=labels,
        columns=plan.columns,
        output=plan.output,
        metadata=metadata,
        run=run,
        failpoint=failpoint,
    )
    return Part(part)
