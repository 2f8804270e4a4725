"""Where reviews come from: an input is cut into shards by what it holds alone, and a shard reads the same each time.

Parquet is cut by row groups, plain JSON lines by bytes, folders of texts by files; CSV, compressed text and the archive are one stream.
A record that cannot be a review (no text, not UTF-8, a broken line) is handed back beside the others with its row and the reason, so
in = out + bad always holds. What is wrong with a whole file is a `Mistake`.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from han.config import ColumnsConfig
from han.data import imdb, samples
from han.data.columns import is_string
from han.data.csv import look_at_csv, read_csv
from han.data.files import BadRecord, Batch, Kind, Shard, blaming, escaped, file_name, find_files, identity, size_of, split_of
from han.data.jsonl import look_at_jsonl, read_jsonl
from han.data.parquet import look_at_parquet, read_parquet
from han.data.text_files import look_at_texts, read_texts
from han.types import Mistake

__all__ = ["REVIEWS", "BadRecord", "Batch", "Shard", "find_shards", "is_imdb_id", "random_review", "read", "read_ids", "reviews"]

REVIEWS = pa.schema([("review_id", pa.string()), ("text", pa.string()), ("label", pa.string()), ("rating", pa.int8())])

_LOOK: dict[Kind, Callable[[Shard, ColumnsConfig], list[Shard]]] = {
    "parquet": look_at_parquet,
    "csv": look_at_csv,
    "jsonl": look_at_jsonl,
    "folder": imdb.look_at_folder,
    "tar": imdb.look_at_archive,
    "texts": look_at_texts,
}
_READ: dict[Kind, Callable[[Shard, ColumnsConfig, int], Iterator[Batch]]] = {
    "parquet": read_parquet,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "folder": imdb.read_folder,
    "tar": imdb.read_archived,
    "texts": read_texts,
}
_INTEGER = re.compile(r"[-+]?[0-9]+")


def find_shards(input: str, columns: ColumnsConfig, *, labelled: bool) -> list[Shard]:
    """All shards of an input, in the order of its rows. Whatever can be wrong with it before any work is a `Mistake` here.

    `input` is a file, a glob, a folder of files, a folder of texts, an aclImdb folder, its archive, or "sample" (see
    `files.find_files`). A file may lack columns that others have (they read as null), but one name has one type; every file has the text
    column and, if `labelled` and unless its name says unsup, the label column. Columns of CSV are strings as they stand in the file; those
    of JSON are the keys of its first 1,000 records, in Arrow's types; those of a folder of texts are the id (a file's name) and the text.
    """
    with blaming(input):
        files = find_files(str(samples.REVIEWS) if input == "sample" else input)
    found = [shards for path, kind in files if (shards := _look(path, kind, columns, labelled=labelled))]
    if not found:
        raise Mistake(f"{input} holds no reviews: 0 rows")
    schema = _one_schema(shards[0] for shards in found)
    shards = [replace(shard, schema=schema) for each in found for shard in each]
    if labelled:
        tried = min(shards, key=lambda shard: ("train", "test", "unsup").index(shard.split))
        for batch in itertools.islice(read(tried, columns, batch_rows=100), 1):
            reviews(batch, tried, columns, labelled=True)
    return shards


def read(shard: Shard, columns: ColumnsConfig, *, batch_rows: int = 1024) -> Iterator[Batch]:
    """The shard's records in file order, at most `batch_rows` a batch, in bounded memory. A file that breaks off is a `Mistake`."""
    with blaming(shard.path):
        yield from _READ[shard.kind](shard, columns, batch_rows)


def reviews(batch: Batch, shard: Shard, columns: ColumnsConfig, *, labelled: bool) -> pa.Table:
    """The batch as `REVIEWS`: id, text, name of the label (null: unlabelled, or not `labelled`), stars (null: none).

    An id that is missing, null or empty is <file name>:<row>. A label that is an integer without a name, or that is none of
    `columns.label_names`, is a `Mistake`.
    """
    given = _values(batch, columns.review_id)
    numbered = [f"{file_name(shard.path)}:{row}" for row in batch.rows]
    ids = [other if value is None or value == "" else str(value) for value, other in zip(given, numbered, strict=True)]
    values = _values(batch, columns.label) if labelled else [None] * len(ids)
    labels = [_label(value, review_id, shard, columns) for value, review_id in zip(values, ids, strict=True)]
    ratings = [_stars(value) for value in _values(batch, columns.rating)]
    texts = batch.table[columns.text].cast(pa.string())
    arrays = [pa.array(ids, pa.string()), texts, pa.array(labels, pa.string()), pa.array(ratings, pa.int8())]
    return pa.Table.from_arrays(arrays, schema=REVIEWS)


def identities(shards: Iterable[Shard]) -> dict[str, list[int | str]]:
    """What every file or folder of an input is now, by path, so that a changed input is another job (see `files.identity`)."""
    return {path: identity(path) for path in sorted({shard.path for shard in shards})}


def is_imdb_id(review_id: str) -> bool:
    """Whether the Large Movie Review Dataset names its reviews so: train/pos/1_7."""
    return imdb.parse_id(review_id) is not None


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


def _look(path: str, kind: Kind, columns: ColumnsConfig, *, labelled: bool) -> list[Shard]:
    """The shards of one file, none where it has no rows. Its text, ids and labels are there and of types that can be read."""
    if kind not in ("folder", "texts") and size_of(path) == 0:
        raise Mistake(f"{path} is empty, 0 bytes: give a file with reviews, or leave it out")
    whole = Shard(path=path, kind=kind, split=split_of(path), group=0, start=0, stop=-1, first_row=0, schema=pa.schema([]))
    with blaming(path):
        shards = _LOOK[kind](whole, columns)
    for shard in shards[:1]:
        _check_column(shard, columns.text, option="text", fits=is_string, wanted="strings", required=True)
        _check_column(shard, columns.review_id, option="review-id", fits=_is_name, wanted="strings or integers", required=False)
        if labelled:
            has_labels = shard.split != "unsup"
            _check_column(shard, columns.label, option="label", fits=_is_name, wanted="names or integers", required=has_labels)
    return shards


def _check_column(shard: Shard, name: str, *, option: str, fits: Callable[[pa.DataType], bool], wanted: str, required: bool) -> None:
    if name in shard.schema.names:
        kind = shard.schema.field(name).type
        if not fits(kind):
            raise Mistake(f"{shard.path}: column {name} holds {kind}, not {wanted}: name another with --columns.{option}")
    elif required:
        there = ", ".join(escaped(each)[:40] for each in shard.schema.names[:20])
        raise Mistake(f"{shard.path} has no column {name}: it has {there}. Name the right one with --columns.{option}")


def _is_name(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return is_string(kind) or bool(pa.types.is_integer(plain) or pa.types.is_boolean(plain) or pa.types.is_null(plain))


def _one_schema(shards: Iterable[Shard]) -> pa.Schema:
    """The columns of all files together. JSON's types are guesses and give way to each other; others must agree."""
    kinds: dict[str, pa.DataType] = {}
    first: dict[str, Shard] = {}
    for shard in shards:
        for name, kind in zip(shard.schema.names, shard.schema.types, strict=True):
            before, other = kinds.setdefault(name, kind), first.setdefault(name, shard)
            if before == kind:
                continue
            if not shard.kind == other.kind == "jsonl":
                raise Mistake(f"column {name} holds {before} in {other.path} but {kind} in {shard.path}: give both one type")
            kinds[name] = pa.float64() if {before, kind} == {pa.int64(), pa.float64()} else pa.string()
    return pa.schema(list(kinds.items()))


def _values(batch: Batch, column: str) -> list[Any]:
    present = column in batch.table.column_names
    return batch.table[column].to_pylist() if present else [None] * len(batch.table)


def _label(value: Any, review_id: str, shard: Shard, columns: ColumnsConfig) -> str | None:
    """A label's name. A string that is an integer (CSV has no others) indexes the names too, unless the names are integers themselves."""
    names = columns.label_names
    if value is None or value == "":
        return None
    if isinstance(value, str) and (value in names or not _INTEGER.fullmatch(value) or any(map(_INTEGER.fullmatch, names))):
        if names and value not in names:
            raise Mistake(
                f"{shard.path}: column {columns.label} holds {escaped(value)[:40]}, none of --columns.label-names {' '.join(names)}"
            )
        return value
    index = int(value)
    if index == -1:
        return None
    names = names or (imdb.LABELS if is_imdb_id(review_id) else ())
    if not names:
        raise Mistake(f"{shard.path}: column {columns.label} holds {index}: name integer labels, in order, with --columns.label-names")
    if not 0 <= index < len(names):
        raise Mistake(
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
    """Some review of an input, drawn by shard and then by row: its id, the name of its label if it has one, its text.

    seed: None draws another one each time.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    shards = find_shards(source, columns, labelled=False)
    while True:
        shard = draw.choice(shards)
        found = [row for batch in read(shard, columns) for row in reviews(batch, shard, columns, labelled=True).to_pylist()]
        if found:
            row = draw.choice(found)
            return row["review_id"], row["label"], row["text"]
