"""Parquet: a shard is a row group or a part of one, and only the columns of the shard's schema are decoded."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from han.config import ColumnsConfig
from han.data.columns import checked, is_string, refuse_doubles
from han.data.files import BATCH_BYTES, BOMB_RATIO, FILE_SHARDS, Batch, Shard, size_of
from han.storage import filesystem
from han.types import UserError

SLICED_ROWS = 5_000  # most rows of a shard, unless its row group would give more than SLICES
SMALLEST_SLICE = 250  # rows; a second of work
FEW_GROUPS = 8  # a file with fewer row groups is cut into smaller shards, so that it keeps the CPUs of one machine busy
SLICES = 16  # most shards of a row group, because reading a slice decodes its row group from the start
CLAIMED_BYTES = 256 << 20  # most bytes that a Parquet file may claim to hold, or BOMB_RATIO times its size

# A Parquet footer holds its Arrow schema in base64. There a word has three spellings, depending on its position modulo 3.
_EXTENSION = b"ARROW:extension:name"
_EXTENSIONS = [base64.b64encode(bytes(lead) + _EXTENSION)[math.ceil(lead * 8 / 6) : (lead + len(_EXTENSION)) * 8 // 6] for lead in range(3)]


def look_at_parquet(whole: Shard, columns: ColumnsConfig) -> list[Shard]:
    """The shards of a file, none if it has no rows. A row group is one shard, or up to 16 of equal size if it is large or one of few."""
    _refuse_extensions(whole.path)
    with _open_parquet(whole.path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        # Arrow cannot take rows from string views.
        kinds = [pa.string() if pa.types.is_string_view(field.type) else field.type for field in file.schema_arrow]
        schema = pa.schema(list(zip(file.schema_arrow.names, kinds, strict=True)))
    claimed, size = sum(group.total_byte_size for group in groups), size_of(whole.path)
    if claimed > max(CLAIMED_BYTES, BOMB_RATIO * size):
        raise UserError(f"{whole.path} is {size:,} bytes and claims to hold {claimed:,}: write it again, in several files")
    refuse_doubles(whole.path, schema.names)
    shards, first_row = [], 0
    most = SLICED_ROWS
    if len(groups) < FEW_GROUPS:
        most = min(most, max(SMALLEST_SLICE, math.ceil(sum(group.num_rows for group in groups) / FILE_SHARDS)))
    for index, group in enumerate(groups):
        pieces = min(SLICES, math.ceil(group.num_rows / most))
        cuts = [group.num_rows * piece // pieces for piece in range(pieces + 1)] if pieces else []
        for start, stop in itertools.pairwise(cuts):
            shards.append(replace(whole, group=index, start=start, stop=stop, first_row=first_row + start, schema=schema))
        first_row += group.num_rows
    return shards


def _refuse_extensions(path: str) -> None:
    """Opening a Parquet file runs code of each registered extension type in it (Ray's may unpickle). So look at the bytes first."""
    system, name = filesystem(path)
    with system.open_input_file(name) as file:
        size = file.size()
        file.seek(max(0, size - 8))
        tail = file.read(8)
        if tail[4:] != b"PAR1":
            raise UserError(f"{path} is not Parquet, or is cut off: it does not end in PAR1. Make the file again, or leave it out")
        length = min(int.from_bytes(tail[:4], "little"), size - 8)
        file.seek(size - 8 - length)
        footer = file.read(length)
    if any(spelling in footer for spelling in _EXTENSIONS):
        raise UserError(f"{path} has a column of an Arrow extension type: write it again with plain columns")


def _open_parquet(path: str, *, metadata: pq.FileMetaData | None = None, as_dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    system, name = filesystem(path)
    return pq.ParquetFile(
        name,
        metadata=metadata,
        filesystem=system,
        read_dictionary=as_dictionaries,
        pre_buffer=False,  # decode a row group page by page; pre_buffer would hold all of it
        buffer_size=1 << 20,
        page_checksum_verification=True,
        arrow_extensions_enabled=False,
    )


def read_parquet(shard: Shard, columns: ColumnsConfig, batch_rows: int) -> Iterator[Batch]:
    end = 0
    with _open_parquet(shard.path) as file:
        metadata, names = file.metadata, [name for name in file.schema_arrow.names if name in shard.schema.names]
        strings = [name for name in names if is_string(file.schema_arrow.field(name).type)]
    # In a dictionary, a string that many rows share is held once until the rows are cut into pieces.
    with _open_parquet(shard.path, metadata=metadata, as_dictionaries=strings) as file:
        for record_batch in file.iter_batches(batch_rows, row_groups=[shard.group], columns=names):
            begin, end = end, end + len(record_batch)
            first, last = max(begin, shard.start), min(end, shard.stop)
            for start, stop in _pieces(record_batch.slice(first - begin, max(0, last - first))):
                rows = shard.first_row - shard.start + np.arange(first + start, first + stop)
                yield checked(pa.table(record_batch.slice(first - begin + start, stop - start)), rows, [], shard, columns)
            if end >= shard.stop:
                return
    raise UserError(f"{shard.path} is cut off: row group {shard.group} has {end:,} rows, not {shard.stop:,}. Make the file again")


def _pieces(rows: pa.RecordBatch) -> Iterator[tuple[int, int]]:
    """Rows from and to of pieces whose strings take about BATCH_BYTES: 600 bytes of Parquet can mean 10 MB in every row."""
    sizes = np.zeros(len(rows), np.int64)
    for column in rows.columns:
        if pa.types.is_dictionary(column.type) and is_string(column.type):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            sizes += pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
    piece = np.cumsum(sizes) // BATCH_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(rows)]
    yield from ((start, stop) for start, stop in itertools.pairwise(cuts) if start < stop)
