"""A folder of text files, one review each: the file's name is the review's id."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pyarrow as pa
import pyarrow.fs

from han.config import ColumnsConfig
from han.data.files import (
    BadReason,
    BadRecord,
    Batch,
    Member,
    Shard,
    blaming,
    excerpt,
    in_batches,
    is_text,
    make_batch,
    open_bytes,
    refuse_changed_member,
)
from han.storage import filesystem
from han.types import UserError

SHARD_FILES = 2_500
LARGEST_FILE = 16 << 20  # bytes, decompressed


def look_at_texts(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    """A file is a record. Its row is its position in the sorted names. The columns are the id and the text."""
    schema = pa.schema([(columns.review_id, pa.string()), (columns.text, pa.string())])
    members = list_folder(whole.path)
    shards = []
    for start in range(0, len(members), SHARD_FILES):
        mine = tuple(members[start : start + SHARD_FILES])
        shards.append(replace(whole, start=start, stop=start + len(mine), first_row=start, schema=schema, members=mine))
    return shards


def read_texts(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    """An empty file is a review without text. A file that cannot be decompressed is an unreadable record."""
    files = ((row, member.name, _content(shard.path, member)) for row, member in enumerate(shard.members, shard.first_row))
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
        table = pa.table({columns.review_id: pa.array(ids, pa.string()), columns.text: pa.array(texts, pa.string())})
        yield make_batch(table.select(shard.schema.names), list(good), bad)


def list_folder(folder: str) -> list[Member]:
    """Every text file of a folder, sorted by name."""
    system, path = filesystem(folder)
    listed = system.get_file_info(pa.fs.FileSelector(path))
    texts = [info for info in listed if info.type == pa.fs.FileType.File and is_text(info.base_name)]
    return sorted(Member(info.base_name, info.size, info.mtime_ns) for info in texts)


def _content(folder: str, member: Member) -> bytes | None:
    """At most LARGEST_FILE + 1 bytes of a file; None if it cannot be decompressed. A file that was replaced is `InputChanged`."""
    path = f"{folder}/{member.name}"
    try:
        with blaming(path), open_bytes(path) as stream:
            return io.BufferedReader(cast(io.RawIOBase, stream)).read(LARGEST_FILE + 1)
    except UserError:
        return None
    finally:
        refuse_changed_member(folder, member)
