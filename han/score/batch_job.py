"""A dump of reviews to a folder of scores, on many processes, once for every record (see `publish` for the folder)."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import math
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import han
from han.cluster.metrics import Scoring
from han.config import ColumnsConfig, OutputConfig, ScoreConfig, as_json
from han.data import files, sources
from han.data.sources import Shard
from han.model import artifact
from han.score import pool, publish
from han.score.manifest import STAGING
from han.score.pool import Asked, Item, Report, Task, local_scorer
from han.score.publish import Job, Part, Record
from han.types import Mistake, TooManyBad

_SAMPLE = 512  # records that a dry run scores
_ASKING_CPUS = 0.01  # of an actor that waits for others to score


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job that is known to fit its input, before any work."""

    out: str
    model: str
    fingerprint: str  # of the model
    columns: ColumnsConfig
    config: ScoreConfig
    output: OutputConfig
    items: tuple[Item, ...]
    job: Job
    renamed: dict[str, str]  # columns of the input whose names are needed here, and what they are called in the scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A finished folder of scores."""

    manifest: dict[str, Any]  # see `publish`
    rows_now: int  # scored or quarantined by this call; the others were there already


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job would take, from some records of its input."""

    num_rows: int
    is_exact: bool  # whether rows are known, not guessed from bytes
    num_sampled: int  # records
    num_quarantined: int  # of them
    rows_per_s: float  # of one process
    output_mb: float


def plan(
    source: str, out: str, *, model: str, columns: ColumnsConfig, config: ScoreConfig, output: OutputConfig, limit: int | None
) -> Plan:
    """Look at the input and the model; what is wrong with either is a `Mistake` here. limit: of records, from the first on; None is all."""
    shards = sources.find_shards(source, columns, labelled=False)
    model = artifact.resolve(model)
    loaded = artifact.load(artifact.find(model))
    names = shards[0].schema.names
    missing = sorted(set(output.carry or ()) - set(names))
    if missing:
        raise Mistake(f"{source} has no column {', '.join(missing)} to carry: it has {', '.join(names)}")
    deciding = {"attention": output.attention, "compression": output.compression, "rows_per_file": output.rows_per_file}
    settings = {**deciding, "carry": output.carry and sorted(output.carry), "columns": as_json(columns), "limit": limit}
    return Plan(
        out=out,
        model=model,
        fingerprint=loaded.fingerprint,
        columns=columns,
        config=config,
        output=output,
        items=tuple(_items(shards, columns, limit)),
        job={"model": loaded.fingerprint, "input": sources.identities(shards), "settings": settings},
        renamed=publish.renamed([name for name in names if name in (output.carry or names)], review_id=columns.review_id),
    )


def published(plan: Plan) -> Scores | None:
    """What is there already, if all of it is; another job's scores are a `Mistake`."""
    if not publish.is_published(plan.out, plan.job):
        return None
    return Scores(manifest=publish.read_manifest(plan.out), rows_now=0)


def score(plan: Plan, report: Report, *, ask: Callable[[Task], Asked] = local_scorer, failpoint: str | None = None) -> Scores:
    """Score what `plan` says into its folder, which every node sees; the same call again goes on, or does nothing.

    With more bad records than `max_bad_ratio` allows nothing is published and it raises `TooManyBad`; what is done stays staged. A disk
    that fails raises its OSError. ask: what the actors ask; failpoint: where a process is to die (see `Failpoint`).
    """
    with publish.claimed(plan.out, plan.job, failpoint=failpoint) as claim:
        if claim is None:
            return Scores(manifest=publish.read_manifest(plan.out), rows_now=0)
        # What travels to the actors is small: they know their shards by another way.
        small = dataclasses.replace(plan, items=(), job={**plan.job, "input": {}})
        task = _task(
            plan, sink=functools.partial(begin_part, plan=small, began=claim.began, run=secrets.token_hex(4), failpoint=failpoint), ask=ask
        )
        finished = dict(claim.records)
        rows_now, bad = 0, sum(record["quarantined"] for record in finished.values())
        num_rows = _known_rows(plan)
        watched = Scoring(plan.out, model=plan.fingerprint, num_shards=len(plan.items))
        watched.shards(len(finished), {})
        try:
            items = [item for item in plan.items if item.name not in finished]
            for record, _ in pool.run(items, task, _both(report, watched)):
                finished[record["part"]] = record
                watched.shards(len(finished), record["reasons"])
                rows_now += record["rows_in"]
                bad += record["quarantined"]
                if num_rows is not None and bad > plan.output.max_bad_ratio * num_rows:
                    break
        except Mistake:
            if claim.is_new and not finished:
                publish.abandon(claim)
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(error.errno, f"{error.strerror}; {_room_needed(plan, list(finished.values()))}", plan.out) from None
            raise
        num_rows = num_rows or sum(record["rows_in"] for record in finished.values())
        if bad > plan.output.max_bad_ratio * num_rows:
            raise _too_many(plan, list(finished.values()), num_rows)
        records = [finished[item.name] for item in plan.items]
        return Scores(manifest=publish.publish(claim, records, {"model": plan.model, "rows_now": rows_now}), rows_now=rows_now)


def _both(report: Report, watched: Scoring) -> Report:
    def both(what: str, done: int, total: int, *, exact: bool = True) -> None:
        watched.rows(done, total)
        report(what, done, total, exact=exact)

    return both


def estimate(plan: Plan) -> Estimate:
    """Score records of the first, middle and last shard in this process, into a folder that is thrown away."""
    scorer = local_scorer(_task(plan, sink=functools.partial(begin_part, plan=plan, began="", run="", failpoint=None)))
    chosen = [plan.items[index] for index in sorted({0, len(plan.items) // 2, len(plan.items) - 1})] if plan.items else []
    took_s, read_bytes = 0.0, 0
    with tempfile.TemporaryDirectory() as folder, publish.claimed(f"{folder}/sample", plan.job, failpoint=None) as claim:
        assert claim is not None  # noqa: S101 - the folder is new
        sink = functools.partial(
            begin_part, plan=dataclasses.replace(plan, out=f"{folder}/sample"), began=claim.began, run="", failpoint=None
        )
        records = []
        for item in chosen:
            part = sink(item, scorer.labels)
            for batch in pool.first(sources.read(item.shard, plan.columns, batch_rows=64), math.ceil(_SAMPLE / len(chosen))):
                reviews = sources.reviews(batch, item.shard, plan.columns, labelled=False)
                began = time.monotonic()
                part.add(batch, reviews, scorer.score_flat(reviews["text"].to_pylist()))
                took_s += time.monotonic() - began
                read_bytes += batch.table.nbytes
            records.append(part.close()[0])
    counts = publish.total(records)
    known = _known_rows(plan)
    rows = max(1, counts["rows_in"])
    num_rows = known if known is not None else round(sum(_bytes_of(item.shard) for item in plan.items) * rows / max(1, read_bytes))
    return Estimate(
        num_rows=num_rows,
        is_exact=known is not None,
        num_sampled=counts["rows_in"],
        num_quarantined=counts["quarantined"],
        rows_per_s=rows / max(took_s, 1e-9),
        output_mb=num_rows / rows * sum(file["bytes"] for record in records for file in record["files"]) / 1e6,
    )


def _bytes_of(shard: Shard) -> float:
    """Of the shard's records, before compression: a guess where its file is compressed."""
    if shard.kind == "jsonl" and shard.stop >= 0:
        return shard.stop - shard.start
    return files.size_of(shard.path) * files.expansion(shard.path)


def _known_rows(plan: Plan) -> int | None:
    known = [item.known_rows for item in plan.items]
    return None if None in known else sum(size or 0 for size in known)


def _too_many(plan: Plan, records: Sequence[Record], num_rows: int) -> TooManyBad:
    bad = publish.total(records)["quarantined"]
    return TooManyBad(
        f"{bad:,} of {num_rows:,} records cannot be scored ({publish.told(publish.reasons(records))}), over --max-bad-ratio "
        f"{plan.output.max_bad_ratio:g}: nothing is published. They are in {plan.out}/{STAGING}/parts/*.jsonl.tmp; with a higher "
        f"ratio the same command goes on from here"
    )


def _room_needed(plan: Plan, records: Sequence[Record]) -> str:
    num_rows, done = _known_rows(plan), publish.total(records)["rows_in"]
    if not done:
        return "not one part fits: see --dry-run for the size of all"
    parts_left = len(plan.items) - len(records)
    share = (num_rows - done) / done if num_rows else parts_left / len(records)
    return f"some {share * sum(file['bytes'] for record in records for file in record['files']) / 1e6:,.1f} MB more are needed"


def _task(plan: Plan, *, sink: Callable[[Item, tuple[str, ...]], Part], ask: Callable[[Task], Asked] = local_scorer) -> Task:
    return Task(
        model=plan.model,
        fingerprint=plan.fingerprint,
        columns=plan.columns,
        labelled=False,
        config=plan.config,
        sink=sink,
        ask=ask,
        cpus=1 if ask is local_scorer else _ASKING_CPUS,
        goes_on=plan.output.bad_files == "quarantine",
    )


def _items(shards: Sequence[Shard], columns: ColumnsConfig, limit: int | None) -> list[Item]:
    """The shards that hold the first `limit` records of the input, named alike whenever the job runs."""
    items: list[Item] = []
    for index, shard in enumerate(shards):
        if limit == 0:
            break
        num_rows = None
        if limit is not None:
            num_rows = sum(len(batch.rows) + len(batch.bad) for batch in pool.first(sources.read(shard, columns), limit))
            limit -= num_rows
        where = hashlib.sha256(f"{shard.path} {shard.group} {shard.start}".encode()).hexdigest()[:8]
        items.append(Item(name=f"part-{index:05d}-{where}", shard=shard, num_rows=num_rows))
    return items


def begin_part(item: Item, labels: tuple[str, ...], *, plan: Plan, began: str, run: str, failpoint: str | None) -> Part:
    return Part(
        plan.out,
        item.name,
        file=item.shard.path,
        schema=item.shard.schema,
        labels=labels,
        text_column=plan.columns.text,
        id_column=plan.columns.review_id,
        output=plan.output,
        metadata={"model": plan.fingerprint, "version": han.__version__, "began": began, "settings": json.dumps(plan.job["settings"])},
        run=run,
        failpoint=failpoint,
    )
