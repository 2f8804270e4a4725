"""Scores on disk: each part is staged, recorded once it is whole, and all of them are published at once.

    out/scores/part-*.parquet     the input's columns, then `scorer.schema`
    out/_quarantine/part-*.jsonl  what was not scored, and why
    out/_manifest.json            the job, its counts and its files: every record of the input is either scored or quarantined
    out/_SUCCESS                  written last
    out/.staging/                 until then: the job, finished parts (*.tmp), a record of each, attempts at the others, the lock;
                                  .staging.*, for a moment, while it is removed

A part is finished when its record is there, so the same job, started again, goes on with the others. A record names files that no other
attempt writes: a worker that was thought dead can do no harm. When all parts are finished they are gathered in a hidden neighbour of
`out`, under their final names, and enter it by one rename: at no moment does a name under `out` end in .parquet unless all of them are
there. Readers of Parquet folders pass over names that begin with `_` or `.`.

A bucket has no rename: there the parts are copied into scores/ one by one, and a reader has to wait for _SUCCESS, or for _manifest.json,
which lists them.
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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import han
from han.config import OutputConfig, differences
from han.data.files import BadRecord, excerpt
from han.data.sources import Batch
from han.failpoint import Failpoint
from han.score import scorer
from han.score.manifest import FORMAT, MANIFEST, QUARANTINE, SCORES, STAGING, SUCCESS, is_staging
from han.score.retries import Attempts
from han.score.scorer import Scored
from han.storage import Folder
from han.types import Mistake

Job = dict[str, Any]  # JSON: `model` (fingerprint), `input`, `settings`: equal jobs write equal scores
Record = dict[str, Any]  # JSON of a finished part: counts, reasons, its files with rows, bytes and SHA-256


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A folder that is ours to write, and what is finished of it."""

    out: Folder
    job: Job
    began: str  # when the job was first started, UTC
    records: dict[str, Record]  # of the finished parts, by name
    is_new: bool
    failpoint: Failpoint


def is_published(place: str, job: Job) -> bool:
    """Whether all of `job` is there; another job's scores are a `Mistake`."""
    out = Folder(place)
    if not out.exists(SUCCESS):
        return False
    _check_same(out, job, _read_json(out, MANIFEST)["job"])
    return True


@contextmanager
def claimed(place: str, job: Job, *, failpoint: str | None) -> Iterator[Claim | None]:
    """Hold `place` for `job` while the body runs; None if everything is published already.

    A folder that holds another job, or anything else, or that another process is writing, is a `Mistake` and stays as it was.
    """
    out = Folder(place)
    if is_published(place, job):
        _clear(out)  # left by a crash after the last word
        yield None
        return
    is_new = _check_free(out, job)
    with out.locked(f"{STAGING}/lock"):
        if is_published(place, job):  # the one that held the lock has just finished
            _clear(out)
            yield None
            return
        staging = out / STAGING
        for name in ("unfinished", "parts", "records", "attempts"):
            staging.make(name)
        if not staging.exists("job.json"):
            if out.on_disk:
                out.beside().remove()  # of a folder of this name that was removed by hand
            staging.write("job.json", _json({"job": job, "began": _now()}), durable=True)
        records = [_read_json(staging, f"records/{name}") for name in staging.names("records") if name.endswith(".json")]
        yield Claim(
            out=out,
            job=job,
            began=_read_json(staging, "job.json")["began"],
            records={record["part"]: record for record in records},
            is_new=is_new,
            failpoint=Failpoint(failpoint, staging),
        )


def abandon(claim: Claim) -> None:
    """Remove what `claimed` and the parts made; nothing of it was published."""
    _clear(claim.out)
    claim.out.remove_empty()


def publish(claim: Claim, records: Sequence[Record], about: dict[str, Any]) -> dict[str, Any]:
    """Make the finished parts visible; returns the manifest. After a crash the same call goes on where it stopped.

    about: JSON for the manifest, of this run.
    """
    out, failpoint, gathered = claim.out, claim.failpoint, claim.out.beside()
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
        "parts": [_public(record) for record in sorted(records, key=lambda record: str(record["part"]))],
    }
    out.write(MANIFEST, _json(manifest), durable=True)
    failpoint.reach("manifest")
    out.write(SUCCESS, _json(manifest["counts"]), durable=True)
    out.sync("")
    failpoint.reach("success")
    _clear(out)
    return manifest


def total(records: Sequence[Record]) -> dict[str, int]:
    return {key: sum(record[key] for record in records) for key in ("rows_in", "scored", "quarantined", "num_tokens")}


def reasons(records: Sequence[Record]) -> dict[str, int]:
    """How many records were quarantined for what."""
    return dict(sum((Counter(record["reasons"]) for record in records), Counter[str]()))


def told(reasons: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))


def read_manifest(place: str) -> dict[str, Any]:
    return _read_json(Folder(place), MANIFEST)


def renamed(columns: Sequence[str], *, review_id: str) -> dict[str, str]:
    """New names of the input's columns whose names are needed here. A column of ids is added where the input has none."""
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


class Part:
    """One part while it is written: answers to Parquet, what cannot be scored to JSON lines."""

    def __init__(
        self,
        place: str,
        name: str,
        *,
        file: str,
        schema: pa.Schema,
        labels: Sequence[str],
        text_column: str,
        id_column: str,
        output: OutputConfig,
        metadata: dict[str, str],
        run: str,
        failpoint: str | None,
    ) -> None:
        """name: of the part, the same whenever the job runs. file: where its records come from; schema: their columns; metadata: of the
        Parquet files, `model` (fingerprint) among it; run: of the driver."""
        self._staging = Folder(place) / STAGING
        self.attempts: Attempts | None = Attempts(self._staging, name, run=run)
        self.failpoint = Failpoint(failpoint, self._staging)
        self._name, self._file, self._labels, self._text, self._output = name, file, labels, text_column, output
        self._model = metadata["model"]
        kept = [field for field in schema if output.carry is None or field.name in output.carry]
        names = renamed([field.name for field in kept], review_id=id_column)
        self._carried = [field.name for field in kept]
        fields = [field.with_name(names.get(field.name, field.name)) for field in kept]
        self._adds_ids = id_column not in self._carried
        fields += [pa.field("review_id", pa.string())] if self._adds_ids else []
        self._schema = pa.schema([*fields, *scorer.schema(labels)], {f"han.{key}": value for key, value in metadata.items()})
        self._attempt = secrets.token_hex(4)
        self._files: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows = self._num_scored = self._num_tokens = 0
        self._quarantined: list[dict[str, Any]] = []

    def add(self, batch: Batch, reviews: pa.Table, scored: Scored) -> None:
        """Some records of the file; `scored` is of the rows of `reviews`, as `sources.reviews` made them of the batch."""
        self.failpoint.reach("read")
        ids = reviews["review_id"]
        answers = scorer.to_arrow(scored, labels=self._labels, fingerprint=self._model, attention=self._output.attention)
        kept = batch.table.select(self._carried).take(scored.kept).columns
        kept += [ids.take(scored.kept)] if self._adds_ids else []
        self._write(pa.Table.from_arrays([*kept, *answers.columns], schema=self._schema))
        self._num_scored += len(answers)
        self._num_tokens += int(scored.num_tokens.sum(dtype=np.int64))
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
        """Put the part in its place, then its record: from here on it is finished."""
        if not self._files and self._writer is None:
            self._write(self._schema.empty_table())  # so that a folder without a single score has its columns all the same
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
            "model": self._model,
            "version": han.__version__,
            "files": self._files,
            "quarantine": quarantine,
        }
        self._staging.sync("parts")
        self._staging.write(f"records/{self._name}.json", _json(record), durable=True)
        self._staging.sync("records")
        self.failpoint.reach("recorded")
        return record, None

    def _write(self, table: pa.Table) -> None:
        most = self._output.rows_per_file or max(1, len(table) + self._rows)
        while True:
            if self._writer is None:
                number = f"-{len(self._files)}" if self._files else ""
                self._named = f"{self._name}{number}.parquet"
                self._staged = f"{self._name}{number}.{self._attempt}.tmp"
                self._stream = self._staging.create(self._where(self._staged))
                compression = self._output.compression
                self._writer = pq.ParquetWriter(self._stream, self._schema, compression=compression, write_page_checksum=True)
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
        """Where a file is written: on a disk apart from the finished ones; an object is not there until it is finished."""
        return f"{'unfinished' if self._staging.on_disk else 'parts'}/{staged}"

    def _set_aside(self, **found: Any) -> None:
        nothing = dict.fromkeys(("byte_offset", "review_id", "message", "excerpt"))
        self._quarantined.append({"file": self._file, **nothing, **found})


def _gather(records: Sequence[Record], staging: Folder, gathered: Folder, folder: str) -> None:
    """The files of all records, each found to be what its record says, under their final names."""
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
    found: dict[str, Any] = {"bytes": folder.size(name)}
    if is_parquet and found["bytes"]:
        with folder.open(name) as stream:
            found["rows"] = pq.read_metadata(stream).num_rows
    wrong = {key: value for key, value in found.items() if value != file[key]}
    if wrong:
        raise RuntimeError(f"{folder.place}/{name} has {wrong}, its record says {file}")


def _public(record: Record) -> Record:
    """A record without the names that its files had while they were staged."""
    files = [{key: value for key, value in file.items() if key != "staged"} for file in record["files"]]
    quarantine = record["quarantine"] and {key: value for key, value in record["quarantine"].items() if key != "staged"}
    return {**record, "files": files, "quarantine": quarantine}


def _check_free(out: Folder, job: Job) -> bool:
    """Whether nothing of `job` is there yet. Something else is a `Mistake`."""
    theirs = (out / STAGING).read("job.json")
    if theirs is not None:
        _check_same(out, job, json.loads(theirs)["job"])
        return False
    if out.exists() and (not out.is_folder() or not all(map(is_staging, out.names()))):
        raise Mistake(f"--out {out.place} holds something else: give a new folder")
    if out.on_disk:
        parent = os.path.dirname(out.path)
        if os.path.ismount(out.path) or (os.path.isdir(parent) and not os.access(parent, os.W_OK)):
            raise Mistake(
                f"--out {out.place} has a parent that it cannot be renamed in: give a folder inside it, such as {out.place}/scores"
            )
    return True


def _clear(out: Folder) -> None:
    """Remove what is staged. One that waits for the lock in it makes a new one at once: never in a folder that is half removed."""
    if not out.on_disk:
        out.remove(STAGING)
        return
    with suppress(FileNotFoundError):
        out.move(STAGING, f"{STAGING}.{secrets.token_hex(4)}")
    for name in out.names():
        if name.startswith(f"{STAGING}."):  # this one, or one of a process that died here
            out.remove(name)


def _check_same(out: Folder, job: Job, theirs: Job) -> None:
    changed = differences(job, theirs)
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise Mistake(
            f"--out {out.place} belongs to another job ({changed[0]}{more}): give a new folder, or the same model, input and settings"
        )


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
    content = folder.read(name)
    if content is None:
        raise Mistake(f"{folder.place}/{name} is missing: give a new --out")
    values: dict[str, Any] = json.loads(content)
    return values


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
