"""An encoded folder while it is made: shards of any size, staged and read again in bounded memory.

A shard is staged as one Arrow file: runs of reviews, each sorted by key. Reading merges the runs, so the result does not depend on where
they were cut. A reader holds 16 bytes for each review of the shard, a 128th of the shard, and the rows that it was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from han.config import PrepareConfig, as_json, differences, read_json, without_settings
from han.data.files import identity
from han.types import UserError

RUN_ROWS = 8_192  # most reviews of a run: 9 MB of IMDB,
RUN_BYTES = 32 << 20  # unless they are longer
BATCHES_PER_RUN = 128  # merging holds one batch of each run

STAGED = pa.schema(
    [
        ("key", pa.uint64()),
        ("review_id", pa.string()),
        ("label", pa.string()),
        ("development", pa.bool_()),
        ("word_ids", pa.list_(pa.int32())),
        ("sentence_lengths", pa.list_(pa.int32())),
    ]
)


def job_of(config: PrepareConfig, dev_ids: Path | None) -> dict[str, Any]:
    """What decides the content of an encoded folder, beside `source`: the identities of the files of its input."""
    job: dict[str, Any] = {"config": as_json(config), "development": _digest(dev_ids) if dev_ids else "by hash"}
    if config.vectors.is_file:
        job["vectors"] = list(identity(config.vectors.source))
    return job


def is_finished(out: Path, job: dict[str, Any]) -> bool:
    """Whether `out` is the encoded folder of a job, or of what is known of it. Another job's folder, and other files, are a `UserError`."""
    existing = without_settings(path.name for path in out.iterdir()) if out.exists() else []
    if not existing:
        return False
    if (out / "encoding.json").exists():
        theirs = read_json(out / "encoding.json")
        changed = differences(job, {key: theirs.get(key) for key in job})
        if changed:
            raise UserError(f"{out} was prepared with other settings ({'; '.join(changed[:3])}): give another --out, or the same settings")
        return True
    if not (out / ".staging").exists():
        raise UserError(f"--out {out} holds something else ({existing[0]}): give a new folder")
    return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class StagedWriter:
    """Writes the reviews of a shard, batch by batch, as sorted runs. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.new_file(str(path), STAGED, options=pa.ipc.IpcWriteOptions(compression="zstd"))
        self._run: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """A batch of `STAGED`. It is in memory until its run ends."""
        self._run.append(batch)
        if sum(map(len, self._run)) >= RUN_ROWS or sum(batch.nbytes for batch in self._run) >= RUN_BYTES:
            self._end_run()

    def __enter__(self) -> StagedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._end_run()
        self._file.close()

    def _end_run(self) -> None:
        run = pa.Table.from_batches(self._run, STAGED).sort_by("key").combine_chunks()
        self._run = []
        for batch in run.to_batches(max_chunksize=max(1, -(-len(run) // BATCHES_PER_RUN))):
            self._file.write_batch(batch)


def read_staged(path: Path, *, num_rows: int) -> Iterator[pa.Table]:
    """The reviews of a staged shard by key, `num_rows` at a time; those of one key in the order in which they were added."""
    keys, first_batches, first_rows = _survey(path)
    order = np.argsort(keys, kind="stable")
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        ends = [*first_batches[1:], file.num_record_batches]
        runs = [_Run(file, range(first, end)) for first, end in zip(first_batches, ends, strict=True)]
        for first in range(0, len(order), num_rows):
            rows = order[first : first + num_rows]
            num_from = np.bincount(np.searchsorted(first_rows, rows, side="right") - 1, minlength=len(runs))
            pieces = [piece for run, number in zip(runs, num_from.tolist(), strict=True) for piece in run.take(number)]
            in_file_order = pa.Table.from_batches(pieces, STAGED).combine_chunks()
            yield in_file_order.take(np.argsort(np.argsort(rows)))


def _survey(path: Path) -> tuple[NDArray[np.uint64], list[int], NDArray[np.int64]]:
    """Keys of all rows [N]; number of the first batch of each run; its first row. Two runs of ascending keys are one."""
    keys = []
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[0])) as file:
        for number in range(file.num_record_batches):
            keys.append(file.get_batch(number)["key"].to_numpy().copy())
    first_batches = [0, *(number for number in range(1, len(keys)) if keys[number][0] < keys[number - 1][-1])]
    begins = np.cumsum([0, *map(len, keys)])
    return np.concatenate([np.empty(0, np.uint64), *keys]), first_batches, begins[first_batches]


class _Run:
    """Some batches of a file, read from the first row on."""

    def __init__(self, file: pa.ipc.RecordBatchFileReader, batches: range) -> None:
        self._file, self._batches = file, iter(batches)
        self._rest: pa.RecordBatch | None = None

    def take(self, num_rows: int) -> Iterator[pa.RecordBatch]:
        """The next rows."""
        while num_rows:
            batch = self._rest or self._file.get_batch(next(self._batches))
            piece, rest = batch.slice(0, num_rows), batch.slice(num_rows)
            self._rest = rest if len(rest) else None
            num_rows -= len(piece)
            yield piece
