"""CSV: the first row names the columns. A plain file is cut into shards at record boundaries; a compressed file is one shard.

Python's reader is used, because Arrow's reads `"a"b` as a field and an unclosed quote as the rest of the file.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from han.config import ColumnsConfig
from han.data.columns import checked, refuse_doubles
from han.data.files import (
    BadRecord,
    Batch,
    Shard,
    excerpt,
    in_batches,
    is_compressed,
    is_unicode,
    open_bytes,
    shard_bytes,
    size_of,
)
from han.types import UserError

LONGEST_ROW = 16 << 20  # characters of CSV
RANGE_BYTES = 16 << 20  # largest shard of a plain file

Row: TypeAlias = tuple[list[str] | None, str]  # fields (None: malformed, empty: a blank line), and the text with its line break

_TSV = re.compile(r"\.tsv(?:\.gz|\.zst)?$")
_BOM = b"\xef\xbb\xbf"
# Only what survives a round trip is a number: 007, +7 and an id of 19 digits stay text. A float has at most 15 digits before its point.
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,17})?(?:[eE][-+]?[0-9]{1,2})?")


def look_at_csv(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    """The shards of a file, none if no row has as many fields as the header. One pass over the file finds them and the columns' types."""
    delimiter = _delimiter(whole.path, columns)
    names = _header(whole.path, delimiter)
    refuse_doubles(whole.path, names)
    survey = _survey(whole.path, delimiter, names, columns)
    if not survey.has_rows:
        return []
    whole = replace(whole, schema=pa.schema(list(zip(names, survey.types, strict=True))))
    if is_compressed(whole.path):
        return [whole]
    stops = [*(start for start, _ in survey.starts), size_of(whole.path)]
    shards = [replace(whole, start=start, first_row=row) for start, row in ((0, 0), *survey.starts)]
    return [replace(shard, stop=stop) for shard, stop in zip(shards, stops, strict=True)]


def read_csv(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    """A row is malformed if it has more or fewer fields than the header, or a quote inside quotes that is not doubled. Blank lines are
    not rows. An empty field is null in a column of numbers, and an empty string elsewhere."""
    delimiter = _delimiter(shard.path, columns)
    names = _header(shard.path, delimiter)
    kept = [(place, shard.schema.field(name)) for place, name in enumerate(names) if name in shard.schema.names]
    with _open_range(shard.path, shard.start, shard.stop) as stream:
        encoding = "utf-8" if shard.start else "utf-8-sig"
        rows = (row for row in _rows(shard.path, stream, delimiter, encoding=encoding) if row[0] != [])
        if shard.start == 0:
            next(rows)
        for some in in_batches(enumerate(rows, shard.first_row), batch_rows, size=lambda numbered: len(numbered[1][1])):
            good: dict[int, list[str]] = {}
            bad: list[BadRecord] = []
            for row, (fields, text) in some:
                if fields is None or len(fields) != len(names):
                    bad.append(BadRecord(row=row, byte_offset=None, reason="malformed", excerpt=excerpt(_encoded(text.rstrip("\r\n")))))
                elif not is_unicode(text):
                    wrong = next(field for field in fields if not is_unicode(field))
                    bad.append(BadRecord(row=row, byte_offset=None, reason="invalid_utf8", excerpt=excerpt(_encoded(wrong))))
                else:
                    good[row] = fields
            table = pa.table({field.name: _column([fields[place] for fields in good.values()], field.type) for place, field in kept})
            yield checked(table, np.array(list(good), np.int64), bad, shard, columns)


def _column(values: list[str], kind: pa.DataType) -> pa.Array:
    column = pa.array(values, pa.string())
    if pa.types.is_string(kind):
        return column
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column).cast(kind)


def _delimiter(path: str, columns: ColumnsConfig) -> str:
    return columns.delimiter or ("\t" if _TSV.search(path.lower()) else ",")


def _header(path: str, delimiter: str) -> list[str]:
    with _open_range(path, 0, -1) as stream:
        names, text = next((row for row in _rows(path, stream, delimiter) if row[0] != []), (None, ""))
    if not names or not is_unicode(text):
        raise UserError(f"{path} does not begin with the names of its columns: its first row is {excerpt(_encoded(text))[:80]!r}")
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """The result of one pass over a file."""

    has_rows: bool  # whether a row has as many fields as the header
    types: tuple[pa.DataType, ...]  # of each column
    starts: tuple[tuple[int, int], ...]  # (byte, row) of the first record of each shard but the first


def _survey(path: str, delimiter: str, names: Sequence[str], columns: ColumnsConfig) -> _Survey:
    """One pass over the file, a record at a time. Bytes are decoded as Latin-1: all that matters here is ASCII, and lengths are bytes."""
    step = shard_bytes(size_of(path), RANGE_BYTES)
    types = _Types([name not in (columns.text, columns.review_id, columns.label) for name in names] if columns.csv_types == "infer" else [])
    starts: list[tuple[int, int]] = []
    row, next_start, has_rows = -1, step, False  # row -1 is the header
    with _open_range(path, 0, -1) as stream:
        offset = len(_BOM) if stream.peek(len(_BOM)).startswith(_BOM) else 0
        stream.read(offset)
        try:
            for fields, text in _rows(path, stream, delimiter, encoding="latin-1", longest=4 * LONGEST_ROW):
                if fields != [] and row >= 0:
                    if offset >= next_start:
                        starts.append((offset, row))
                        next_start = offset + step
                    if fields is not None and len(fields) == len(names):
                        has_rows = True
                        types.add(fields)
                row += fields != []
                offset += len(text)
        except (UserError, OSError, pa.ArrowException) as error:
            if (isinstance(error, OSError) and error.errno is not None) or not has_rows:
                raise
            types = _Types([])  # reading the last shard raises the error again; nobody knows what the rest holds
    return _Survey(has_rows=has_rows, types=tuple(types.settled(len(names))), starts=tuple(starts))


class _Types:
    """The narrowest type that holds every value of each column so far: int64, float64 or string."""

    def __init__(self, is_candidate: Sequence[bool]) -> None:
        self._integers = {place for place, candidate in enumerate(is_candidate) if candidate}
        self._floats = set(self._integers)
        self._filled: set[int] = set()

    def add(self, fields: list[str]) -> None:
        for place in self._integers | self._floats:
            value = fields[place]
            if not value:
                continue
            self._filled.add(place)
            if place in self._integers and not _INTEGER.fullmatch(value):
                self._integers.discard(place)
            if place in self._floats and not _FLOAT.fullmatch(value):
                self._floats.discard(place)

    def settled(self, num_columns: int) -> Iterator[pa.DataType]:
        for place in range(num_columns):
            if place in self._integers & self._filled:
                yield pa.int64()
            else:
                yield pa.float64() if place in self._floats & self._filled else pa.string()


@contextmanager
def _open_range(path: str, start: int, stop: int) -> Iterator[io.BufferedReader]:
    """The bytes from `start` to `stop` (-1: the end) of a file, decompressed."""
    with open_bytes(path) as stream:
        if start:
            stream.seek(start)
        raw = stream if stop < 0 else _Limited(stream, stop - start)
        yield io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)


class _Limited(io.RawIOBase):
    """The first bytes of a stream."""

    def __init__(self, stream: BinaryIO, num_bytes: int) -> None:
        self._stream, self._left = stream, num_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(min(len(buffer), self._left))
        buffer[: len(content)] = content
        self._left -= len(content)
        return len(content)


def _rows(
    path: str, stream: io.BufferedReader, delimiter: str, *, encoding: str = "utf-8-sig", longest: int | None = None
) -> Iterator[Row]:
    """Every row. In UTF-8 a byte that is not UTF-8 becomes half a surrogate pair. longest: characters of a row; None is LONGEST_ROW."""
    longest = longest or LONGEST_ROW
    csv.field_size_limit(longest)
    lines: list[str] = []
    text = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
    reader = csv.reader(_lines_of_a_row(path, text, lines, longest), delimiter=delimiter, strict=True)
    while True:
        lines.clear()
        try:
            fields: list[str] | None = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if not lines[-1]:
                raise UserError(f"{path} ends inside a quote that is never closed: close it") from None
            fields = None
        yield fields, "".join(lines)


def _lines_of_a_row(path: str, text: io.TextIOWrapper, lines: list[str], longest: int) -> Iterator[str]:
    """The file's lines. Each is appended to `lines`, which the caller clears after every row; an empty line marks the end of the file."""
    num_characters = 0
    while True:
        if not lines:
            num_characters = 0
        line = text.readline(longest + 1)
        lines.append(line)
        num_characters += len(line)
        if num_characters > longest:
            raise UserError(f"{path} holds a row of over {longest:,} characters, or a quote that is never closed: shorten or close it")
        if not line:
            return
        yield line


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
