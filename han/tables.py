"""Parquet and CSV: formats whose rows are a table already. Rows that cannot be reviews are taken out, the others stay as they are."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from han.config import ColumnsConfig
from han.files import (
    BOMB_BYTES,
    BOMB_RATIO,
    BadReason,
    BadRecord,
    Batch,
    Shard,
    escaped,
    excerpt,
    filesystem,
    make_batch,
    open_bytes,
    size_of,
)
from han.types import Mistake

SLICED_ROWS = 5_000  # a row group with more rows is cut,
SLICES = 16  # into so many at most, since reading a slice decodes its row group from the start
CSV_BLOCK_BYTES = (1 << 20, 16 << 20)  # Arrow holds some 30 blocks at once, and no row may be longer than one

# A Parquet footer holds its Arrow schema in base64, in which a word has three spellings, by its position modulo 3.
_EXTENSION = b"ARROW:extension:name"
_EXTENSIONS = [base64.b64encode(bytes(lead) + _EXTENSION)[math.ceil(lead * 8 / 6) : (lead + len(_EXTENSION)) * 8 // 6] for lead in range(3)]


def look_at_parquet(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    """One shard a row group, or up to 16 for one of over 5,000 rows; none where there are no rows."""
    _refuse_extensions(whole.path)
    with _open_parquet(whole.path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        schema = pa.schema([(field.name, field.type) for field in file.schema_arrow])
    claimed, size = sum(group.total_byte_size for group in groups), size_of(whole.path)
    if claimed > max(BOMB_BYTES, BOMB_RATIO * size):
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


def _open_parquet(path: str) -> pq.ParquetFile:
    system, name = filesystem(path)
    # Read through a buffer, a row group is decoded page by page; pre_buffer would hold it whole.
    return pq.ParquetFile(
        name, filesystem=system, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True, arrow_extensions_enabled=False
    )


def _refuse_doubles(path: str, names: list[str]) -> None:
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        raise Mistake(f"{path} has more than one column named {', '.join(sorted(map(escaped, doubles)))}: rename or drop all but one")


def read_parquet(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    end = 0
    with _open_parquet(shard.path) as file:
        for record_batch in file.iter_batches(batch_rows, row_groups=[shard.group]):
            begin, end = end, end + len(record_batch)
            first, last = max(begin, shard.start), min(end, shard.stop)
            if first < last:
                rows = shard.first_row - shard.start + np.arange(first, last)
                yield _checked(pa.table(record_batch.slice(first - begin, last - first)), rows, [], shard, columns)
            if end >= shard.stop:
                return
    raise Mistake(f"{shard.path} is cut off: row group {shard.group} has {end:,} rows, not {shard.stop:,}. Make the file again")


def look_at_csv(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    blocks = _csv_blocks(whole.path, [], lambda _: "skip")
    for block in blocks:
        blocks.close()
        _refuse_doubles(whole.path, block.schema.names)
        return [replace(whole, schema=pa.schema([(name, pa.string()) for name in block.schema.names]))]
    return []


def read_csv(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    """Rows with more or fewer fields than the header are malformed."""
    ragged: dict[int, BadRecord] = {}
    next_row = 0

    def on_invalid_row(row: Any) -> str:
        number = row.number - 2  # Arrow counts from 1, and the header too
        if number >= next_row:
            ragged[number] = BadRecord(row=number, byte_offset=None, reason="malformed", excerpt=excerpt(row.text.encode()))
        return "skip"

    for block in _csv_blocks(shard.path, shard.schema.names, on_invalid_row):
        for start in range(0, len(block), batch_rows):
            table = pa.table(block.slice(start, batch_rows))
            rows = np.setdiff1d(np.arange(next_row, next_row + len(table) + len(ragged)), list(ragged))[: len(table)]
            next_row = int(rows[-1]) + 1
            bad = [ragged.pop(row) for row in sorted(ragged) if row < next_row]
            yield _checked(table, rows, bad, shard, columns)
    if ragged:
        yield make_batch(shard.schema.empty_table(), [], ragged.values())


def _csv_blocks(path: str, names: Iterable[str], on_invalid_row: Callable[[Any], str]) -> Generator[pa.RecordBatch, None, None]:
    """The file's rows that are not ragged, no block empty. One that holds a row longer than a small block is begun again in large ones.

    CSV has no types, and those guessed from a file's first block would not fit a later one (007, N/A): all columns are strings.
    """
    num_rows = 0
    for block_bytes in CSV_BLOCK_BYTES:
        options = {
            "read_options": pa.csv.ReadOptions(use_threads=False, block_size=block_bytes),
            "parse_options": pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_invalid_row),
            "convert_options": pa.csv.ConvertOptions(check_utf8=False, column_types=dict.fromkeys(names, pa.string())),
        }
        known = num_rows
        try:
            with open_bytes(path) as stream, pa.csv.open_csv(stream, **options) as reader:
                for block in reader:
                    fresh = block.slice(known)
                    known -= len(block) - len(fresh)
                    num_rows += len(fresh)
                    if len(fresh):
                        yield fresh
            return
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
    raise Mistake(f"{path} holds a row of over {CSV_BLOCK_BYTES[-1]:,} bytes, or a quote that is never closed: mend it")


def _checked(table: pa.Table, rows: NDArray[np.int64], bad: list[BadRecord], shard: Shard, columns: ColumnsConfig) -> Batch:
    """A batch in the shard's schema; a row without text, or with a string that is not UTF-8, becomes a bad record."""
    num_rows = len(table)
    arrays = [
        table[field.name] if field.name in table.column_names else pa.chunked_array([pa.nulls(num_rows, field.type)])
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
    if reasons:
        for position, (reason, content) in reasons.items():
            bad.append(BadRecord(row=int(rows[position]), byte_offset=None, reason=reason, excerpt=excerpt(content)))
        good = np.setdiff1d(np.arange(num_rows), list(reasons))
        table, rows = table.take(good), rows[good]
    return make_batch(table, rows, bad)


def _invalid_utf8(table: pa.Table) -> dict[int, tuple[BadReason, bytes]]:
    reasons: dict[int, tuple[BadReason, bytes]] = {}
    for column in table.columns:
        if not is_string(column.type):
            continue
        plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for position, value in enumerate(plain.cast(pa.large_binary()).to_pylist()):
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
