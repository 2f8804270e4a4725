"""CSV: the first row names the columns, and every value is a string. Rows that cannot be reviews are taken out, the others stay."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from han.config import ColumnsConfig
from han.data.columns import checked, refuse_doubles
from han.data.files import BadRecord, Batch, Shard, excerpt, in_batches, is_unicode, open_bytes
from han.types import Mistake

LONGEST_ROW = 16 << 20  # characters of CSV


def look_at_csv(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    rows = _csv_rows(whole.path)
    names, text = next(rows, (None, ""))
    if not names or not is_unicode(text):
        raise Mistake(f"{whole.path} does not begin with the names of its columns: its first row is {excerpt(_as_it_stands(text))[:80]!r}")
    refuse_doubles(whole.path, names)
    if any(fields is not None and len(fields) == len(names) for fields, _ in rows):
        return [replace(whole, schema=pa.schema([(name, pa.string()) for name in names]))]
    return []


def read_csv(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    """CSV has no types (007, N/A): all columns are strings. A row is malformed if it has more or fewer fields than the header, or a quote
    inside quotes that is not doubled. Blank lines are no rows."""
    rows = _csv_rows(shard.path)
    names = next(rows)[0] or []
    for some in in_batches(enumerate(rows), batch_rows, size=lambda numbered: len(numbered[1][1])):
        good: dict[int, list[str]] = {}
        bad: list[BadRecord] = []
        for row, (fields, text) in some:
            if fields is None or len(fields) != len(names):
                bad.append(BadRecord(row=row, byte_offset=None, reason="malformed", excerpt=excerpt(_as_it_stands(text.rstrip("\r\n")))))
            elif not is_unicode(text):
                wrong = next(field for field in fields if not is_unicode(field))
                bad.append(BadRecord(row=row, byte_offset=None, reason="invalid_utf8", excerpt=excerpt(_as_it_stands(wrong))))
            else:
                good[row] = fields
        table = pa.table({name: pa.array(values, pa.string()) for name, *values in zip(names, *good.values(), strict=True)})
        yield checked(table, np.array(list(good), np.int64), bad, shard, columns)


def _csv_rows(path: str) -> Iterator[tuple[list[str] | None, str]]:
    """Each row's fields, None where its quotes make no sense, and its text; a byte that is not UTF-8 is half a surrogate pair.

    Python's reader, since Arrow's takes `"a"b` for a field and a quote that is never closed for the rest of the file.
    """
    csv.field_size_limit(LONGEST_ROW)
    lines: list[str] = []
    with open_bytes(path) as stream:
        reader = csv.reader(_lines_of_a_row(path, stream, lines), strict=True)
        while True:
            lines.clear()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error:
                if not lines[-1]:
                    raise Mistake(f"{path} ends inside a quote that is never closed: mend it") from None
                yield None, "".join(lines)
                continue
            if fields:
                yield fields, "".join(lines)


def _lines_of_a_row(path: str, stream: BinaryIO, lines: list[str]) -> Iterator[str]:
    """The file's lines, each noted in `lines`, which whoever reads the rows empties; at the end an empty one is noted."""
    buffered = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)
    text = io.TextIOWrapper(buffered, "utf-8-sig", "surrogateescape", newline="")
    num_characters = 0
    while True:
        if not lines:
            num_characters = 0
        line = text.readline(LONGEST_ROW + 1)
        lines.append(line)
        num_characters += len(line)
        if num_characters > LONGEST_ROW:
            raise Mistake(f"{path} holds a row of over {LONGEST_ROW:,} characters, or a quote that is never closed: mend it")
        if not line:
            return
        yield line


def _as_it_stands(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
