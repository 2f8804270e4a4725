"""Scores on disk: each part is staged, recorded once it is whole, and all of them are published at once.

    out/scores/part-*.parquet     the input's columns, then `score.schema`
    out/_quarantine/part-*.jsonl  what was not scored, and why
    out/_manifest.json            the job and its counts: every row of the input is either scored or quarantined
    out/_SUCCESS                  written last
    out/.staging/                 until then: job.json, unfinished files, finished parts and a record of each

A part is finished when its record is there, so the same job, started again, goes on with the others. Readers of Parquet folders pass over
names that begin with `_` or `.`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from han import score
from han.config import differences, read_json
from han.score import Scored
from han.sources import Batch
from han.types import AttentionDetail, Mistake

Job = dict[str, Any]  # JSON: `model` (fingerprint), `input`, `settings`: equal jobs write equal scores
Record = dict[str, Any]  # JSON: part, rows_in, scored, quarantined, reasons, num_tokens


def begin(out: Path, job: Job) -> dict[str, Record] | None:
    """Claim `out` for `job`: the records of its finished parts by name, or None if everything is published already.

    A folder that holds another job, or anything else, is a `Mistake`, and stays as it was.
    """
    staging = out / ".staging"
    if (out / "_SUCCESS").exists():
        _check_same(out, job, read_json(out / "_manifest.json")["job"])
        shutil.rmtree(staging, ignore_errors=True)  # left by a crash after the last word
        return None
    if (staging / "job.json").exists():
        _check_same(out, job, read_json(staging / "job.json"))
    elif out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {".staging"}):
        raise Mistake(f"--out {out} holds something else: give a new folder")
    for name in ("unfinished", "records", "scores", "_quarantine"):
        if not (out / name).exists():  # `publish` may have been killed between its renames
            (staging / name).mkdir(parents=True, exist_ok=True)
    _write(staging / "job.json", json.dumps(job))
    records = [read_json(path) for path in (staging / "records").glob("*.json")]
    return {record["part"]: record for record in records}


def abandon(out: Path) -> None:
    """Remove what `begin` and the parts made; nothing of it was published."""
    shutil.rmtree(out / ".staging")
    if not any(out.iterdir()):
        out.rmdir()


def publish(out: Path, job: Job, records: Sequence[Record]) -> dict[str, Any]:
    """Make the finished parts visible; returns the manifest. After a crash the same call goes on where it stopped."""
    staging = out / ".staging"
    scores = staging / "scores" if (staging / "scores").exists() else out / "scores"
    for record in records:
        found = pq.read_metadata(scores / f"{record['part']}.parquet").num_rows
        if found != record["scored"] or record["rows_in"] != record["scored"] + record["quarantined"]:
            raise RuntimeError(f"{scores}/{record['part']}.parquet holds {found} rows, its record says {record}")
    reasons = sum((Counter(record["reasons"]) for record in records), Counter[str]())
    counts = {key: sum(record[key] for record in records) for key in ("rows_in", "scored", "quarantined", "num_tokens")}
    for name in ("scores", "_quarantine"):
        if (staging / name).exists():
            (staging / name).rename(out / name)
    manifest = {"job": job, "counts": counts, "reasons": dict(reasons), "parts": sorted(records, key=lambda record: str(record["part"]))}
    _write(out / "_manifest.json", json.dumps(manifest, indent=1))
    _write(out / "_SUCCESS", json.dumps(counts) + "\n")
    shutil.rmtree(staging)
    return manifest


def renamed(columns: Sequence[str], *, review_id: str) -> dict[str, str]:
    """New names of the input's columns whose names are needed here. A column of ids is added where the input has none."""
    added = [] if review_id in columns else ["review_id"]
    taken = {*columns, *score.schema(["any"]).names, *added}
    names: dict[str, str] = {}
    for column in columns:
        if column in score.schema(["any"]).names or column in added:
            name = f"input_{column}"
            while name in taken:
                name = f"input_{name}"
            taken.add(name)
            names[column] = name
    return names


class Part:
    """One part while it is written: answers to Parquet, what cannot be scored to JSON lines."""

    def __init__(
        self, out: Path, name: str, *, file: str, schema: pa.Schema, labels: Sequence[str], attention: AttentionDetail, job: Job
    ) -> None:
        """name: of the part, the same whenever the job runs. file: where its rows come from; schema: their columns."""
        self._staging, self._name, self._file = out / ".staging", name, file
        self._labels, self._attention, self._job = labels, attention, job
        review_id = job["settings"]["columns"]["review_id"]
        names = renamed(schema.names, review_id=review_id)
        fields = [field.with_name(names.get(field.name, field.name)) for field in schema]
        self._adds_ids = review_id not in schema.names
        fields += [pa.field("review_id", pa.string())] if self._adds_ids else []
        self._schema = pa.schema([*fields, *score.schema(labels)], {"han.model": job["model"], "han.settings": json.dumps(job["settings"])})
        # A worker that was thought dead may still write: no two attempts share a file.
        self._unfinished = self._staging / "unfinished" / f"{name}.{secrets.token_hex(4)}.parquet"
        self._writer = pq.ParquetWriter(self._unfinished, self._schema, compression="zstd")
        self._quarantined: list[dict[str, Any]] = []
        self._num_scored = self._num_tokens = 0

    def add(self, batch: Batch, reviews: pa.Table, scored: Scored) -> None:
        """Some records of the file; `scored` is of the rows of `reviews`, as `sources.reviews` made them of the batch."""
        ids = reviews["review_id"]
        answers = score.to_arrow(scored, labels=self._labels, fingerprint=self._job["model"], attention=self._attention)
        kept = batch.table.take(scored.kept).columns
        kept += [ids.take(scored.kept)] if self._adds_ids else []
        self._writer.write_table(pa.Table.from_arrays([*kept, *answers.columns], schema=self._schema))
        self._num_scored += len(answers)
        self._num_tokens += int(scored.num_tokens.sum(dtype=np.int64))
        for place, refusal in scored.refused:
            row, review_id = int(batch.rows[place]), ids[place].as_py()
            self._set_aside(row=row, review_id=review_id, reason=refusal.reason, message=refusal.message)
        for bad in batch.bad:
            self._set_aside(row=bad.row, byte_offset=bad.byte_offset, reason=bad.reason, excerpt=bad.excerpt)

    def close(self) -> tuple[Record, None]:
        """Put the part in its place, then its record: from here on it is finished."""
        record = {
            "part": self._name,
            "rows_in": self._num_scored + len(self._quarantined),
            "scored": self._num_scored,
            "quarantined": len(self._quarantined),
            "reasons": dict(Counter(line["reason"] for line in self._quarantined)),
            "num_tokens": self._num_tokens,
        }
        self._writer.close()
        _flush(self._unfinished)
        self._unfinished.rename(self._staging / "scores" / f"{self._name}.parquet")
        if self._quarantined:
            lines = [json.dumps(line) + "\n" for line in sorted(self._quarantined, key=lambda line: int(line["row"]))]
            _write(self._staging / "_quarantine" / f"{self._name}.jsonl", "".join(lines))
        _write(self._staging / "records" / f"{self._name}.json", json.dumps(record))
        return record, None

    def _set_aside(self, **found: Any) -> None:
        nothing = dict.fromkeys(("byte_offset", "review_id", "message", "excerpt"))
        self._quarantined.append({"file": self._file, **nothing, **found})


def _check_same(out: Path, job: Job, theirs: Job) -> None:
    changed = differences(job, theirs)
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise Mistake(f"--out {out} belongs to another job ({changed[0]}{more}): give a new folder, or the same model, input and settings")


def _write(path: Path, text: str) -> None:
    """Wholly or not at all, and on the disk before anything that follows."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    unfinished.write_text(text, encoding="utf-8")
    _flush(unfinished)
    unfinished.rename(path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
