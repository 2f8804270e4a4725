"""Parquet and CSV: formats whose rows are a table already. Rows that cannot be reviews are taken out, the others stay as they are."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from han.config import ColumnsConfig
from han.files import (
    BATCH_BYTES,
    BOMB_RATIO,
    BadReason,
    BadRecord,
    Batch,
    Shard,
    escaped,
    excerpt,
    filesystem,
    in_batches,
    is_unicode,
    make_batch,
    open_bytes,
    size_of,
)
from han.types import Mistake

SLICED_ROWS = 5_000  # a row group with more rows is cut,
SLICES = 16  # into so many at most, since reading a slice decodes its row group from the start
CLAIMED_BYTES = 256 << 20  # a Parquet file may claim to hold so much, or BOMB_RATIO times its size
LARGEST_TEXT = 16 << 20  # bytes in a row of Parquet
LONGEST_ROW = 16 << 20  # characters of CSV

# A Parquet footer holds its Arrow schema in base64, in which a word has three spellings, by its position modulo 3.
_EXTENSION = b"ARROW:extension:name"
_EXTENSIONS = [base64.b64encode(bytes(lead) + _EXTENSION)[math.ceil(lead * 8 / 6) : (lead + len(_EXTENSION)) * 8 // 6] for lead in range(3)]


def look_at_parquet(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    """One shard a row group, or up to 16 for one of over 5,000 rows; none where there are no rows."""
    _refuse_extensions(whole.path)
    with _open_parquet(whole.path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        # Arrow cannot take rows out of views.
        kinds = [pa.string() if pa.types.is_string_view(field.type) else field.type for field in file.schema_arrow]
        schema = pa.schema(list(zip(file.schema_arrow.names, kinds, strict=True)))
    claimed, size = sum(group.total_byte_size for group in groups), size_of(whole.path)
    if claimed > max(CLAIMED_BYTES, BOMB_RATIO * size):
        raise Mistake(f"{whole.path} is {size:,} bytes and claims to hold {claimed:,}: write it again, in several files")
    _refuse_doubles(whole.path, schema.names)
    shards, first_row = [], 0
    for index, group in enumerate(groups):
        step = max(SLICED_ROWS, math.ceil(group.num_rows / SLICES))
        for start in range(0, group.num_rows, step):
            stop = min(start + step, group.num_rows)
            shards.append(replace(whole, group=index, start=start, stop=stop, first_row=first_row + start, schema=schema))
        first_row += group.num_rows
    return shards


def _refuse_extensions(path: str) -> None:
    """Opening a Parquet file runs code of every registered extension type that it names (Ray's may unpickle), so look before that."""
    system, name = filesystem(path)
    with system.open_input_file(name) as file:
        size = file.size()
        file.seek(max(0, size - 8))
        tail = file.read(8)
        if tail[4:] != b"PAR1":
            raise Mistake(f"{path} is not Parquet, or is cut off: it does not end in PAR1. Make the file again, or leave it out")
        length = min(int.from_bytes(tail[:4], "little"), size - 8)
        file.seek(size - 8 - length)
        footer = file.read(length)
    if any(spelling in footer for spelling in _EXTENSIONS):
        raise Mistake(f"{path} has a column of an Arrow extension type: write it again with plain columns")


def _open_parquet(path: str, *, metadata: pq.FileMetaData | None = None, as_dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    system, name = filesystem(path)
    return pq.ParquetFile(
        name,
        metadata=metadata,
        filesystem=system,
        read_dictionary=as_dictionaries,
        pre_buffer=False,  # read through a buffer, a row group is decoded page by page; pre_buffer would hold it whole
        buffer_size=1 << 20,
        page_checksum_verification=True,
        arrow_extensions_enabled=False,
    )


def _refuse_doubles(path: str, names: list[str]) -> None:
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        raise Mistake(f"{path} has more than one column named {', '.join(sorted(map(escaped, doubles)))}: rename or drop all but one")


def read_parquet(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    end = 0
    with _open_parquet(shard.path) as file:
        metadata, strings = file.metadata, [field.name for field in file.schema_arrow if is_string(field.type)]
    # As dictionaries, a string that many rows share is held once until its rows are cut into pieces.
    with _open_parquet(shard.path, metadata=metadata, as_dictionaries=strings) as file:
        for record_batch in file.iter_batches(batch_rows, row_groups=[shard.group]):
            begin, end = end, end + len(record_batch)
            first, last = max(begin, shard.start), min(end, shard.stop)
            for start, stop in _pieces(record_batch.slice(first - begin, max(0, last - first))):
                rows = shard.first_row - shard.start + np.arange(first + start, first + stop)
                yield _checked(pa.table(record_batch.slice(first - begin + start, stop - start)), rows, [], shard, columns)
            if end >= shard.stop:
                return
    raise Mistake(f"{shard.path} is cut off: row group {shard.group} has {end:,} rows, not {shard.stop:,}. Make the file again")


def _pieces(rows: pa.RecordBatch) -> Iterator[tuple[int, int]]:
    """Where to cut, so that the strings of a piece take some BATCH_BYTES: 600 bytes of Parquet can mean 10 MB in every row."""
    sizes = np.zeros(len(rows), np.int64)
    for column in rows.columns:
        if pa.types.is_dictionary(column.type) and is_string(column.type):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            sizes += pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
    piece = np.cumsum(sizes) // BATCH_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(rows)]
    yield from ((start, stop) for start, stop in itertools.pairwise(cuts) if start < stop)


def look_at_csv(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    rows = _csv_rows(whole.path)
    names, text = next(rows, (None, ""))
    if not names or not is_unicode(text):
        raise Mistake(f"{whole.path} does not begin with the names of its columns: its first row is {excerpt(_as_it_stands(text))[:80]!r}")
    _refuse_doubles(whole.path, names)
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
        yield _checked(table, np.array(list(good), np.int64), bad, shard, columns)


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


def _checked(table: pa.Table, rows: NDArray[np.int64], bad: list[BadRecord], shard: Shard, columns: ColumnsConfig) -> Batch:
    """A batch in the shard's schema; a row without text, or with a string that is not UTF-8, becomes a bad record."""
    num_rows = len(table)
    arrays = [
        _cast(table[field.name], field.type) if field.name in table.column_names else pa.chunked_array([pa.nulls(num_rows, field.type)])
        for field in shard.schema
    ]
    table = pa.Table.from_arrays(arrays, schema=shard.schema)
    reasons: dict[int, tuple[BadReason, bytes]] = {}
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        reasons = _invalid_utf8(table)
        if not reasons:
            raise
    for position in np.flatnonzero(pc.is_null(table[columns.text]).to_numpy()).tolist():
        reasons[position] = "missing_text", b""
    for position in np.flatnonzero(
        pc.fill_null(pc.binary_length(_cast(table[columns.text], pa.string())), 0).to_numpy() > LARGEST_TEXT
    ).tolist():
        reasons[position] = "too_large", b""
    if reasons:
        for position, (reason, content) in reasons.items():
            bad.append(BadRecord(row=int(rows[position]), byte_offset=None, reason=reason, excerpt=excerpt(content)))
        good = np.setdiff1d(np.arange(num_rows), list(reasons))
        table, rows = table.take(good), rows[good]
    return make_batch(table, rows, bad)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Arrow's cast, which knows no way from a dictionary of one layout of strings to another layout."""
    if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(kind):
        column = column.cast(column.type.value_type)
    return column if column.type == kind else column.cast(kind)


def _invalid_utf8(table: pa.Table) -> dict[int, tuple[BadReason, bytes]]:
    reasons: dict[int, tuple[BadReason, bytes]] = {}
    for column in table.columns:
        if not is_string(column.type):
            continue
        for position, value in enumerate(_cast(column, pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError:
                reasons[position] = "invalid_utf8", value
    return reasons


def is_string(kind: pa.DataType) -> bool:
    """Strings in any of Arrow's layouts, dictionaries of them included."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
