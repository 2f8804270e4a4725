r"""JSON lines: bytes -> lines -> records -> a table with the same columns for every batch.

Only b"\n" ends a line: U+2028, \x0b or U+0085 in a review never break a row. Objects need not have the same keys. The columns are those
of the first records. A record with a value that does not fit its column is returned as a bad record.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeAlias, cast

import pyarrow as pa

from han.config import ColumnsConfig
from han.data.files import (
    BadReason,
    BadRecord,
    Batch,
    Shard,
    excerpt,
    in_batches,
    is_compressed,
    is_unicode,
    make_batch,
    open_bytes,
    shard_bytes,
    size_of,
)
from han.types import UserError

Record: TypeAlias = dict[str, Any]

RANGE_BYTES = 16 << 20  # largest shard of a plain file
LONGEST_LINE = 16 << 20  # bytes
DEEPEST = 32  # levels of nesting: a list is two levels in Parquet, whose readers accept 100
SCHEMA_RECORDS = 1_000  # records that decide the columns; fewer if they exceed RANGE_BYTES

_MISFITS = (pa.ArrowException, TypeError, ValueError, OverflowError)


def look_at_jsonl(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    """Shards that begin and end with a line, of at most some 16 MB; a compressed file is one shard."""
    whole = replace(whole, schema=_guess_schema(whole.path, columns))
    if is_compressed(whole.path):
        return [whole]
    size = size_of(whole.path)
    with open_bytes(whole.path) as stream:
        starts = [(0, 0), *_line_starts(stream, shard_bytes(size, RANGE_BYTES))]
    stops = [start for start, _ in starts[1:]] + [size]
    return [replace(whole, start=start, stop=stop, first_row=row) for (start, row), stop in zip(starts, stops, strict=True)]


def read_jsonl(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    """Blank lines are not records, but they count as rows."""
    with open_bytes(shard.path) as stream:
        lines = _read_lines(stream, start=shard.start, stop=shard.stop, first_row=shard.first_row)
        for some in in_batches(lines, batch_rows, size=lambda line: len(line.content or b"")):
            yield _batch(some, shard, columns)


def _batch(lines: list[_Line], shard: Shard, columns: ColumnsConfig) -> Batch:
    kept: list[tuple[_Line, Record]] = []
    bad: list[BadRecord] = []
    for line in lines:
        parsed = _parse(line)
        if not isinstance(parsed, dict):
            bad.append(_bad_record(line, parsed))
        elif parsed.get(columns.text) is None:
            bad.append(_bad_record(line, "missing_text"))
        elif not isinstance(parsed[columns.text], str):
            bad.append(_bad_record(line, "wrong_type"))
        else:
            kept.append((line, parsed))
    table, misfits = _fitting([record for _, record in kept], shard.schema)
    bad += [_bad_record(kept[position][0], reason) for position, reason in misfits.items()]
    fitting = [line for position, (line, _) in enumerate(kept) if position not in misfits]
    return make_batch(table, [line.row for line in fitting], bad, [line.byte_offset for line in fitting])


def _bad_record(line: _Line, reason: BadReason) -> BadRecord:
    return BadRecord(row=line.row, byte_offset=line.byte_offset, reason=reason, excerpt=excerpt(line.content or b""))


@dataclass(frozen=True, slots=True)
class _Line:
    row: int  # in the file, from 0; blank lines count
    byte_offset: int
    content: bytes | None  # None where it is longer than LONGEST_LINE


def _read_lines(stream: BinaryIO, *, start: int, stop: int, first_row: int) -> Iterator[_Line]:
    """The lines from byte `start`, which begins a line, to byte `stop` (-1: the end), without blank lines."""
    if start:
        stream.seek(start)
    buffered = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)
    offset, row = start, first_row
    while offset != stop and (content := buffered.readline(LONGEST_LINE)):
        length = len(content)
        ends = content.endswith(b"\n")
        while not ends and (rest := buffered.readline(LONGEST_LINE)):
            length += len(rest)
            ends = rest.endswith(b"\n")
        if length > len(content):
            yield _Line(row, offset, None)
        elif stripped := content.removeprefix(b"\xef\xbb\xbf" if offset == 0 else b"").strip():
            yield _Line(row, offset, stripped)
        offset, row = offset + length, row + 1


def _line_starts(stream: BinaryIO, range_bytes: int) -> Iterator[tuple[int, int]]:
    """(byte, row) of the first line that starts in each range of the file but the first."""
    position = row = 0
    while chunk := stream.read(range_bytes):
        newline = chunk.find(b"\n")
        if position and 0 <= newline < len(chunk) - 1:
            yield position + newline + 1, row + 1
        position += len(chunk)
        row += chunk.count(b"\n")


def _parse(line: _Line) -> Record | BadReason:
    """The object on a line. Malformed are NaN, Infinity, 1e400, a value that is not an object, and nesting over DEEPEST. Of two equal keys
    the last counts. Raw control characters in strings are accepted."""
    if line.content is None:
        return "too_large"
    try:
        record = _DECODER.decode(line.content.decode("utf-8"))
    except UnicodeDecodeError:
        return "invalid_utf8"
    except (ValueError, RecursionError):
        return "malformed"
    return record if isinstance(record, dict) and not _is_too_deep(record) else "malformed"


def _is_too_deep(record: Record) -> bool:
    level: list[Any] = [record]
    for _ in range(DEEPEST):
        within = itertools.chain.from_iterable(value.values() if isinstance(value, dict) else value for value in level)
        level = [value for value in within if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} exceeds float64")
    return number


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant, parse_float=_finite)


def _guess_schema(path: str, columns: ColumnsConfig) -> pa.Schema:
    """Arrow's types of the first records. A column whose values have no common type holds strings of JSON."""
    records = _first_records(path)
    names = dict.fromkeys(name for record in records for name in record if is_unicode(name))
    kinds = {name: _guess_type([record.get(name) for record in records]) for name in names}
    if any(isinstance(record.get(columns.text), str) for record in records):
        kinds[columns.text] = pa.string()  # a record whose text is not a string is bad
    return pa.schema(list(kinds.items()))


def _first_records(path: str) -> list[Record]:
    records: list[Record] = []
    trouble = "all lines are blank"
    with open_bytes(path) as stream:
        for line in _read_lines(stream, start=0, stop=-1, first_row=0):
            parsed = _parse(line)
            if isinstance(parsed, dict):
                records.append(parsed)
            elif not records:
                trouble = f"line {line.row + 1} is {parsed}, {excerpt(line.content or b'')[:80]}"
            if len(records) == SCHEMA_RECORDS or line.byte_offset > RANGE_BYTES:
                break
    if not records:
        raise UserError(f"{path} holds no JSON objects, one a line: {trouble}")
    return records


def _guess_type(values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except _MISFITS:
        return pa.string()
    return kind if _is_settled(kind) else pa.string()


def _is_settled(kind: pa.DataType) -> bool:
    """Whether the type has no part that was always null, and no struct without fields, which Parquet cannot hold."""
    if pa.types.is_list(kind):
        return _is_settled(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_settled(field.type) for field in kind)
    return not pa.types.is_null(kind)


def _fitting(records: list[Record], schema: pa.Schema) -> tuple[pa.Table, dict[int, BadReason]]:
    """The records that fit the schema, and the reasons of those that do not, by position. Keys outside the schema are dropped.

    A string column stores a value that is not a string as JSON. Any other value must have the type of its column.
    """
    misfits: dict[int, BadReason] = {}
    try:
        return _table(records, schema), misfits
    except _MISFITS:
        for position, record in enumerate(records):
            try:
                _table([record], schema)
            except UnicodeEncodeError:  # half a surrogate pair
                misfits[position] = "invalid_utf8"
            except _MISFITS:
                misfits[position] = "wrong_type"
    return _table([record for position, record in enumerate(records) if position not in misfits], schema), misfits


def _table(records: list[Record], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array([_fitted(record.get(field.name), field.type) for record in records], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _fitted(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if pa.types.is_integer(kind) and isinstance(value, float) and not value.is_integer():
        raise TypeError(f"{value} is no integer")  # Arrow would cut its fraction off
    if pa.types.is_list(kind) and isinstance(value, list):
        return [_fitted(each, kind.value_type) for each in value]
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: _fitted(value.get(field.name), field.type) for field in kind}
    return value
