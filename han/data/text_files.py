"""A folder of text files, one review each: the file's name is the review's id."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pyarrow as pa
import pyarrow.fs

from han.config import ColumnsConfig
from han.data.files import BadReason, BadRecord, Batch, Shard, blaming, excerpt, in_batches, is_text, make_batch, open_bytes
from han.storage import filesystem
from han.types import Mistake

SHARD_FILES = 2_500
LARGEST_FILE = 16 << 20  # bytes, decompressed


def look_at_texts(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    """A file is a record, its row its place among the names, sorted; the columns are the id and the text."""
    schema = pa.schema([(columns.review_id, pa.string()), (columns.text, pa.string())])
    num_files = len(_names(whole.path))
    return [
        replace(whole, start=start, stop=min(start + SHARD_FILES, num_files), first_row=start, schema=schema)
        for start in range(0, num_files, SHARD_FILES)
    ]


def read_texts(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    """An empty file is a review without text; one that cannot be decompressed is unreadable."""
    names = _names(shard.path)[shard.start : shard.stop]
    files = ((row, name, _content(f"{shard.path}/{name}")) for row, name in enumerate(names, shard.first_row))
    for some in in_batches(files, batch_rows, size=lambda file: len(file[2] or b"")):
        good: dict[int, tuple[str, str]] = {}
        bad: list[BadRecord] = []
        for row, name, content in some:
            reason: BadReason = "unreadable"
            if content is not None:
                reason = "too_large"
                if len(content) <= LARGEST_FILE:
                    try:
                        good[row] = name, content.decode("utf-8-sig")
                        continue
                    except UnicodeDecodeError:
                        reason = "invalid_utf8"
            bad.append(BadRecord(row=row, byte_offset=None, reason=reason, excerpt=excerpt(content or b"")))
        ids, texts = zip(*good.values(), strict=True) if good else ((), ())
        table = pa.Table.from_arrays([pa.array(ids, pa.string()), pa.array(texts, pa.string())], schema=shard.schema)
        yield make_batch(table, list(good), bad)


def _names(folder: str) -> list[str]:
    system, path = filesystem(folder)
    listed = system.get_file_info(pa.fs.FileSelector(path))
    return sorted(info.base_name for info in listed if info.type == pa.fs.FileType.File and is_text(info.base_name))


def _content(path: str) -> bytes | None:
    """One byte more than LARGEST_FILE at most; None where it cannot be decompressed."""
    try:
        with blaming(path), open_bytes(path) as stream:
            return io.BufferedReader(cast(io.RawIOBase, stream)).read(LARGEST_FILE + 1)
    except Mistake:
        return None
