"""Shared by the formats with columns: a batch in the shard's schema, and what the values of a label column mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from han.config import ColumnsConfig
from han.data.files import BadReason, BadRecord, Batch, Shard, escaped, excerpt, make_batch
from han.types import UserError

LARGEST_TEXT = 16 << 20  # bytes of a text in Parquet


def checked(table: pa.Table, rows: NDArray[np.int64], bad: list[BadRecord], shard: Shard, columns: ColumnsConfig) -> Batch:
    """A batch in the shard's schema. A row without text, or with a string that is not UTF-8, becomes a bad record."""
    num_rows = len(table)
    arrays = [
        cast(table[field.name], field.type) if field.name in table.column_names else pa.chunked_array([pa.nulls(num_rows, field.type)])
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
        pc.fill_null(pc.binary_length(cast(table[columns.text], pa.string())), 0).to_numpy() > LARGEST_TEXT
    ).tolist():
        reasons[position] = "too_large", b""
    if reasons:
        for position, (reason, content) in reasons.items():
            bad.append(BadRecord(row=int(rows[position]), byte_offset=None, reason=reason, excerpt=excerpt(content)))
        good = np.setdiff1d(np.arange(num_rows), list(reasons))
        table, rows = table.take(good), rows[good]
    return make_batch(table, rows, bad)


def refuse_doubles(path: str, names: list[str]) -> None:
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        raise UserError(f"{path} has more than one column named {', '.join(sorted(map(escaped, doubles)))}: rename or drop all but one")


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Arrow's cast. Arrow cannot cast a dictionary of strings to strings of another layout, so dictionaries are decoded first."""
    if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(kind):
        column = column.cast(column.type.value_type)
    return column if column.type == kind else column.cast(kind)


def _invalid_utf8(table: pa.Table) -> dict[int, tuple[BadReason, bytes]]:
    reasons: dict[int, tuple[BadReason, bytes]] = {}
    for column in table.columns:
        if not is_string(column.type):
            continue
        for position, value in enumerate(cast(column, pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError:
                reasons[position] = "invalid_utf8", value
    return reasons


def is_string(kind: pa.DataType) -> bool:
    """Whether the type is one of Arrow's layouts of strings, or a dictionary of strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def label_numbers(column: pa.ChunkedArray, *, labels: Sequence[str], label_names: Sequence[str]) -> NDArray[np.int64]:
    """[R], the place in `labels` of each value of a label column; -1 for null and for a value that is not one of the labels.

    An integer, also one in a string, indexes `label_names`; without names it indexes `labels`.
    """
    plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (is_string(plain) or pa.types.is_integer(plain) or pa.types.is_boolean(plain)):
        return np.full(len(column), -1)
    values = cast(column, plain)
    if pa.types.is_boolean(plain):
        values = values.cast(pa.int8())
    names = values.cast(pa.string())
    numbers = pc.fill_null(pc.index_in(names, value_set=pa.array(labels, pa.string())), -1)
    indexed = list(label_names) or list(labels)
    if not set(map(str, range(len(indexed)))) & {*labels, *label_names}:  # else the integers are names themselves
        places = [labels.index(name) if name in labels else -1 for name in indexed]
        index = pc.index_in(names, value_set=pa.array([str(number) for number in range(len(indexed))]))
        by_index = pc.fill_null(pc.take(pa.array(places, pa.int32()), index), -1)
        numbers = pc.max_element_wise(numbers, by_index)
    return np.asarray(numbers.to_numpy(), np.int64)
