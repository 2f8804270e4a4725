"""Reading reviews: an input is cut into shards, which depend on the input alone, and a shard reads the same each time.

Parquet is cut by row groups, plain JSON lines and CSV by bytes, folders of texts by files. Compressed text and the archive are one stream.
A record that cannot be read as a review (no text, not UTF-8, a broken line) is returned with its row and the reason, so that
records in = records read + bad records. An error in a whole file is a `UserError`. A file that changes while it is read is `InputChanged`.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from han.config import ColumnsConfig
from han.data import imdb, samples, text_files
from han.data.columns import is_string
from han.data.csv import look_at_csv, read_csv
from han.data.files import (
    BadRecord,
    Batch,
    InputChanged,
    Kind,
    Member,
    Shard,
    blaming,
    changed_member,
    changed_message,
    escaped,
    file_name,
    find_files,
    identity,
    members_identity,
    size_of,
    split_of,
)
from han.data.jsonl import look_at_jsonl, read_jsonl
from han.data.parquet import look_at_parquet, read_parquet
from han.types import UserError

__all__ = [
    "REVIEWS",
    "BadRecord",
    "Batch",
    "InputChanged",
    "Shard",
    "find_shards",
    "identities",
    "is_imdb_id",
    "random_review",
    "read",
    "read_ids",
    "refuse_changed",
    "reviews",
    "select",
]

REVIEWS = pa.schema([("review_id", pa.string()), ("text", pa.string()), ("label", pa.string()), ("rating", pa.int8())])

_LOOK: dict[Kind, Callable[[Shard, ColumnsConfig], list[Shard]]] = {
    "parquet": look_at_parquet,
    "csv": look_at_csv,
    "jsonl": look_at_jsonl,
    "folder": imdb.look_at_folder,
    "tar": imdb.look_at_archive,
    "texts": text_files.look_at_texts,
}
_READ: dict[Kind, Callable[[Shard, ColumnsConfig, int], Iterator[Batch]]] = {
    "parquet": read_parquet,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "folder": imdb.read_folder,
    "tar": imdb.read_archived,
    "texts": text_files.read_texts,
}
_LIST: dict[str, Callable[[str], list[Member]]] = {"folder": imdb.list_folder, "texts": text_files.list_folder}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_DEFAULT = ColumnsConfig()


def find_shards(input: str, columns: ColumnsConfig, *, labelled: bool) -> list[Shard]:
    """All shards of an input, in the order of its rows. Every error that can be found before any work is a `UserError` here.

    `input` is a file, a glob, a folder of files, a folder of texts, an aclImdb folder, its archive, or "sample" (see
    `files.find_files`). A file may lack columns that others have (they read as null), but a column has one type. Every file must have the
    text column and, if `labelled`, the label column, unless its name says unsup. A column that the user named must exist: the id in every
    file, the label and the rating in one file. CSV columns are numbers or strings (see `csv`). JSON columns are the keys of the first 1,000
    records, in Arrow's types. A folder of texts has two columns: the id, which is the name of a file, and the text.

    labelled: labels are read too, and no other columns than those of a review are.
    """
    with blaming(input):
        files = find_files(str(samples.REVIEWS) if input == "sample" else input)
    shards_by_file = [shards for path, kind in files if (shards := _look(path, kind, columns, labelled=labelled))]
    if not shards_by_file:
        raise UserError(f"{input} holds no reviews: 0 rows")
    of_reviews = {columns.text, columns.review_id, columns.label, columns.rating}
    _check_named(input, [shards[0] for shards in shards_by_file], columns)
    schema = _one_schema((shards[0] for shards in shards_by_file), of_reviews if labelled else None)
    shards = [replace(shard, schema=schema) for each in shards_by_file for shard in each]
    if labelled:
        tried = min(shards, key=lambda shard: ("train", "test", "unsup").index(shard.split))
        for batch in itertools.islice(read(tried, columns, batch_rows=100), 1):
            reviews(batch, tried, columns, labelled=True)
    return shards


def read(shard: Shard, columns: ColumnsConfig, *, batch_rows: int = 1024) -> Iterator[Batch]:
    """The shard's records in file order, at most `batch_rows` in a batch, in bounded memory.

    A file that cannot be read to its end is a `UserError`. A file that is not the one that was found, before or after it is read, is
    `InputChanged`.
    """
    _refuse_changed_file(shard)
    try:
        with blaming(shard.path):
            yield from _READ[shard.kind](shard, columns, batch_rows)
    except (UserError, OSError):
        _refuse_changed_file(shard)  # then this is the cause
        raise
    _refuse_changed_file(shard)


def select(shards: Iterable[Shard], names: Collection[str]) -> list[Shard]:
    """The same shards with some of their columns alone; the others are not decoded."""
    return [replace(shard, schema=pa.schema([field for field in shard.schema if field.name in names])) for shard in shards]


def reviews(batch: Batch, shard: Shard, columns: ColumnsConfig, *, labelled: bool) -> pa.Table:
    """The batch as `REVIEWS`: id, text, name of the label (null: unlabelled, or not `labelled`), stars (null: none).

    An id that is missing, null or empty becomes <file name>:<row>. An integer label without a name, and a label that is not in
    `columns.label_names`, is a `UserError`.
    """
    ids_in_file = _values(batch, columns.review_id)
    numbered = [f"{file_name(shard.path)}:{row}" for row in batch.rows]
    ids = [other if value is None or value == "" else str(value) for value, other in zip(ids_in_file, numbered, strict=True)]
    values = _values(batch, columns.label) if labelled else [None] * len(ids)
    labels = [_label(value, review_id, shard, columns) for value, review_id in zip(values, ids, strict=True)]
    ratings = [_stars(value) for value in _values(batch, columns.rating)]
    texts = batch.table[columns.text].cast(pa.string())
    arrays = [pa.array(ids, pa.string()), texts, pa.array(labels, pa.string()), pa.array(ratings, pa.int8())]
    return pa.Table.from_arrays(arrays, schema=REVIEWS)


def identities(shards: Iterable[Shard]) -> dict[str, list[int | str]]:
    """The identity of every file or folder of an input when its shards were found, by path, so that a changed input is another job."""
    return {path: list(members_identity(members) if members else known) for path, (known, members, _) in _by_path(shards).items()}


def refuse_changed(shards: Iterable[Shard]) -> None:
    """`InputChanged` if a file of the input is not the one that was found, or if a folder has other files than it had."""
    for path, (known, members, kind) in _by_path(shards).items():
        if not members and identity(path) != known:
            raise InputChanged(changed_message(path))
        if members and (name := changed_member(members, _LIST[kind](path))):
            raise InputChanged(changed_message(f"{path}/{name}"))


def _by_path(shards: Iterable[Shard]) -> dict[str, tuple[tuple[int | str, ...], list[Member], Kind]]:
    """Identity, files of the folder and kind of each path of an input."""
    by_path: dict[str, tuple[tuple[int | str, ...], list[Member], Kind]] = {}
    for shard in sorted(shards, key=lambda shard: shard.path):
        by_path.setdefault(shard.path, (shard.identity or (), [], shard.kind))[1].extend(shard.members)
    return by_path


def _refuse_changed_file(shard: Shard) -> None:
    """A folder is not looked at here: its readers look at each file."""
    if shard.identity is not None and identity(shard.path) != shard.identity:
        raise InputChanged(changed_message(shard.path))


def is_imdb_id(review_id: str) -> bool:
    """Whether an id has the form of the Large Movie Review Dataset: train/pos/1_7."""
    return imdb.parse_id(review_id) is not None


def read_ids(path: Path) -> frozenset[str]:
    """The review ids in a file, one on a line. A missing file, and a file without ids, is a `UserError`."""
    try:
        ids = frozenset(line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: give a file with one review id a line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text: give a file with one review id a line") from None
    if not ids:
        raise UserError(f"{path} holds no ids: give a file with one review id a line")
    return ids


def _look(path: str, kind: Kind, columns: ColumnsConfig, *, labelled: bool) -> list[Shard]:
    """The shards of one file, none if it has no rows. A column that is missing, or whose type cannot be read, is a `UserError`."""
    if kind not in ("folder", "texts") and size_of(path) == 0:
        raise UserError(f"{path} is empty, 0 bytes: give a file with reviews, or leave it out")
    whole = Shard(path=path, kind=kind, split=split_of(path), group=0, start=0, stop=-1, first_row=0, schema=pa.schema([]))
    if kind not in ("folder", "texts"):
        whole = replace(whole, identity=identity(path))
    with blaming(path):
        shards = _LOOK[kind](whole, columns)
    for shard in shards[:1]:
        _check_column(shard, columns.text, option="text", fits=is_string, wanted="strings", required=True)
        _check_column(
            shard,
            columns.review_id,
            option="review-id",
            fits=_is_name,
            wanted="strings or integers",
            required=columns.review_id != _DEFAULT.review_id,
        )
        if labelled:
            has_labels = shard.split != "unsup"
            _check_column(shard, columns.label, option="label", fits=_is_name, wanted="names or integers", required=has_labels)
    return shards


def _check_named(input: str, firsts: list[Shard], columns: ColumnsConfig) -> None:
    """A label or rating column that the user named, and that no file has, is a `UserError`."""
    for option in ("label", "rating"):
        name = getattr(columns, option)
        if name != getattr(_DEFAULT, option) and not any(name in shard.schema.names for shard in firsts):
            raise UserError(_no_column(input, name, firsts[0].schema, option))


def _no_column(where: str, name: str, schema: pa.Schema, option: str) -> str:
    present = ", ".join(escaped(each)[:40] for each in schema.names[:20])
    return f"{where} has no column {name}: it has {present}. Name the right one with --columns.{option}"


def _check_column(shard: Shard, name: str, *, option: str, fits: Callable[[pa.DataType], bool], wanted: str, required: bool) -> None:
    if name in shard.schema.names:
        kind = shard.schema.field(name).type
        if not fits(kind):
            raise UserError(f"{shard.path}: column {name} holds {kind}, not {wanted}: name another with --columns.{option}")
    elif required:
        raise UserError(_no_column(shard.path, name, shard.schema, option))


def _is_name(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return is_string(kind) or bool(pa.types.is_integer(plain) or pa.types.is_boolean(plain) or pa.types.is_null(plain))


def _one_schema(shards: Iterable[Shard], names: Collection[str] | None) -> pa.Schema:
    """The columns of all files together; names: these alone. Types of JSON and CSV are guesses and may be widened. Others must agree."""
    guessed = ("jsonl", "csv")
    kinds: dict[str, pa.DataType] = {}
    first: dict[str, Shard] = {}
    for shard in shards:
        for name, kind in zip(shard.schema.names, shard.schema.types, strict=True):
            if names is not None and name not in names:
                continue
            before, other = kinds.setdefault(name, kind), first.setdefault(name, shard)
            if before == kind:
                continue
            fixed = {each for each, owner in ((before, other), (kind, shard)) if owner.kind not in guessed}
            is_csv = "csv" in (shard.kind, other.kind)
            if fixed and not (is_csv and fixed == {pa.string()}):
                raise UserError(f"column {name} holds {before} in {other.path} but {kind} in {shard.path}: give both one type")
            kinds[name] = pa.float64() if {before, kind} == {pa.int64(), pa.float64()} else pa.string()
    return pa.schema(list(kinds.items()))


def _values(batch: Batch, column: str) -> list[Any]:
    present = column in batch.table.column_names
    return batch.table[column].to_pylist() if present else [None] * len(batch.table)


def _label(value: Any, review_id: str, shard: Shard, columns: ColumnsConfig) -> str | None:
    """A label's name. An integer in a string indexes the names too, as in CSV, unless the names are integers themselves."""
    names = columns.label_names
    if value is None or value == "":
        return None
    if isinstance(value, str) and (value in names or not _INTEGER.fullmatch(value) or any(map(_INTEGER.fullmatch, names))):
        if names and value not in names:
            raise UserError(
                f"{shard.path}: column {columns.label} holds {escaped(value)[:40]}, none of --columns.label-names {' '.join(names)}"
            )
        return value
    index = int(value)
    if index == -1:
        return None
    names = names or (imdb.LABELS if is_imdb_id(review_id) else ())
    if not names:
        raise UserError(f"{shard.path}: column {columns.label} holds {index}: name integer labels, in order, with --columns.label-names")
    if not 0 <= index < len(names):
        raise UserError(
            f"{shard.path}: column {columns.label} holds {index}, but --columns.label-names are 0 to {len(names) - 1}: {' '.join(names)}"
        )
    return names[index]


def _stars(value: Any) -> int | None:
    try:
        stars = float(value)
    except (TypeError, ValueError):
        return None
    return int(stars) if stars.is_integer() and 1 <= stars <= 127 else None


def random_review(source: str, columns: ColumnsConfig, *, seed: int | None = None) -> tuple[str, str | None, str]:
    """A random review of an input: its id, the name of its label or None, its text. An input without a text is a `UserError`.

    A shard is drawn first, then a row. seed: None draws another review each time.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    used = {columns.text, columns.review_id, columns.label, columns.rating}
    shards = select(find_shards(source, columns, labelled=False), used)
    for shard in draw.sample(shards, len(shards)):
        rows = [row for batch in read(shard, columns) for row in reviews(batch, shard, columns, labelled=True).to_pylist()]
        if rows:
            row = draw.choice(rows)
            return row["review_id"], row["label"], row["text"]
    raise UserError(f"{source} has no review with a text: every value of its column {columns.text} is null or cannot be read")
