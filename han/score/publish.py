"""Scores on disk: each part is staged, recorded once it is complete, and all parts are published at once.

    out/scores/part-*.parquet     the input's columns, then `scorer.schema`
    out/_quarantine/part-*.jsonl  what was not scored, and why
    out/_manifest.json            the job, its counts and its files: every record of the input is either scored or quarantined
    out/_SUCCESS                  written last
    out/_settings.toml            written first: the settings that repeat the job
    out/.staging/                 until then: the job, finished parts (*.tmp), their records, attempts at the other parts, the lock;
                                  renamed to .staging.* before it is removed

A part is finished when its record exists, so the same job, started again, continues with the others. A record names files that no other
attempt writes, so a worker that was wrongly believed dead does no harm. Finished parts are gathered in a hidden folder next to `out`,
under their final names, and enter `out` by one rename: no name under `out` ends in .parquet before all parts are there. Readers of Parquet
folders ignore names that begin with `_` or `.`. A name of this layout that is a symbolic link is refused.

A bucket has no rename. There the parts are copied into scores/ one by one, and a reader must wait for _SUCCESS or _manifest.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

import han
from han.config import ColumnsConfig, OutputConfig, as_json, differences, without_settings
from han.data.columns import label_numbers
from han.data.files import BadRecord, excerpt
from han.data.sources import Batch, Shard, identities
from han.failpoint import Failpoint
from han.score import contract
from han.score.manifest import (
    FORMAT,
    MANIFEST,
    QUARANTINE,
    SCORES,
    SETTINGS,
    STAGING,
    SUCCESS,
    Damaged,
    JobJson,
    ManifestJson,
    RecordJson,
    checked,
    is_staging,
    parse,
)
from han.score.retries import Attempts
from han.storage import Folder
from han.types import UserError

if TYPE_CHECKING:  # a folder of another job is found before torch is loaded
    from han.score.scorer import Scored

Job = dict[str, Any]  # JSON: `model` (fingerprint), `input`, `settings`: equal jobs write equal scores
Record = dict[str, Any]  # JSON of a finished part: counts, reasons, its files with rows, bytes and SHA-256

_STAGED = ("unfinished", "parts", "records", "attempts")  # folders in .staging


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A folder that this process may write, and its finished parts."""

    out: Folder
    job: Job
    began: str  # first start of the job, UTC
    records: dict[str, Record]  # of the finished parts, by name
    is_new: bool
    failpoint: Failpoint


def job_of(shards: Sequence[Shard], *, model: str, columns: ColumnsConfig, output: OutputConfig, limit: int | None) -> Job:
    """Everything that decides the scores. model: its fingerprint."""
    deciding = {"attention": output.attention, "compression": output.compression, "rows_per_file": output.rows_per_file}
    if output.effects != "none":  # absent otherwise, so that a job of an earlier version resumes
        deciding |= {"effects": output.effects}
    settings = {**deciding, "carry": output.carry and sorted(output.carry), "columns": as_json(columns), "limit": limit}
    return {"model": model, "input": identities(shards), "settings": settings}


def check(place: str, job: Job) -> None:
    """`UserError` if the folder holds another job or other files, as `claimed` raises it. Nothing is written."""
    if not is_published(place, job):
        _check_unclaimed(Folder(place), job)


def is_published(place: str, job: Job) -> bool:
    """Whether the scores of `job` are complete. The scores of another job, and a link at a name of the layout, are a `UserError`."""
    out = Folder(place)
    _check_layout(out)
    if not out.exists(SUCCESS):
        return False
    _check_same(out, job, read_manifest(place)["job"])
    return True


@contextmanager
def claimed(place: str, job: Job, *, failpoint: str | None, settings: str | None = None) -> Iterator[Claim | None]:
    """Hold `place` for `job` while the body runs; None if the job is published already.

    settings: TOML that repeats the job, for its folder; None writes none.

    A folder that holds another job or other files, or that another process is writing, is a `UserError` and stays unchanged.
    """
    out = Folder(place)
    if is_published(place, job):
        _clear(out)  # after a crash between _SUCCESS and the removal
        yield None
        return
    is_new = _check_unclaimed(out, job)
    with out.locked(f"{STAGING}/lock"):
        if is_published(place, job):  # the process that held the lock has just finished
            _clear(out)
            yield None
            return
        staging = out / STAGING
        for name in _STAGED:
            staging.make(name)
        if not staging.exists("job.json"):
            if out.on_disk:
                out.sibling().remove()  # left by a folder of this name that the user removed
                out.sync("..")
            staging.write("job.json", _json({"job": job, "began": _now()}), durable=True)
        began = _read(staging, "job.json", JobJson)["began"]
        if settings is not None:
            out.write(SETTINGS, settings.encode(), durable=True)
        records = [_read(staging, f"records/{name}", RecordJson) for name in staging.names("records") if name.endswith(".json")]
        yield Claim(
            out=out,
            job=job,
            began=began,
            records={record["part"]: record for record in records},
            is_new=is_new,
            failpoint=Failpoint(failpoint, staging),
        )


def abandon(claim: Claim) -> None:
    """Remove everything that `claimed` and the parts made. Nothing was published."""
    for name in claim.out.names():
        if name.startswith(SETTINGS):  # before the lock is released: the next job writes its own
            claim.out.remove(name)
    _clear(claim.out)
    claim.out.remove_empty()


def publish(claim: Claim, records: Sequence[Record], about: dict[str, Any]) -> dict[str, Any]:
    """Make the finished parts visible; returns the manifest. After a crash the same call continues.

    about: JSON about this run, for the manifest.
    """
    out, failpoint, gathered = claim.out, claim.failpoint, claim.out.sibling()
    if gathered.is_link():
        gathered.remove()
    staging = out / STAGING
    if not out.on_disk:
        gathered = out  # no rename: each file is copied to its final place
    for folder in (SCORES, QUARANTINE):
        if not (out.on_disk and out.exists(folder)):
            _gather(records, staging, gathered, folder)
        failpoint.reach("gathered" if folder == SCORES else "verified")
    if out.on_disk:
        for folder, reached in ((QUARANTINE, "set-aside"), (SCORES, "published")):
            if not out.exists(folder):
                gathered.sync(folder)
                gathered.move(folder, folder, into=out)
                out.sync("")
            failpoint.reach(reached)
        gathered.remove()
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "job": claim.job,
        "run": {"version": han.__version__, "began": claim.began, "finished": _now(), **about},
        "counts": total(records),
        "reasons": reasons(records),
        "agreement": {key: sum(record.get(key, 0) for record in records) for key in ("labelled", "agreeing")},
        "flagged": flagged(records),
        "parts": [_public(record) for record in sorted(records, key=lambda record: str(record["part"]))],
    }
    out.write(MANIFEST, _json(manifest), durable=True)
    failpoint.reach("manifest")
    out.write(SUCCESS, _json(manifest["counts"]), durable=True)
    failpoint.reach("success")
    _clear(out)
    return manifest


def total(records: Sequence[Record]) -> dict[str, int]:
    return {key: sum(record[key] for record in records) for key in ("rows_in", "scored", "quarantined", "num_tokens")}


def reasons(records: Sequence[Record]) -> dict[str, int]:
    """Number of quarantined records by reason."""
    return dict(sum((Counter(record["reasons"]) for record in records), Counter[str]()))


def flagged(records: Sequence[Record]) -> dict[str, int]:
    """Number of scored records that have each flag; empty if a part was written by a version that did not count them."""
    if not all("flagged" in record for record in records):
        return {}
    return {flag: sum(record["flagged"][flag] for record in records) for flag in contract.FLAGS}


def summary(reasons: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))


def read_manifest(place: str) -> dict[str, Any]:
    return _read(Folder(place), MANIFEST, ManifestJson)


def renamed(columns: Sequence[str], *, review_id: str) -> dict[str, str]:
    """New names of the input's columns whose names the answers use. An input without ids gets a column review_id."""
    from han.score import scorer

    added = [] if review_id in columns else ["review_id"]
    taken = {*columns, *scorer.schema(["any"]).names, *added}
    names: dict[str, str] = {}
    for column in columns:
        if column in scorer.schema(["any"]).names or column in added:
            name = f"input_{column}"
            while name in taken:
                name = f"input_{name}"
            taken.add(name)
            names[column] = name
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPlan:
    """The settings of one part."""

    place: str  # the --out of the job
    name: str  # the same in every run of the job
    file: str  # of its records
    schema: pa.Schema  # of its records
    labels: tuple[str, ...]  # of the model
    columns: ColumnsConfig
    output: OutputConfig
    metadata: dict[str, str]  # of the Parquet files; `model` is the fingerprint
    run: str  # of the driver
    failpoint: str | None


class Part:
    """One part while it is written: answers go to Parquet, records that cannot be scored to JSON lines."""

    def __init__(self, plan: PartPlan) -> None:
        from han.score import scorer

        self._staging = Folder(plan.place) / STAGING
        self.attempts: Attempts | None = Attempts(self._staging, plan.name, run=plan.run)
        self.failpoint = Failpoint(plan.failpoint, self._staging)
        self._name, self._file, self._labels, self._columns, self._output = plan.name, plan.file, plan.labels, plan.columns, plan.output
        self._model = plan.metadata["model"]
        kept = [field for field in plan.schema if plan.output.carry is None or field.name in plan.output.carry]
        names = renamed([field.name for field in kept], review_id=plan.columns.review_id)
        self._carried = [field.name for field in kept]
        fields = [field.with_name(names.get(field.name, field.name)) for field in kept]
        self._adds_ids = plan.columns.review_id not in self._carried
        fields += [pa.field("review_id", pa.string())] if self._adds_ids else []
        self._schema = pa.schema([*fields, *scorer.schema(plan.labels)], {f"han.{key}": value for key, value in plan.metadata.items()})
        self._encodings = _encodings(self._schema, scorer.schema(plan.labels).names)
        self._attempt = secrets.token_hex(4)
        self._files: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows = self._num_scored = self._num_tokens = self._num_labelled = self._num_agreeing = 0
        self._flagged = dict.fromkeys(contract.FLAGS, 0)
        self._quarantined: list[dict[str, Any]] = []

    def add(self, batch: Batch, reviews: pa.Table, scored: Scored) -> None:
        """Take some records. `scored` has the answers to `reviews`, which `sources.reviews` made from the batch.

        A probability that is not a number from 0 to 1 is a `UserError`, and nothing of the batch is written.
        """
        from han.score import scorer

        self.failpoint.reach("read")
        contract.refuse_broken_probabilities(scored.probabilities, model=self._model)
        self._compare_labels(batch, scored)
        ids = reviews["review_id"]
        answers = scorer.to_arrow(scored, labels=self._labels, fingerprint=self._model, attention=self._output.attention)
        kept = batch.table.select(self._carried).take(scored.kept).columns
        kept += [ids.take(scored.kept)] if self._adds_ids else []
        self._write(pa.Table.from_arrays([*kept, *answers.columns], schema=self._schema))
        self._num_scored += len(answers)
        self._num_tokens += int(scored.num_tokens.sum(dtype=np.int64))
        for flag in contract.FLAGS:
            self._flagged[flag] += int(np.count_nonzero(getattr(scored, flag)))
        for place, refusal in scored.refused:
            self._set_aside(
                row=int(batch.rows[place]),
                byte_offset=None if batch.byte_offsets is None else int(batch.byte_offsets[place]),
                review_id=ids[place].as_py(),
                reason=refusal.reason,
                message=refusal.message,
                excerpt=excerpt(reviews["text"][place].as_py()),
            )
        for bad in batch.bad:
            self.set_aside(bad)

    def set_aside(self, bad: BadRecord) -> None:
        self._set_aside(row=bad.row, byte_offset=bad.byte_offset, reason=bad.reason, excerpt=bad.excerpt)

    def close(self) -> tuple[Record, None]:
        """Move the part to the finished ones, then write its record. After that the part is finished."""
        if not self._files and self._writer is None:
            self._write(self._schema.empty_table())  # a folder without a single score has its columns too
        self._end_file()
        quarantine = None
        if self._quarantined:
            lines = [json.dumps(line) + "\n" for line in sorted(self._quarantined, key=lambda line: int(line["row"]))]
            content = "".join(lines).encode()
            quarantine = {"name": f"{self._name}.jsonl", "staged": f"{self._name}.{self._attempt}.jsonl.tmp", "rows": len(lines)}
            quarantine |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            self._staging.write(f"parts/{quarantine['staged']}", content, durable=True)
            self.failpoint.reach("quarantined")
        record = {
            "part": self._name,
            "file": self._file,
            "rows_in": self._num_scored + len(self._quarantined),
            "scored": self._num_scored,
            "quarantined": len(self._quarantined),
            "reasons": dict(Counter(line["reason"] for line in self._quarantined)),
            "num_tokens": self._num_tokens,
            "labelled": self._num_labelled,
            "agreeing": self._num_agreeing,
            "flagged": self._flagged,
            "model": self._model,
            "version": han.__version__,
            "files": self._files,
            "quarantine": quarantine,
        }
        self._staging.sync("parts")
        self._staging.write(f"records/{self._name}.json", _json(record), durable=True)
        self.failpoint.reach("recorded")
        return record, None

    def _compare_labels(self, batch: Batch, scored: Scored) -> None:
        """Count the scored records that have a label, and those whose label is the prediction."""
        if self._columns.label not in batch.table.column_names:
            return
        column = batch.table[self._columns.label].take(scored.kept)
        wanted = label_numbers(column, labels=self._labels, label_names=self._columns.label_names)
        self._num_labelled += int(np.count_nonzero(wanted >= 0))
        self._num_agreeing += int(np.count_nonzero(wanted == scored.logits.argmax(axis=1)))

    def _write(self, table: pa.Table) -> None:
        most = self._output.rows_per_file or max(1, len(table) + self._rows)
        while True:
            if self._writer is None:
                number = f"-{len(self._files)}" if self._files else ""
                self._named = f"{self._name}{number}.parquet"
                self._staged = f"{self._name}{number}.{self._attempt}.tmp"
                self._stream = self._staging.create(self._where(self._staged))
                compression = self._output.compression
                self._writer = pq.ParquetWriter(
                    self._stream, self._schema, compression=compression, write_page_checksum=True, **self._encodings
                )
                self._rows = 0
            now = table.slice(0, most - self._rows)
            self._writer.write_table(now)
            self._rows += len(now)
            table = table.slice(len(now))
            if self._rows == most and self._output.rows_per_file:
                self._end_file()
            if not len(table):
                return

    def _end_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._stream.close()
        self._writer = None
        unfinished, finished = self._where(self._staged), f"parts/{self._staged}"
        self.failpoint.reach("staged")
        self._staging.sync(unfinished)
        self.failpoint.reach("synced")
        if unfinished != finished:
            self._staging.move(unfinished, finished)
        self.failpoint.reach("renamed")
        with self._staging.open(finished) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = self._staging.size(finished)
        self._files.append({"name": self._named, "staged": self._staged, "rows": self._rows, "bytes": size, "sha256": digest})

    def _where(self, staged: str) -> str:
        """Where a file is written: on a disk apart from the finished files; in a bucket an object appears only when it is finished."""
        return f"{'unfinished' if self._staging.on_disk else 'parts'}/{staged}"

    def _set_aside(self, **fields: Any) -> None:
        nothing = dict.fromkeys(("byte_offset", "review_id", "message", "excerpt"))
        self._quarantined.append({"file": self._file, **nothing, **fields})


def _gather(records: Sequence[Record], staging: Folder, gathered: Folder, folder: str) -> None:
    """Move the files of all records to their final names, after a check against the records."""
    _refuse_link(gathered, folder)
    gathered.make(folder)
    for record in records:
        listed = record["files"] if folder == SCORES else [record["quarantine"]] if record["quarantine"] else []
        for file in listed:
            staged, final = f"parts/{file['staged']}", f"{folder}/{file['name']}"
            if staging.exists(staged):
                _check_file(staging, staged, file, is_parquet=folder == SCORES)
                staging.move(staged, final, into=gathered)
            else:
                _check_file(gathered, final, file, is_parquet=folder == SCORES)


def _check_file(folder: Folder, name: str, file: dict[str, Any], *, is_parquet: bool) -> None:
    if folder.is_link(name):
        raise UserError(f"{folder.place}/{name} is a symbolic link, not the part that han score wrote: give a new --out")
    actual: dict[str, Any] = {"bytes": folder.size(name)}
    if is_parquet and actual["bytes"]:
        with folder.open(name) as stream:
            actual["rows"] = pq.read_metadata(stream).num_rows
    wrong = {key: value for key, value in actual.items() if value != file[key]}
    if wrong:
        raise RuntimeError(f"{folder.place}/{name} has {wrong}, its record says {file}")


def _public(record: Record) -> Record:
    """A record without the staged names of its files."""
    files = [{key: value for key, value in file.items() if key != "staged"} for file in record["files"]]
    quarantine = record["quarantine"] and {key: value for key, value in record["quarantine"].items() if key != "staged"}
    return {**record, "files": files, "quarantine": quarantine}


def _check_layout(out: Folder) -> None:
    """A symbolic link at a name of the layout is a `UserError`: it would be written through. So is a file for a folder, or the reverse."""
    if out.is_link() and not out.exists():
        raise UserError(f"--out {out.place} is a symbolic link to {os.readlink(out.path)}, which does not exist: remove the link")
    if not out.on_disk:  # an object has no kind
        return
    for name in (STAGING, SCORES, QUARANTINE, *(f"{STAGING}/{name}" for name in _STAGED)):
        _refuse_link(out, name)
        if out.size(name) is not None:
            raise UserError(f"{out.place}/{name} is a file, where han score has a folder: give a new --out, or remove the file")
    for name in (MANIFEST, SUCCESS, SETTINGS, f"{STAGING}/lock", f"{STAGING}/job.json"):
        _refuse_link(out, name)
        if (out / name).is_folder():
            raise UserError(f"{out.place}/{name} is a folder, where han score has a file: give a new --out, or remove the folder")


def _refuse_link(folder: Folder, name: str) -> None:
    if folder.is_link(name):
        raise UserError(f"{folder.place}/{name} is a symbolic link, and han score does not write through links: remove it")


def _check_unclaimed(out: Folder, job: Job) -> bool:
    """Whether the job has no files yet. Files of another job, and other files, are a `UserError`."""
    if (out / STAGING).exists("job.json"):
        _check_same(out, job, _read(out / STAGING, "job.json", JobJson)["job"])
        return False
    if out.exists() and (not out.is_folder() or not all(map(is_staging, without_settings(out.names())))):
        raise UserError(f"--out {out.place} holds something else: give a new folder")
    if out.on_disk:
        parent = os.path.dirname(out.path)
        if os.path.ismount(out.path) or (os.path.isdir(parent) and not os.access(parent, os.W_OK)):
            raise UserError(
                f"--out {out.place} has a parent that it cannot be renamed in: give a folder inside it, such as {out.place}/scores"
            )
    return True


def _clear(out: Folder) -> None:
    """Remove the staged files. They are renamed first: a process that waits for the lock must not make one in a half-removed folder."""
    if not out.on_disk:
        out.remove(STAGING)
        return
    with suppress(FileNotFoundError):
        out.move(STAGING, f"{STAGING}.{secrets.token_hex(4)}")
    for name in out.names():
        if name.startswith(f"{STAGING}."):  # this one, and those of processes that died here
            out.remove(name)


def _check_same(out: Folder, job: Job, theirs: Job) -> None:
    changed = differences(job, theirs)
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"--out {out.place} belongs to another job ({changed[0]}{more}): give a new folder, or the same model, input and settings"
        )


def _read(folder: Folder, name: str, kind: type[BaseModel]) -> dict[str, Any]:
    """A JSON file of the layout. A missing one, and one that `jobs.score` does not write, is a `UserError`."""
    try:
        content = folder.read(name)
    except OSError:
        if folder.size(name) is None and folder.exists(name):
            raise _damaged(folder, name) from None
        raise
    if content is None:
        raise UserError(f"{folder.place}/{name} is missing: give a new --out")
    try:
        values = parse(name, content)
        checked(name, values, kind)
    except Damaged:
        raise _damaged(folder, name) from None
    return values


def _damaged(folder: Folder, name: str) -> UserError:
    return UserError(f"{folder.place}/{name} is not a file that han score wrote, or it is damaged: give a new --out, or remove the old one")


def _encodings(schema: pa.Schema, answers: Sequence[str]) -> dict[str, Any]:
    """How the columns of the answers are encoded, as arguments of a `ParquetWriter`; the input's columns have Parquet's defaults.

    Offsets as differences and attention split by bytes are a third smaller and take half the time to write (docs/log.md).
    """
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    kinds = {"INT32": "DELTA_BINARY_PACKED", "FLOAT": "BYTE_STREAM_SPLIT"}
    file_schema = pq.ParquetFile(sink.getvalue()).schema
    leaves = [file_schema.column(index) for index in range(len(file_schema.names))]
    encodings = {
        leaf.path: kinds[leaf.physical_type] for leaf in leaves if leaf.path.split(".")[0] in answers and leaf.physical_type in kinds
    }
    return {"column_encoding": encodings, "use_dictionary": [leaf.path for leaf in leaves if leaf.path not in encodings]}


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
