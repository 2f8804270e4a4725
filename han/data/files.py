"""Files of reviews: which files an input names, what a file's name says, its bytes, and the types that readers return.

A path may be a URI such as s3://bucket/dump. pyarrow reads both, so a bucket needs no code of its own.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.fs
from numpy.typing import NDArray

from han.storage import filesystem
from han.types import UserError

Kind: TypeAlias = Literal["parquet", "csv", "jsonl", "folder", "tar", "texts"]
Split: TypeAlias = Literal["train", "test", "unsup"]
BadReason: TypeAlias = Literal["malformed", "invalid_utf8", "missing_text", "wrong_type", "too_large", "unreadable", "poison", "failed"]

KINDS = (
    ".parquet, .csv, .tsv, .jsonl (all but Parquet also as .gz or .zst), a folder of them, a folder of .txt files (one review each), an "
    "aclImdb folder, or its .tar.gz"
)
BOMB_BYTES = 1 << 30  # a compressed file may grow to this,
BOMB_RATIO = 200  # or to this many times its size
EXCERPT = 200  # characters
BATCH_BYTES = 64 << 20  # largest batch: 1,024 records of 16 MB each must not be in memory at once
FILE_SHARDS = 16  # shards of a file that is not large, so that one file keeps the CPUs of one machine busy
SMALLEST_RANGE = 256 << 10  # bytes; some 200 reviews, a second of work

T = TypeVar("T")

_NAME = re.compile(r"\.(?:(?P<parquet>parquet|pq)|(?P<csv>csv|tsv)(?:\.gz|\.zst)?|(?P<jsonl>jsonl|ndjson|json)(?:\.gz|\.zst)?)$")
_TEXT = re.compile(r"[^._].*\.txt(?:\.gz|\.zst)?", re.DOTALL)
_ARCHIVE = (".tar.gz", ".tgz")
# train.csv, reviews_test.jsonl, and test-00000-of-00004.parquet as Hugging Face names its files
_SPLIT = re.compile(r"(?:.*[-_.])?(train|test|unsup)|(train|test|unsup)(?:ervised)?-\d+-of-\d+")
_CODECS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}


class InputChanged(UserError):
    """An input file is no longer the file that was found at the start of the job. One line that names the file."""


class Member(NamedTuple):
    """A file of a folder that is read as one input."""

    name: str  # relative to the folder
    size: int  # bytes
    mtime_ns: int  # time of the last modification


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of the input that one worker reads alone."""

    path: str  # absolute, or a URI
    kind: Kind
    split: Split  # what the file's name says, else train
    group: int  # Parquet: row group; elsewhere 0
    start: int  # Parquet: row in its group; JSONL, CSV: byte at which a record starts; folder, texts: position of a file; elsewhere 0
    stop: int  # exclusive; -1: to the end
    first_row: int  # row in the file of the shard's first record, from 0
    schema: pa.Schema  # columns of every `Batch.table`, the same for all shards of an input
    # Without repr: the name of a shard must not depend on when its file was copied.
    identity: tuple[int | str, ...] | None = field(default=None, repr=False)  # of the file when it was found; None for folders
    members: tuple[Member, ...] = field(default=(), repr=False)  # folder, texts: the files of this shard when they were found


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A record that cannot be read as a review, and the reason."""

    row: int  # in the file, from 0
    byte_offset: int | None  # start of its line; None unless the file is JSON lines
    reason: BadReason
    excerpt: str  # escaped to ASCII, at most 200 characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some consecutive records of a shard."""

    table: pa.Table  # Shard.schema: the input's columns unchanged; strings are UTF-8 and the text is never null
    rows: NDArray[np.int64]  # row in the file of each row of `table`, ascending
    byte_offsets: NDArray[np.int64] | None  # start of the line of each row of `table`; None unless the file is JSON lines
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
    """The batch after the rows at the positions in `bad` were moved from its table to its bad records."""
    kept = np.setdiff1d(np.arange(len(batch.rows)), list(bad))
    offsets = None if batch.byte_offsets is None else batch.byte_offsets[kept]
    return make_batch(batch.table.take(kept), batch.rows[kept], (*batch.bad, *bad.values()), offsets)


def in_batches(records: Iterable[T], num_records: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of at most `num_records` records; a list ends early once its sizes, in bytes, exceed BATCH_BYTES."""
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
    """(absolute path or URI, kind) of each input file, sorted. `source` is a file, a glob or a folder; no file is a `UserError`.

    Subfolders of a folder are not searched. Names that begin with `_` or `.` are ignored, as Spark and Arrow do. The .txt files of a
    folder are reviews only if it holds no file of another kind: a README.txt next to a dump is not a review.
    """
    if not source:
        raise UserError(f"the input is an empty string: give {KINDS}")
    source = source.rstrip("/") or "/"
    system, path = filesystem(source)
    prefix = source.removesuffix(path) if "://" in source else ""
    file_type = system.get_file_info(path).type
    if file_type == pa.fs.FileType.File:
        kind = _kind(path)
        if kind is None:
            raise UserError(f"{source} is not a supported kind of file: give {KINDS}")
        return [(prefix + path, kind)]
    if file_type == pa.fs.FileType.Directory:
        children = system.get_file_info(pa.fs.FileSelector(path))
        if any(child.type == pa.fs.FileType.Directory and child.base_name in ("train", "test") for child in children):
            return [(prefix + path, "folder")]
        names = [child.path for child in children if child.type == pa.fs.FileType.File]
    elif any(character in source for character in "*?["):
        names = _glob(system, path)
    else:
        raise UserError(f"{source} is missing: give a file, a folder, a glob, or sample")
    kinds = {name: _kind(name) for name in sorted(names) if file_name(name)[0] not in "._"}
    if file_type == pa.fs.FileType.Directory and not any(kinds.values()) and any(map(is_text, map(file_name, names))):
        return [(prefix + path, "texts")]
    files: list[tuple[str, Kind]] = [(prefix + name, kind) for name, kind in kinds.items() if kind and kind != "tar"]
    if not files:
        raise UserError(f"{source} holds no files of reviews: give {KINDS}; for folders in folders a glob such as 'dump/**/*.parquet'")
    return files


def _kind(name: str) -> Kind | None:
    if name.lower().endswith(_ARCHIVE):
        return "tar"
    match = _NAME.search(name.lower())
    return cast(Kind, match.lastgroup) if match else None


def shard_bytes(size: int, largest: int) -> int:
    """Bytes of a shard of a file of `size` bytes: the file gives FILE_SHARDS shards, unless they would be very small or very large."""
    return max(min(largest, size // FILE_SHARDS), min(largest, SMALLEST_RANGE))


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
    """The split in the file's name, else train."""
    match = _SPLIT.fullmatch(_NAME.sub("", file_name(path).lower()))
    return cast(Split, match[1] or match[2]) if match else "train"


def is_compressed(path: str) -> bool:
    return os.path.splitext(path.lower())[1] in _CODECS


def expansion(path: str) -> float:
    """Decompressed size over file size, estimated from the first 4 MB that come out; 1 if the file is not compressed."""
    codec = _CODECS.get(os.path.splitext(path.lower())[1])
    if codec is None:
        return 1.0
    system, name = filesystem(path)
    with system.open_input_file(name) as file:
        content = pa.CompressedInputStream(file, codec).read(4 << 20)
        return float(len(content) / max(1, file.tell()))


def identity(path: str) -> tuple[int | str, ...]:
    """The identity of a file: its size in bytes, its time of modification in ns and, in a bucket, its ETag. Empty: no such file."""
    system, name = filesystem(path)
    info = system.get_file_info(name)
    if info.type == pa.fs.FileType.NotFound:
        return ()
    if isinstance(system, pa.fs.LocalFileSystem):
        return info.size, info.mtime_ns
    with system.open_input_file(name) as file:
        return info.size, info.mtime_ns, bytes(file.metadata().get("ETag", b"")).decode("latin-1")


def members_identity(members: Iterable[Member]) -> tuple[int | str, ...]:
    """The identity of a folder: the number of its files, and a digest of their names, sizes and times of modification."""
    listed = sorted(members)
    return len(listed), hashlib.sha256(repr([tuple(member) for member in listed]).encode(errors="surrogateescape")).hexdigest()


def changed_member(before: Iterable[Member], now: Iterable[Member]) -> str | None:
    """The name of the first file that differs between two listings of a folder."""
    names = {member.name for member in set(before) ^ set(now)}
    return min(names) if names else None


def refuse_changed_member(folder: str, member: Member) -> None:
    """`InputChanged` if a file of a folder is not the file that was found at the start of the job."""
    system, path = filesystem(f"{folder}/{member.name}")
    info = system.get_file_info(path)
    if (info.size, info.mtime_ns) != (member.size, member.mtime_ns):
        raise InputChanged(changed_message(f"{folder}/{member.name}"))


def changed_message(path: str) -> str:
    return f"{path} changed or was removed while the job ran: nothing is published. Run the job again once the input no longer changes"


def size_of(path: str) -> int:
    system, name = filesystem(path)
    return cast(int, system.get_file_info(name).size)


@contextmanager
def open_bytes(path: str, *, limit: int | None = None) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed according to its ending. More than `limit` bytes (None: a decompression bomb) are a `UserError`."""
    system, name = filesystem(path)
    with system.open_input_file(name) as file:
        codec = _CODECS.get(os.path.splitext(path.lower())[1])
        if codec is None:
            yield cast(BinaryIO, file)
        else:
            most = max(BOMB_BYTES, BOMB_RATIO * file.size()) if limit is None else limit
            yield cast(BinaryIO, _Capped(pa.CompressedInputStream(file, codec), most, f"{path} is {file.size():,} bytes"))


class _Capped(io.RawIOBase):
    """A decompressed stream that stops at a limit."""

    def __init__(self, stream: pa.NativeFile, limit: int, what: str) -> None:
        self._stream, self._limit, self._what = stream, limit, what
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        num_bytes = cast(int, self._stream.readinto(buffer))
        self._num_bytes += num_bytes
        if self._num_bytes > self._limit:
            raise UserError(f"{self._what}, but over {self._limit:,} when decompressed, which is the limit: split it, or leave it out")
        return num_bytes


@contextmanager
def blaming(path: str) -> Iterator[None]:
    """Turn a decoding error into a `UserError` that names the file. Errors of disk or network (with an errno) pass through."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowIndexError, pa.ArrowNotImplementedError, EOFError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = escaped(str(error).partition("\n")[0])
        raise UserError(f"{path} cannot be read: {reason}. Make the file again, or leave it out") from None


def excerpt(content: bytes | str) -> str:
    """The first characters of a record, safe to print: ASCII, at most 200 characters."""
    start = content[:EXCERPT]
    return escaped(start.decode("latin-1") if isinstance(start, bytes) else start)[:EXCERPT]


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded as UTF-8: half a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")
