"""A dump of reviews to a folder of scores, on many processes, once for every row (see `publish` for the folder)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs

from han import artifact, publish, ray_pool, sources
from han.config import ColumnsConfig, ScoreConfig, as_json, read_json
from han.publish import Job, Part
from han.ray_data import Report
from han.ray_pool import Item, Task
from han.sources import Shard
from han.types import AttentionDetail, Mistake


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A finished folder of scores."""

    manifest: dict[str, Any]  # see `publish`
    renamed: dict[str, str]  # columns of the input whose names are needed here, and what they are called now
    rows_now: int  # scored or quarantined by this call; the others were there already


def score(source: str, out: Path, *, model: str, columns: ColumnsConfig, config: ScoreConfig, limit: int | None, report: Report) -> Scores:
    """Score the reviews of `source` into `out`, a folder that every node sees; the same call again goes on, or does nothing.

    limit: of records, from the input's first on; None is all.
    """
    shards = sources.find_shards(source, columns, labelled=False)
    loaded = artifact.load(artifact.find(model))
    settings = {"attention": config.attention, "columns": as_json(columns), "limit": limit}
    job: Job = {"model": loaded.fingerprint, "input": _listing(shards), "settings": settings}
    items = _items(shards, columns, limit)
    begins_here = not (out / ".staging").exists()
    finished = publish.begin(out, job)
    renamed = publish.renamed(shards[0].schema.names, review_id=columns.review_id)
    if finished is None:
        return Scores(manifest=read_json(out / "_manifest.json"), renamed=renamed, rows_now=0)
    task = Task(
        model=model,
        fingerprint=loaded.fingerprint,
        columns=columns,
        labelled=False,
        config=config,
        sink=functools.partial(_part, out=out, attention=config.attention, job=job),
    )
    rows_now = 0
    try:
        for record, _ in ray_pool.run([item for item in items if item.name not in finished], task, report):
            finished[record["part"]] = record
            rows_now += record["rows_in"]
    except Mistake:
        if begins_here:
            publish.abandon(out)
        raise
    manifest = publish.publish(out, job, [finished[item.name] for item in items])
    return Scores(manifest=manifest, renamed=renamed, rows_now=rows_now)


def _listing(shards: Sequence[Shard]) -> dict[str, list[int]]:
    """Size and time of change of every file, so that a changed input is another job."""
    listing = {}
    for path in sorted({shard.path for shard in shards}):
        system, name = pyarrow.fs.FileSystem.from_uri(path) if "://" in path else (pyarrow.fs.LocalFileSystem(), path)
        info = system.get_file_info(name)
        listing[path] = [info.size, info.mtime_ns]
    return listing


def _items(shards: Sequence[Shard], columns: ColumnsConfig, limit: int | None) -> list[Item]:
    """The shards that hold the first `limit` records of the input, named alike whenever the job runs."""
    items: list[Item] = []
    for index, shard in enumerate(shards):
        if limit == 0:
            break
        num_rows = None
        if limit is not None:
            num_rows = sum(len(batch.rows) + len(batch.bad) for batch in ray_pool.first(sources.read(shard, columns), limit))
            limit -= num_rows
        where = hashlib.sha256(f"{shard.path} {shard.group} {shard.start}".encode()).hexdigest()[:8]
        items.append(Item(name=f"part-{index:05d}-{where}", shard=shard, num_rows=num_rows))
    return items


def _part(item: Item, labels: tuple[str, ...], *, out: Path, attention: AttentionDetail, job: Job) -> Part:
    return Part(out, item.name, file=item.shard.path, schema=item.shard.schema, labels=labels, attention=attention, job=job)
