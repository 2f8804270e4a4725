"""What the formats with columns share: a batch in the shard's schema, with the rows that cannot be reviews taken out of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from han.config import ColumnsConfig
from han.data.files import BadReason, BadRecord, Batch, Shard, escaped, excerpt, make_batch
from han.types import Mistake

LARGEST_TEXT = 16 << 20  # bytes in a row of Parquet


def checked(table: pa.Table, rows: NDArray[np.int64], bad: list[BadRecord], shard: Shard, columns: ColumnsConfig) -> Batch:
    """A batch in the shard's schema; a row without text, or with a string that is not UTF-8, becomes a bad record."""
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
        raise Mistake(f"{path} has more than one column named {', '.join(sorted(map(escaped, doubles)))}: rename or drop all but one")


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Arrow's cast, which knows no way from a dictionary of one layout of strings to another layout."""
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
    """Strings in any of Arrow's layouts, dictionaries of them included."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
