"""Where reviews come from: any input is cut into shards by what it holds alone, and every shard reads the same each time.

Parquet is cut by row groups, plain JSON lines by bytes, an aclImdb folder by files; CSV, compressed text and the archive are one stream.
A record that cannot be a review (not UTF-8, no text, a broken line) is handed back beside the others with its row and the reason, so
in = out + bad always holds. What is wrong with a whole file is a `Mistake`.
"""

from __future__ import annotations

import base64
import dataclasses
import glob
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from han.config import ColumnsConfig
from han.types import Mistake

Kind: TypeAlias = Literal["parquet", "csv", "jsonl", "folder", "tar"]
Split: TypeAlias = Literal["train", "test", "unsup"]
BadReason: TypeAlias = Literal["malformed", "invalid_utf8", "missing_text", "wrong_type", "too_large"]

REVIEWS = pa.schema([("review_id", pa.string()), ("text", pa.string()), ("label", pa.string()), ("rating", pa.int8())])

_SLICED_ROWS = 5_000  # a row group with more rows is cut
_SLICES = 16  # at most, since a slice decodes the row group from its start
_RANGE_BYTES = 16 << 20  # of a plain JSONL file: about 10 s of scoring
_SCHEMA_RECORDS = 1_000  # of a JSONL file that decide its columns
_RECORD_BYTES = 16 << 20  # longest line or CSV row
_BOMB_BYTES = 1 << 30  # a compressed file may grow to this,
_BOMB_RATIO = 200  # or to this many times its size
_EXCERPT = 200  # characters

_FILE = re.compile(r"\.(?:(?P<parquet>parquet|pq)|(?P<csv>csv)|(?P<jsonl>jsonl|ndjson|json))(?P<codec>\.gz|\.zst)?$")
_SPLIT = re.compile(r"^(?:.*[-_.])?(train|test|unsup)$|^(train|test|unsup)(?:ervised)?-\d+-of-\d+$")
_EXTENSION_KEY = b"ARROW:extension:name"
# A Parquet footer holds its Arrow schema in base64, in which a word has one of three spellings.
_EXTENSION_SPELLINGS = [
    base64.b64encode(bytes(lead) + _EXTENSION_KEY)[-(-lead * 8 // 6) : (lead + len(_EXTENSION_KEY)) * 8 // 6] for lead in range(3)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of the input that one worker reads alone."""

    path: str  # absolute, or a URI such as s3://bucket/file.parquet
    kind: Kind
    split: Split  # what the file's name says, else "train"
    group: int  # Parquet: row group; elsewhere 0
    start: int  # Parquet: row in its group; JSONL: byte, where a line starts; elsewhere 0
    stop: int  # exclusive; -1: to the end
    first_row: int  # row in the file of the shard's first record
    schema: pa.Schema  # columns of every `Batch.table`, the same for all shards of an input


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    row: int  # in the file, from 0
    byte_offset: int | None  # where its line starts; None where rows are not lines
    reason: BadReason
    excerpt: str  # escaped ASCII, at most 200 characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some consecutive records of a shard."""

    table: pa.Table  # Shard.schema: the input's columns unchanged; the text is UTF-8 and never null
    rows: NDArray[np.int64]  # row in the file of each row of `table`, ascending
    bad: tuple[BadRecord, ...]  # records that are not in `table`


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    schema: pa.Schema
    shards: list[Shard]


def find_shards(source: str, columns: ColumnsConfig, *, labelled: bool) -> list[Shard]:
    """All shards of an input, in the order of its rows. Whatever can be wrong with it before any work is a `Mistake` here.

    `source` is a file, a glob, a folder of files, or "sample". A folder is read without its subfolders; names that begin with `_` or
    `.` and files of other kinds are passed over. Files may lack columns that others have (null), but a name has one type.
    With `labelled`, each file needs the label column, unless its name says unsup, and the first labels are tried.
    """
    found = [_look(path, columns) for path in _find_files(source)]
    shards = [shard for each in found for shard in each.shards]
    if not shards:
        raise Mistake(f"{source} holds no reviews")
    if labelled:
        for each in found:
            if any(shard.split != "unsup" for shard in each.shards):
                _check_column(each.shards[0].path, each.schema, columns.label, option="label")
    schema = _one_schema([(shard.path, shard.kind, shard.schema) for each in found for shard in each.shards[:1]])
    return [dataclasses.replace(shard, schema=schema) for shard in shards]


def read(shard: Shard, columns: ColumnsConfig, *, batch_rows: int = 1024) -> Iterator[Batch]:
    """The shard's records in file order, at most `batch_rows` in a batch. A file that breaks off or cannot be decoded is a `Mistake`."""
    readers = {"parquet": _read_parquet, "jsonl": _read_jsonl}
    with _blaming(shard.path):
        yield from readers[shard.kind](shard, columns, batch_rows)


# Files


def _find_files(source: str) -> list[str]:
    if source == "sample":
        from han.samples import REVIEWS as bundled

        source = str(bundled)
    system, path = _filesystem(source)
    kind = system.get_file_info(path).type
    if kind == pa.fs.FileType.File:
        if not _FILE.search(path.lower()):
            raise Mistake(f"{source} is of no kind that is known: give .parquet, .csv, .jsonl (.gz or .zst after either of the last two)")
        return [source if "://" in source else path]
    if kind == pa.fs.FileType.Directory:
        names = [info.path for info in system.get_file_info(pa.fs.FileSelector(path)) if info.type == pa.fs.FileType.File]
        wanted = f"a folder with .parquet, .csv or .jsonl files; for folders in folders give a glob, '{source.rstrip('/')}/**/*.parquet'"
    elif any(character in source for character in "*?["):
        names = _glob(system, path)
        wanted = "a glob that matches .parquet, .csv or .jsonl files"
    else:
        raise Mistake(f"{source} is missing: give a file, a folder, a glob, or sample")
    prefix = source.removesuffix(path) if "://" in source else ""
    files = sorted(prefix + name for name in names if _FILE.search(name.lower()) and name.rpartition("/")[2][0] not in "._")
    if not files:
        raise Mistake(f"{source} holds no reviews: give {wanted}")
    return files


def _glob(system: pa.fs.FileSystem, path: str) -> list[str]:
    if isinstance(system, pa.fs.LocalFileSystem):
        return [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
    folder, _, pattern = path.rpartition("/")
    names = [info.path for info in system.get_file_info(pa.fs.FileSelector(folder, allow_not_found=True))]
    return [name for name in names if fnmatchcase(name.rpartition("/")[2], pattern)]


def _filesystem(path: str) -> tuple[pa.fs.FileSystem, str]:
    if "://" in path:
        return cast(tuple[pa.fs.FileSystem, str], pa.fs.FileSystem.from_uri(path))
    return pa.fs.LocalFileSystem(), os.path.abspath(path)


def _look(path: str, columns: ColumnsConfig) -> _Found:
    """The columns and shards of one file; its text and id columns are of types that can be read."""
    if _size(path) == 0:
        raise Mistake(f"{path} is empty: 0 bytes")
    kind = _kind(path)
    with _blaming(path):
        found = {"parquet": _look_at_parquet, "jsonl": _look_at_jsonl}[kind](path, columns)
    _check_column(path, found.schema, columns.text, option="text")
    kind_of_text = found.schema.field(columns.text).type
    if not _is_string(kind_of_text):
        raise Mistake(f"{path}: column {columns.text} holds {kind_of_text}, not strings: name the column of reviews with --columns.text")
    return found


def _kind(path: str) -> Kind:
    match = _FILE.search(path.lower())
    assert match is not None  # noqa: S101 - _find_files lists no others
    return cast(Kind, next(name for name in ("parquet", "csv", "jsonl") if match[name]))


def _split(path: str) -> Split:
    stem = _FILE.sub("", path.lower().rpartition("/")[2])
    match = _SPLIT.search(stem)
    return cast(Split, match[1] or match[2]) if match else "train"


def _size(path: str) -> int:
    system, name = _filesystem(path)
    return cast(int, system.get_file_info(name).size)


def _check_column(path: str, schema: pa.Schema, name: str, *, option: str) -> None:
    if name not in schema.names:
        there = ", ".join(_escaped(each)[:40] for each in schema.names[:20])
        raise Mistake(f"{path} has no column {name}: it has {there}. Name the right one with --columns.{option}")


def _one_schema(files: Iterable[tuple[str, Kind, pa.Schema]]) -> pa.Schema:
    """The columns of all files together. JSON's types are only guesses and give way to each other; others must be the same."""
    first: dict[str, tuple[str, Kind, pa.DataType]] = {}
    for path, kind, schema in files:
        for field in schema:
            if field.name not in first:
                first[field.name] = path, kind, field.type
                continue
            other, other_kind, known = first[field.name]
            if known == field.type:
                continue
            if kind != "jsonl" or other_kind != "jsonl":
                raise Mistake(f"column {field.name} holds {known} in {other} but {field.type} in {path}: give them one type")
            numbers = {known, field.type} == {pa.int64(), pa.float64()}
            first[field.name] = other, kind, pa.float64() if numbers else pa.string()
    return pa.schema([(name, kind_of_value) for name, (_, _, kind_of_value) in first.items()])


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


@contextmanager
def _blaming(path: str) -> Iterator[None]:
    """A file that pyarrow cannot read is a user's mistake; a disk or a network that fails (it has an errno) is not."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Mistake(
            f"{path} cannot be read: {_escaped(str(error).partition(chr(10))[0])}. Make the file again, or leave it out"
        ) from None


# Parquet


def _look_at_parquet(path: str, columns: ColumnsConfig) -> _Found:
    _refuse_extensions(path)
    with _open_parquet(path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        grown = sum(group.total_byte_size for group in groups)
        if grown > max(_BOMB_BYTES, _BOMB_RATIO * _size(path)):
            raise Mistake(f"{path} claims to hold {grown:,} bytes in {_size(path):,}: not read")
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise Mistake(f"{path} has two columns of one name: {', '.join(sorted({name for name in names if names.count(name) > 1}))}")
        schema = pa.schema([(field.name, field.type) for field in file.schema_arrow])
    shards, first_row = [], 0
    for index, group in enumerate(groups):
        size = max(_SLICED_ROWS, math.ceil(group.num_rows / _SLICES))
        for start in range(0, group.num_rows, size):
            stop = min(start + size, group.num_rows)
            rows = {"group": index, "start": start, "stop": stop, "first_row": first_row + start}
            shards.append(Shard(path=path, kind="parquet", split=_split(path), schema=schema, **rows))
        first_row += group.num_rows
    return _Found(schema=schema, shards=shards)


def _refuse_extensions(path: str) -> None:
    """Opening a Parquet file runs the code of every registered Arrow extension type that it names (Ray's unpickle), so look first."""
    system, name = _filesystem(path)
    with system.open_input_file(name) as file:
        size = file.size()
        file.seek(max(0, size - 8))
        tail = file.read(8)
        if tail[4:] != b"PAR1":
            raise Mistake(f"{path} is not a Parquet file, or is cut off: it does not end in PAR1. Make the file again, or leave it out")
        length = int.from_bytes(tail[:4], "little")
        file.seek(max(0, size - 8 - length))
        footer = file.read(length)
    if any(spelling in footer for spelling in _EXTENSION_SPELLINGS):
        raise Mistake(f"{path} has a column of an Arrow extension type: write it again with plain columns")


def _open_parquet(path: str) -> pq.ParquetFile:
    system, name = _filesystem(path)
    # A buffer in place of pre_buffer: a row group is decoded page by page, never held whole.
    return pq.ParquetFile(
        name, filesystem=system, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True, arrow_extensions_enabled=False
    )


def _read_parquet(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    with _open_parquet(shard.path) as file:
        end = 0
        for record_batch in file.iter_batches(batch_rows, row_groups=[shard.group]):
            begin, end = end, end + len(record_batch)
            first = max(begin, shard.start)
            last = min(end, shard.stop)
            if first < last:
                table = pa.table(record_batch).slice(first - begin, last - first)
                yield _checked(table, shard.first_row - shard.start + np.arange(first, last), shard, columns)
            if end >= shard.stop:
                return
    raise Mistake(f"{shard.path} is cut off: row group {shard.group} ends after {end:,} rows of {shard.stop:,}")


def _checked(table: pa.Table, rows: NDArray[np.int64], shard: Shard, columns: ColumnsConfig, bad: Iterable[BadRecord] = ()) -> Batch:
    """A batch in the shard's schema; rows without a text, and rows with a string that is not UTF-8, become bad records."""
    num_rows = len(table)
    arrays = [table[field.name] if field.name in table.column_names else pa.nulls(num_rows, field.type) for field in shard.schema]
    table = pa.Table.from_arrays(arrays, schema=shard.schema)
    reasons: dict[int, tuple[BadReason, str]] = {}
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        reasons.update(_invalid_utf8(table))
        if not reasons:
            raise
    missing = np.flatnonzero(pc.is_null(table[columns.text]).to_numpy())
    reasons.update((int(place), ("missing_text", "")) for place in missing)
    if reasons:
        good = np.setdiff1d(np.arange(num_rows), list(reasons))
        bad = [
            *bad,
            *(
                BadRecord(row=int(rows[place]), byte_offset=None, reason=reason, excerpt=excerpt)
                for place, (reason, excerpt) in reasons.items()
            ),
        ]
        table, rows = table.take(good), rows[good]
    return Batch(table=table, rows=rows, bad=tuple(sorted(bad, key=lambda record: record.row)))


def _invalid_utf8(table: pa.Table) -> dict[int, tuple[BadReason, str]]:
    reasons: dict[int, tuple[BadReason, str]] = {}
    for column in table.columns:
        if not _is_string(column.type):
            continue
        plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for place, value in enumerate(plain.cast(pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError:
                reasons[place] = "invalid_utf8", _excerpt(value)
    return reasons


def _excerpt(line: bytes) -> str:
    return _escaped(line[:_EXCERPT].decode("utf-8", "backslashreplace"))[:_EXCERPT]


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


# JSON lines


@dataclass(frozen=True, slots=True)
class _Line:
    row: int
    byte_offset: int
    content: bytes | None  # None where it is too large to hold


def _look_at_jsonl(path: str, columns: ColumnsConfig) -> _Found:
    whole = Shard(path=path, kind="jsonl", split=_split(path), group=0, start=0, stop=-1, first_row=0, schema=pa.schema([]))
    schema = _guess_schema(whole, columns)
    if path.lower().endswith((".gz", ".zst")):
        return _Found(schema=schema, shards=[dataclasses.replace(whole, schema=schema)])
    with _open_bytes(path) as stream:
        starts = [(0, 0), *_line_starts(stream)]
    stops = [start for start, _ in starts[1:]] + [_size(path)]
    shards = [
        dataclasses.replace(whole, start=start, stop=stop, first_row=first_row, schema=schema)
        for (start, first_row), stop in zip(starts, stops, strict=True)
    ]
    return _Found(schema=schema, shards=shards)


def _line_starts(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """(byte, row) of the first line that starts in each range of the file but the first."""
    position = num_lines = 0
    while chunk := stream.read(_RANGE_BYTES):
        newline = chunk.find(b"\n")
        if position and 0 <= newline < len(chunk) - 1:
            yield position + newline + 1, num_lines + 1
        position += len(chunk)
        num_lines += chunk.count(b"\n")


def _guess_schema(whole: Shard, columns: ColumnsConfig) -> pa.Schema:
    """Arrow's types of the first 1,000 records; keys that only later lines have are left out. What has no single type is JSON text."""
    records: list[dict[str, Any]] = []
    num_bytes = 0
    trouble = "it has only blank lines"
    for line in _lines(whole):
        parsed = _parse(line)
        if isinstance(parsed, dict):
            records.append(parsed)
        elif not records:
            trouble = f"line {line.row + 1} is {parsed.reason}: {parsed.excerpt[:80]}"
        num_bytes += len(line.content or b"")
        if len(records) == _SCHEMA_RECORDS or num_bytes > _RECORD_BYTES:
            break
    if not records:
        raise Mistake(f"{whole.path} holds no JSON objects, one a line: {trouble}")
    names = dict.fromkeys(name for record in records for name in record if _is_unicode(name))
    schema = pa.schema([(name, _guess_type([record.get(name) for record in records])) for name in names])
    if columns.text in names:
        texts = [record.get(columns.text) for record in records]
        if any(isinstance(text, str) for text in texts):
            schema = schema.set(schema.get_field_index(columns.text), pa.field(columns.text, pa.string()))
    return schema


def _guess_type(values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.string()
    return kind if _is_settled(kind) else pa.string()


def _is_settled(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _is_settled(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_settled(field.type) for field in kind)
    return not pa.types.is_null(kind)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_jsonl(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    lines: list[_Line] = []
    for line in _lines(shard):
        lines.append(line)
        if len(lines) == batch_rows:
            yield _batch_of_lines(lines, shard, columns)
            lines = []
    if lines:
        yield _batch_of_lines(lines, shard, columns)


def _lines(shard: Shard) -> Iterator[_Line]:
    r"""Lines that are not blank, split at b"\n" alone: U+2028, \x0b or U+0085 in a review never break a row."""
    with _open_bytes(shard.path) as raw:
        if shard.start:
            raw.seek(shard.start)
        stream = io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)
        offset, row = shard.start, shard.first_row
        while offset != shard.stop and (line := stream.readline(_RECORD_BYTES)):
            length = len(line)
            is_whole = line.endswith(b"\n") or length < _RECORD_BYTES
            while not is_whole and (rest := stream.readline(_RECORD_BYTES)):
                length += len(rest)
                is_whole = rest.endswith(b"\n")
            content = line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
            if length > len(line):
                yield _Line(row, offset, None)
            elif content.strip():
                yield _Line(row, offset, content)
            offset, row = offset + length, row + 1


def _parse(line: _Line) -> dict[str, Any] | BadRecord:
    if line.content is None:
        return _bad(line, "too_large")
    try:
        text = line.content.decode("utf-8")
    except UnicodeDecodeError:
        return _bad(line, "invalid_utf8")
    try:
        record = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return _bad(line, "malformed")
    return record if isinstance(record, dict) else _bad(line, "malformed")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)  # not strict: a raw tab in a review breaks nothing


def _bad(line: _Line, reason: BadReason) -> BadRecord:
    return BadRecord(row=line.row, byte_offset=line.byte_offset, reason=reason, excerpt=_excerpt(line.content or b""))


def _batch_of_lines(lines: list[_Line], shard: Shard, columns: ColumnsConfig) -> Batch:
    kept: list[tuple[_Line, dict[str, Any]]] = []
    bad: list[BadRecord] = []
    for line in lines:
        record = _parse(line)
        if isinstance(record, BadRecord):
            bad.append(record)
        elif record.get(columns.text) is None:
            bad.append(_bad(line, "missing_text"))
        elif not isinstance(record[columns.text], str):
            bad.append(_bad(line, "wrong_type"))
        else:
            kept.append((line, record))
    try:
        table = _table([record for _, record in kept], shard.schema)
    except _MISFITS:
        misfits = {line.row: reason for line, record in kept if (reason := _misfit(record, shard.schema))}
        bad += [_bad(line, misfits[line.row]) for line, _ in kept if line.row in misfits]
        kept = [(line, record) for line, record in kept if line.row not in misfits]
        table = _table([record for _, record in kept], shard.schema)
    rows = np.array([line.row for line, _ in kept], dtype=np.int64)
    return Batch(table=table, rows=rows, bad=tuple(sorted(bad, key=lambda record: record.row)))


_MISFITS = (pa.ArrowException, TypeError, ValueError, OverflowError)  # UnicodeEncodeError is a ValueError


def _misfit(record: dict[str, Any], schema: pa.Schema) -> BadReason | None:
    try:
        _table([record], schema)
    except UnicodeEncodeError:  # half a surrogate pair
        return "invalid_utf8"
    except _MISFITS:
        return "wrong_type"
    return None


def _table(records: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Records in the schema. A value that is not of its column's type is an error; in a string column it stays as its JSON text."""
    arrays = [pa.array([_fitted(record.get(field.name), field.type) for record in records], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _fitted(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if pa.types.is_integer(kind) and isinstance(value, float) and not value.is_integer():  # Arrow would cut the fraction off
        raise TypeError(f"{value} is no integer")
    if pa.types.is_list(kind) and isinstance(value, list):
        return [_fitted(each, kind.value_type) for each in value]
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: _fitted(value.get(field.name), field.type) for field in kind}
    return value


# Bytes


@contextmanager
def _open_bytes(path: str) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed by its ending; one that grows like a bomb is a `Mistake`."""
    system, name = _filesystem(path)
    with system.open_input_file(name) as file:
        codec = {".gz": "gzip", ".zst": "zstd"}.get(os.path.splitext(path.lower())[1])
        yield cast(BinaryIO, _Capped(path, pa.CompressedInputStream(file, codec), file.size()) if codec else file)


class _Capped(io.RawIOBase):
    """A decompressed stream that stops a bomb."""

    def __init__(self, path: str, stream: pa.NativeFile, compressed_bytes: int) -> None:
        self._path, self._stream = path, stream
        self._room = max(_BOMB_BYTES, _BOMB_RATIO * compressed_bytes)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        num_bytes = cast(int, self._stream.readinto(buffer))
        self._room -= num_bytes
        if self._room < 0:
            raise Mistake(f"{self._path} grows more than {_BOMB_RATIO} times when decompressed, and over 1 GiB: not read")
        return num_bytes


def read_ids(path: Path) -> frozenset[str]:
    """The review ids of a file, one a line. A missing file, or one without ids, is a `Mistake`."""
    try:
        ids = frozenset(line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip())
    except FileNotFoundError:
        raise Mistake(f"{path} is missing: give a file with one review id a line") from None
    except UnicodeDecodeError:
        raise Mistake(f"{path} is not text: give a file with one review id a line") from None
    if not ids:
        raise Mistake(f"{path} holds no ids: give a file with one review id a line")
    return ids


# Reviews


def reviews(batch: Batch, shard: Shard, columns: ColumnsConfig, *, labelled: bool) -> pa.Table:
    """The batch as `REVIEWS`: an id, the text, the name of the label (null: unlabelled, or not `labelled`), stars (null: none)."""
    labels, ratings = [], []
    table = batch.table
    ids = _ids(batch, shard, columns)
    texts = table[columns.text].cast(pa.string())
    labels = [None] * len(ids)
    if labelled and columns.label in table.column_names:
        names = _Names(shard.path, columns)
        labels = [names.of(value, review_id) for value, review_id in zip(table[columns.label].to_pylist(), ids, strict=True)]
    ratings = [None] * len(ids)
    if columns.rating in table.column_names:
        ratings = [_stars(value) for value in table[columns.rating].to_pylist()]
    arrays = [pa.array(ids, pa.string()), texts, pa.array(labels, pa.string()), pa.array(ratings, pa.int8())]
    return pa.Table.from_arrays(arrays, schema=REVIEWS)


def _ids(batch: Batch, shard: Shard, columns: ColumnsConfig) -> list[str]:
    name = shard.path.rpartition("/")[2]
    numbered = [f"{name}:{row}" for row in batch.rows]
    if columns.review_id not in batch.table.column_names:
        return numbered
    given = batch.table[columns.review_id].to_pylist()
    return [other if value is None or value == "" else str(value) for value, other in zip(given, numbered, strict=True)]


_INTEGER = re.compile(r"[-+]?\d+")
_IMDB_ID = re.compile(r"(?:train|test)/(?:pos|neg|unsup)/\d+_\d+")
_IMDB_LABELS = ("negative", "positive")


class _Names:
    """What labels are called."""

    def __init__(self, path: str, columns: ColumnsConfig) -> None:
        self._path, self._column, self._names = path, columns.label, columns.label_names
        # Where names are themselves numbers, a number in text is a name, never an index of one.
        self._indexed = not any(_INTEGER.fullmatch(name) for name in self._names)

    def of(self, value: Any, review_id: str) -> str | None:
        if value is None or value == "":
            return None
        if isinstance(value, str):
            if value in self._names:
                return value
            if not (_INTEGER.fullmatch(value) and self._indexed):
                if self._names:
                    raise Mistake(f"{self._where} holds {value!r}, which is none of --columns.label-names {' '.join(self._names)}")
                return value
        index = int(value)
        if index == -1:
            return None
        names = self._names or (_IMDB_LABELS if _IMDB_ID.fullmatch(review_id) else ())
        if not names:
            raise Mistake(f"{self._where} holds integers such as {index}: name them in order with --columns.label-names")
        if not 0 <= index < len(names):
            raise Mistake(f"{self._where} holds {index}, but --columns.label-names are {len(names)}, from 0: {' '.join(names)}")
        return names[index]

    @property
    def _where(self) -> str:
        return f"{self._path}: column {self._column}"


def _stars(value: Any) -> int | None:
    try:
        stars = float(value)
    except (TypeError, ValueError):
        return None
    return int(stars) if stars.is_integer() and 1 <= stars <= 127 else None
