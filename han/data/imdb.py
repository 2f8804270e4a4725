"""The Large Movie Review Dataset (aclImdb v1, Maas et al., ACL 2011), as a folder or as its archive.

A review is named <train|test>/<neg|pos|unsup>/<number>_<stars>. Only regular files with such names are read from the archive, and no file
is written under a name from the archive. So nothing depends on the filters of `tarfile`, which can be bypassed in early releases of
Python 3.11.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from han.config import ColumnsConfig
from han.data.files import (
    BadReason,
    BadRecord,
    Batch,
    Member,
    Shard,
    Split,
    blaming,
    excerpt,
    make_batch,
    open_bytes,
    refuse_changed_member,
)
from han.storage import filesystem
from han.types import UserError

URL = "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
CHECKSUMS = {"md5": "7c2ac02c03563afcf9b574c7e56c153a", "sha256": "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"}
DEVELOPMENT = Path(__file__).with_name("imdb.dev_ids.txt")  # ids of the development reviews of the shipped model; no text
LABELS = ("negative", "positive")
FOLDERS = {"train": ("train/neg", "train/pos"), "test": ("test/neg", "test/pos"), "unsup": ("train/unsup", "test/unsup")}

SHARD_ROWS = 2_500  # files of a shard, and rows of a row group
MAX_REVIEW_BYTES = 100_000
MAX_REVIEWS = 100_200
MAX_ARCHIVE_BYTES = 600_000_000  # decompressed, with all that is not read

_SCHEMA = pa.schema([("review_id", pa.string()), ("text", pa.string()), ("label", pa.int8()), ("rating", pa.int8())])
_ID = re.compile(r"(train|test)/(neg|pos|unsup)/(\d{1,9})_(\d{1,2})", re.ASCII)
_LABEL = {"neg": 0, "pos": 1, "unsup": -1}


class Name(NamedTuple):
    """The parts of a review's id."""

    split: Split
    label: int  # 0 negative, 1 positive, -1 none
    rating: int  # stars, 0 none
    order: tuple[int, str]  # of the reviews of a split: both classes in turn


Review: TypeAlias = tuple[str, Name, bytes]  # id, its parts, content


def parse_id(review_id: str) -> Name | None:
    """The parts of an id; None if this data set has no such id."""
    match = _ID.fullmatch(review_id)
    if match is None:
        return None
    folder, kind, number, rating = match.groups()
    return Name(cast(Split, kind if kind == "unsup" else folder), _LABEL[kind], int(rating), (int(number), kind))


def look_at_folder(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    shards = []
    splits: tuple[Split, ...] = ("train", "test", "unsup")
    for split in splits:
        part = replace(whole, split=split, schema=_schema(columns))
        members = _list_split(whole.path, split)
        for start in range(0, len(members), SHARD_ROWS):
            mine = tuple(members[start : start + SHARD_ROWS])
            shards.append(replace(part, start=start, stop=start + len(mine), first_row=start, members=mine))
    if not shards:
        raise UserError(f"{whole.path} holds no review named like train/pos/1_7.txt: give a folder in the layout of aclImdb")
    return shards


def read_folder(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    system, root = filesystem(shard.path)

    def reviews() -> Iterator[Review]:
        for member in shard.members:
            review_id = member.name.removesuffix(".txt")
            try:
                with system.open_input_stream(f"{root}/{member.name}") as file:
                    content = file.read(MAX_REVIEW_BYTES + 1)
            finally:
                refuse_changed_member(shard.path, member)
            yield review_id, cast(Name, parse_id(review_id)), content

    yield from _batches(reviews(), shard, columns, batch_rows)


def list_folder(folder: str) -> list[Member]:
    """Every review of an aclImdb folder."""
    return [member for split in FOLDERS for member in _list_split(folder, cast(Split, split))]


def look_at_archive(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    """One shard for each split. The whole archive is read once, so that its errors are found before any work."""
    splits = {name.split for _, name, _ in read_archive(whole.path)}
    return [replace(whole, split=split, schema=_schema(columns)) for split in sorted(splits)]


def read_archived(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    yield from _batches((review for review in read_archive(shard.path) if review[1].split == shard.split), shard, columns, batch_rows)


def read_archive(path: str) -> Iterator[Review]:
    """Every review of a .tar.gz, in the archive's order. Content that the official archive cannot have is a `UserError`."""
    seen: set[str] = set()
    with blaming(path), open_bytes(path, limit=MAX_ARCHIVE_BYTES) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                    review_id = member.name.removeprefix("aclImdb/").removesuffix(".txt")
                    name = parse_id(review_id)
                    if name is None or member.name != f"aclImdb/{review_id}.txt" or not member.isreg():
                        continue
                    if fault := _fault(member, review_id, seen):
                        raise UserError(f"{path} is not the official archive: {member.name} {fault}. Download {URL}")
                    seen.add(review_id)
                    yield review_id, name, cast(tarfile.ExFileObject, archive.extractfile(member)).read()
        except tarfile.TarError as error:
            raise UserError(f"{path} is damaged, or no .tar.gz: {error}. Download {URL}") from None
        while rest := stream.read(1 << 20):  # to the end, where gzip's checksum stands
            if rest.strip(b"\0"):  # tarfile takes a broken header for the end
                raise UserError(f"{path} is damaged after {len(seen):,} reviews. Download {URL}")
    if not seen:
        raise UserError(f"{path} holds no review named like aclImdb/train/pos/1_7.txt: give the official archive, {URL}")


def _fault(member: tarfile.TarInfo, review_id: str, seen: set[str]) -> str | None:
    if review_id in seen:
        return "comes twice"
    if not 0 <= member.size <= MAX_REVIEW_BYTES:
        return f"has {member.size:,} bytes, not 0 to {MAX_REVIEW_BYTES:,}"
    return f"is one review more than {MAX_REVIEWS:,}" if len(seen) == MAX_REVIEWS else None


def unpack_imdb(archive: Path, folder: Path) -> list[Path]:
    """Write train.parquet, test.parquet and unsup.parquet into `folder`, each by one rename: what is there under these names is replaced.

    Columns review_id, text, label int8 (0 negative, 1 positive, -1 none), rating int8 (0 none); both classes in turn; 2,500 rows a row
    group. The texts are held in memory: some 500 MB for the official archive. A review that is not UTF-8 is a `UserError`.
    """
    splits: dict[str, list[Review]] = {}
    for review in read_archive(str(archive)):
        splits.setdefault(review[1].split, []).append(review)
    tables = {
        folder / f"{split}.parquet": _parquet_table(archive, sorted(splits.pop(split), key=lambda review: review[1].order))
        for split in list(splits)
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, table in tables.items():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, temporary, row_group_size=SHARD_ROWS, compression="zstd")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return list(tables)


def _parquet_table(archive: Path, reviews: list[Review]) -> pa.Table:
    try:
        texts = [content.decode("utf-8") for _, _, content in reviews]
    except UnicodeDecodeError as error:
        raise UserError(f"{archive} is not the official archive: a review is not UTF-8 ({error.reason}). Download {URL}") from None
    return _table([(review_id, name) for review_id, name, _ in reviews], texts, _SCHEMA)


def _table(named: Iterable[tuple[str, Name]], texts: list[str], schema: pa.Schema) -> pa.Table:
    ids, names = zip(*named, strict=True) if texts else ((), ())
    columns = [ids, texts, [name.label for name in names], [name.rating for name in names]]
    return pa.Table.from_arrays([pa.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)], schema=schema)


def _schema(columns: ColumnsConfig) -> pa.Schema:
    """The columns of `unpack_imdb`, under the names that `columns` gives them."""
    return pa.schema(list(zip((columns.review_id, columns.text, columns.label, columns.rating), _SCHEMA.types, strict=True)))


def _list_split(root_folder: str, split: Split) -> list[Member]:
    """The reviews of a split, both classes in turn."""
    system, root = filesystem(root_folder)
    listed: list[tuple[tuple[int, str], Member]] = []
    for folder in FOLDERS[split]:
        for info in system.get_file_info(pa.fs.FileSelector(f"{root}/{folder}", allow_not_found=True)):
            stem, _, ending = info.base_name.rpartition(".")
            name = parse_id(f"{folder}/{stem}")
            if name is not None and ending == "txt":
                listed.append((name.order, Member(f"{folder}/{info.base_name}", info.size, info.mtime_ns)))
    return [member for _, member in sorted(listed)]


def _batches(reviews: Iterator[Review], shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    next_row = shard.first_row
    while some := list(itertools.islice(reviews, batch_rows)):
        good: dict[int, tuple[str, Name]] = {}
        texts: list[str] = []
        bad: list[BadRecord] = []
        for row, (review_id, name, content) in enumerate(some, next_row):
            reason: BadReason = "too_large"
            if len(content) <= MAX_REVIEW_BYTES:
                try:
                    texts.append(content.decode("utf-8"))
                    good[row] = review_id, name
                    continue
                except UnicodeDecodeError:
                    reason = "invalid_utf8"
            bad.append(BadRecord(row=row, byte_offset=None, reason=reason, excerpt=excerpt(content)))
        yield make_batch(_table(good.values(), texts, _schema(columns)).select(shard.schema.names), list(good), bad)
        next_row += len(some)
