"""Files of reviews: which ones an input means, what their names say, their bytes, and what reading a part of one gives.

A path may be a URI such as s3://bucket/dump: pyarrow reads both, so a file in a bucket needs no other code than one on the disk.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.fs
from numpy.typing import NDArray

from han.storage import filesystem
from han.types import Mistake

Kind: TypeAlias = Literal["parquet", "csv", "jsonl", "folder", "tar", "texts"]
Split: TypeAlias = Literal["train", "test", "unsup"]
BadReason: TypeAlias = Literal["malformed", "invalid_utf8", "missing_text", "wrong_type", "too_large", "unreadable", "poison", "failed"]

KINDS = (
    ".parquet, .csv, .jsonl (the last two also .gz or .zst), a folder of them, a folder of .txt files (one review each), an aclImdb "
    "folder, or its .tar.gz"
)
BOMB_BYTES = 1 << 30  # a compressed file may grow to this,
BOMB_RATIO = 200  # or to this many times its size
EXCERPT = 200  # characters
BATCH_BYTES = 64 << 20  # of records that are read together, so that a thousand of 16 MB each are never held at once

T = TypeVar("T")

_NAME = re.compile(r"\.(?:(?P<parquet>parquet|pq)|(?P<csv>csv)(?:\.gz|\.zst)?|(?P<jsonl>jsonl|ndjson|json)(?:\.gz|\.zst)?)$")
_TEXT = re.compile(r"[^._].*\.txt(?:\.gz|\.zst)?", re.DOTALL)
_ARCHIVE = (".tar.gz", ".tgz")
# train.csv, reviews_test.jsonl, and test-00000-of-00004.parquet as Hugging Face names its files
_SPLIT = re.compile(r"(?:.*[-_.])?(train|test|unsup)|(train|test|unsup)(?:ervised)?-\d+-of-\d+")
_CODECS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of the input that one worker reads alone."""

    path: str  # absolute, or a URI
    kind: Kind
    split: Split  # what the file's name says, else train
    group: int  # Parquet: row group; elsewhere 0
    start: int  # Parquet: row in its group; JSONL: byte at which a line starts; folder, texts: file; elsewhere 0
    stop: int  # exclusive; -1: to the end
    first_row: int  # row in the file of the shard's first record, from 0
    schema: pa.Schema  # columns of every `Batch.table`, the same for all shards of an input


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A record that cannot be a review, and why."""

    row: int  # in the file, from 0
    byte_offset: int | None  # at which its line starts; None where rows are not lines
    reason: BadReason
    excerpt: str  # escaped to ASCII, at most 200 characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some consecutive records of a shard."""

    table: pa.Table  # Shard.schema: the input's columns unchanged; strings are UTF-8 and the text is never null
    rows: NDArray[np.int64]  # row in the file of each row of `table`, ascending
    byte_offsets: NDArray[np.int64] | None  # where the line of each row of `table` starts; None where rows are not lines
    bad: tuple[BadRecord, ...]  # the records that are not in `table`, ascending


def make_batch(
    table: pa.Table,
    rows: Sequence[int] | NDArray[np.int64],
    bad: Iterable[BadRecord],
    byte_offsets: Sequence[int] | NDArray[np.int64] | None = None,
) -> Batch:
    offsets = None if byte_offsets is None else np.asarray(byte_offsets, np.int64)
    return Batch(table=table, rows=np.asarray(rows, np.int64), byte_offsets=offsets, bad=tuple(sorted(bad, key=lambda record: record.row)))


def without(batch: Batch, bad: Mapping[int, BadRecord]) -> Batch:
    """The batch with the rows at some positions of its table moved to `bad`."""
    kept = np.setdiff1d(np.arange(len(batch.rows)), list(bad))
    offsets = None if batch.byte_offsets is None else batch.byte_offsets[kept]
    return make_batch(batch.table.take(kept), batch.rows[kept], (*batch.bad, *bad.values()), offsets)


def in_batches(records: Iterable[T], num_records: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """At most `num_records` together, and few enough that their sizes in bytes add up to little more than BATCH_BYTES."""
    batch: list[T] = []
    num_bytes = 0
    for record in records:
        batch.append(record)
        num_bytes += size(record)
        if len(batch) == num_records or num_bytes > BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def find_files(source: str) -> list[tuple[str, Kind]]:
    """(absolute path or URI, kind) of each file of a file, a glob or a folder, sorted. Finding none is a `Mistake`.

    A folder is searched without its subfolders, and names that begin with `_` or `.` are passed over, as Spark and Arrow do. Its .txt
    files are reviews only where it holds no other kind of file: a README.txt beside a dump is none.
    """
    source = source.rstrip("/") or "/"
    system, path = filesystem(source)
    prefix = source.removesuffix(path) if "://" in source else ""
    there = system.get_file_info(path).type
    if there == pa.fs.FileType.File:
        kind = _kind(path)
        if kind is None:
            raise Mistake(f"{source} is of no kind that can be read: give {KINDS}")
        return [(prefix + path, kind)]
    if there == pa.fs.FileType.Directory:
        children = system.get_file_info(pa.fs.FileSelector(path))
        if any(child.type == pa.fs.FileType.Directory and child.base_name in ("train", "test") for child in children):
            return [(prefix + path, "folder")]
        names = [child.path for child in children if child.type == pa.fs.FileType.File]
    elif any(character in source for character in "*?["):
        names = _glob(system, path)
    else:
        raise Mistake(f"{source} is missing: give a file, a folder, a glob, or sample")
    kinds = {name: _kind(name) for name in sorted(names) if file_name(name)[0] not in "._"}
    if there == pa.fs.FileType.Directory and not any(kinds.values()) and any(map(is_text, map(file_name, names))):
        return [(prefix + path, "texts")]
    files: list[tuple[str, Kind]] = [(prefix + name, kind) for name, kind in kinds.items() if kind and kind != "tar"]
    if not files:
        raise Mistake(f"{source} holds no files of reviews: give {KINDS}; for folders in folders a glob such as 'dump/**/*.parquet'")
    return files


def _kind(name: str) -> Kind | None:
    if name.lower().endswith(_ARCHIVE):
        return "tar"
    match = _NAME.search(name.lower())
    return cast(Kind, match.lastgroup) if match else None


def is_text(name: str) -> bool:
    return _TEXT.fullmatch(name.lower()) is not None


def _glob(system: pa.fs.FileSystem, path: str) -> list[str]:
    if isinstance(system, pa.fs.LocalFileSystem):
        return [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
    folder, _, pattern = path.rpartition("/")
    names = [info.path for info in system.get_file_info(pa.fs.FileSelector(folder, allow_not_found=True))]
    return [name for name in names if fnmatchcase(name.rpartition("/")[2], pattern)]


def file_name(path: str) -> str:
    return path.rpartition("/")[2]


def split_of(path: str) -> Split:
    """What the file's name says, else train."""
    match = _SPLIT.fullmatch(_NAME.sub("", file_name(path).lower()))
    return cast(Split, match[1] or match[2]) if match else "train"


def is_compressed(path: str) -> bool:
    return os.path.splitext(path.lower())[1] in _CODECS


def expansion(path: str) -> float:
    """How many times larger the file is once decompressed, going by its first 4 MB; 1 where it is not compressed."""
    codec = _CODECS.get(os.path.splitext(path.lower())[1])
    if codec is None:
        return 1.0
    system, name = filesystem(path)
    with system.open_input_file(name) as file:
        content = pa.CompressedInputStream(file, codec).read(4 << 20)
        return float(len(content) / max(1, file.tell()))


def identity(path: str) -> list[int | str]:
    """What changes when an input does: of a file its size in bytes and time of change in ns, in a bucket its ETag too; of a folder the
    number of files in it, at any depth, and a digest of the names, sizes and times of change of all of them."""
    system, name = filesystem(path)
    info = system.get_file_info(name)
    if info.type == pa.fs.FileType.Directory:
        inside = system.get_file_info(pa.fs.FileSelector(name, recursive=True))
        files = sorted((each.path, each.size, each.mtime_ns) for each in inside if each.type == pa.fs.FileType.File)
        return [len(files), hashlib.sha256(repr(files).encode(errors="surrogateescape")).hexdigest()]
    if isinstance(system, pa.fs.LocalFileSystem):
        return [info.size, info.mtime_ns]
    with system.open_input_file(name) as file:
        return [info.size, info.mtime_ns, bytes(file.metadata().get("ETag", b"")).decode("latin-1")]


def size_of(path: str) -> int:
    system, name = filesystem(path)
    return cast(int, system.get_file_info(name).size)


@contextmanager
def open_bytes(path: str, *, limit: int | None = None) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed by its ending. To grow over `limit` (None: like a bomb) is a `Mistake`."""
    system, name = filesystem(path)
    with system.open_input_file(name) as file:
        codec = _CODECS.get(os.path.splitext(path.lower())[1])
        if codec is None:
            yield cast(BinaryIO, file)
        else:
            most = max(BOMB_BYTES, BOMB_RATIO * file.size()) if limit is None else limit
            yield cast(BinaryIO, _Capped(pa.CompressedInputStream(file, codec), most, f"{path} is {file.size():,} bytes"))


class _Capped(io.RawIOBase):
    """A decompressed stream that stops a bomb."""

    def __init__(self, stream: pa.NativeFile, limit: int, what: str) -> None:
        self._stream, self._limit, self._what = stream, limit, what
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        num_bytes = cast(int, self._stream.readinto(buffer))
        self._num_bytes += num_bytes
        if self._num_bytes > self._limit:
            raise Mistake(f"{self._what}, but over {self._limit:,} when decompressed, the most that is read: split it, or leave it out")
        return num_bytes


@contextmanager
def blaming(path: str) -> Iterator[None]:
    """A file that cannot be decoded is a user's `Mistake`; a disk or a network that fails (its error has an errno) is not."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowIndexError, pa.ArrowNotImplementedError, EOFError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = escaped(str(error).partition("\n")[0])
        raise Mistake(f"{path} cannot be read: {reason}. Make the file again, or leave it out") from None


def excerpt(content: bytes | str) -> str:
    """The beginning of what was read, safe to print: ASCII, at most 200 characters."""
    start = content[:EXCERPT]
    return escaped(start.decode("latin-1") if isinstance(start, bytes) else start)[:EXCERPT]


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")
