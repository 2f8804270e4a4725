"""An encoded folder: its settings, and its reviews as windows for training.

An encoded folder (see `train.prepare`):
  encoding.json              settings, fingerprint, labels, counts and rows of every file; written last, so a folder with it is complete
  vocab.txt punkt.json       the parts of `Encoder`
  vectors.safetensors        float32 [V, E], the initial embedding
  train/ development/        Parquet in row groups of 64, at most 65,536 rows a file: see `SPLIT_SCHEMA`
  unlabelled/                the same with null labels, if there are such reviews; folders of older versions lack it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from han.config import PrepareConfig, from_json, read_json
from han.text.encode import Encoder
from han.text.vocabulary import Vocab
from han.types import Float32s, UserError

ROWS_PER_GROUP = 64  # the unit of shuffling; a window mixes groups of many files, so files may be sorted by label
ROWS_PER_FILE = 1_024 * ROWS_PER_GROUP  # a writer holds the metadata of all row groups of its file
GROUPS_PER_WINDOW = 64  # 4,096 reviews, about 5 MB: enough to sort by length and shuffle

SPLITS = ("train", "development", "unlabelled")

SPLIT_SCHEMA = pa.schema(
    [
        ("review_id", pa.string()),
        ("label", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("sentence_lengths", pa.list_(pa.int32())),
    ]
)

Report = Callable[[str, int, int], None]  # name of the step, shards done, all shards


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFolder:
    """An encoded folder without its reviews."""

    path: Path
    config: PrepareConfig
    encoder: Encoder
    labels: tuple[str, ...]
    vectors: Float32s  # [V, E]
    counts: dict[str, int]
    files: dict[str, dict[str, int]]  # split -> file name -> rows
    fingerprint: str  # of the encoder; equal means equal ids
    data_fingerprint: str | None  # of the encoded reviews, independent of order and files; None in folders of older versions

    def num_reviews(self, split: str) -> int:
        """Reviews of a split, or of several joined by +."""
        return sum(sum(self.files.get(part, {}).values()) for part in split.split("+"))


def read_encoded(path: Path) -> EncodedFolder:
    """Read a folder that `prepare` wrote and check its fingerprint; anything else is a `UserError`."""
    if not (path / "encoding.json").exists():
        raise UserError(f"{path} is not an encoded folder (no encoding.json): give the --out folder of han prepare")
    encoding = read_json(path / "encoding.json")
    config = from_json(PrepareConfig, encoding["config"])
    punkt = read_json(path / "punkt.json") if (path / "punkt.json").exists() else None
    encoder = Encoder(config.text, punkt, Vocab.read(path / "vocab.txt"))
    if encoder.fingerprint != encoding["fingerprint"]:
        raise UserError(
            f"{path} was encoded as {encoding['fingerprint']}, but its vocabulary, Punkt parameters and text settings encode as "
            f"{encoder.fingerprint}: a file was changed; run han prepare again"
        )
    embedding = load_file(path / "vectors.safetensors")["vectors"]
    if len(embedding) != len(encoder.vocab):
        raise UserError(f"{path}/vectors.safetensors has {len(embedding)} rows for a vocabulary of {len(encoder.vocab)}")
    return EncodedFolder(
        path=path,
        config=config,
        encoder=encoder,
        labels=tuple(encoding["labels"]),
        vectors=embedding,
        counts=encoding["counts"],
        files=encoding["files"],
        fingerprint=encoding["fingerprint"],
        data_fingerprint=encoding.get("data_fingerprint"),
    )


class SplitWriter:
    """Writes one split of a shard, table by table: full row groups in <name>.parquet, then in <name>-00001.parquet, and so on."""

    def __init__(self, folder: Path, name: str) -> None:
        self.files: dict[str, int] = {}  # file name -> rows
        self._folder, self._name = folder, name
        self._file: pq.ParquetWriter | None = None
        self._rest = SPLIT_SCHEMA.empty_table()  # fewer rows than a row group

    def add(self, table: pa.Table) -> None:
        """A table of `SPLIT_SCHEMA`."""
        table = pa.concat_tables([self._rest, table]).combine_chunks()
        num_written = len(table) - len(table) % ROWS_PER_GROUP
        self._write(table.slice(0, num_written))
        self._rest = table.slice(num_written)

    def close(self) -> None:
        self._write(self._rest)
        if self._file is not None:
            self._file.close()

    def _write(self, table: pa.Table) -> None:
        while len(table):
            file, name = self._with_room()
            piece = table.slice(0, ROWS_PER_FILE - self.files[name])
            file.write_table(piece, row_group_size=ROWS_PER_GROUP)
            self.files[name] += len(piece)
            table = table.slice(len(piece))

    def _with_room(self) -> tuple[pq.ParquetWriter, str]:
        """An open file that is not full, and its name."""
        name = next(reversed(self.files), None)
        if self._file is None or name is None or self.files[name] == ROWS_PER_FILE:
            if self._file is not None:
                self._file.close()
            name = f"{self._name}-{len(self.files):05}.parquet" if self.files else f"{self._name}.parquet"
            self._folder.mkdir(exist_ok=True)
            self._file = pq.ParquetWriter(self._folder / name, SPLIT_SCHEMA, compression="zstd")
            self.files[name] = 0
        return self._file, name


def windows(
    folder: EncodedFolder, passes: Sequence[tuple[str, int | None]], *, rank: int, num_workers: int
) -> Iterator[Iterator[pa.Table]]:
    """This worker's share of each pass over a split, about 4,096 rows at a time. In a pass, every row belongs to one worker.

    passes: the split (or several joined by +), and the seed of its order (None keeps the order of the files). Rows and order depend only on
    the arguments, never on timing. A thread reads ahead, so a pass starts at once. Read each pass to its end.
    """
    shares = [_windows_of(folder, split, seed, rank, num_workers) for split, seed in passes]
    tables = _ahead(_read_groups(window) for share in shares for window in share)
    for share in shares:
        yield islice(tables, len(share))


def _ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables; a thread makes the next one while one is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, tables, None)
        while (table := following.result()) is not None:
            following = thread.submit(next, tables, None)
            yield table


def read_windows(folder: EncodedFolder, split: str, seed: int | None = None) -> Iterator[pa.Table]:
    """The windows of one pass, all of them."""
    for window in _windows_of(folder, split, seed, 0, 1):
        yield _read_groups(window)


def _windows_of(folder: EncodedFolder, split: str, seed: int | None, rank: int, num_workers: int) -> list[list[tuple[str, int]]]:
    """Windows of row groups (file, number) of one worker's share of a pass."""
    groups = [
        (f"{folder.path}/{part}/{name}", group)
        for part in split.split("+")
        for name, rows in folder.files.get(part, {}).items()
        for group in range((rows + ROWS_PER_GROUP - 1) // ROWS_PER_GROUP)
    ]
    if seed is not None:
        groups = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    mine = groups[rank::num_workers]
    return [mine[first : first + GROUPS_PER_WINDOW] for first in range(0, len(mine), GROUPS_PER_WINDOW)]


def _read_groups(groups: Sequence[tuple[str, int]]) -> pa.Table:
    by_file: dict[str, list[int]] = {}
    for path, group in groups:
        by_file.setdefault(path, []).append(group)
    return pa.concat_tables([pq.ParquetFile(path).read_row_groups(sorted(chosen)) for path, chosen in by_file.items()]).combine_chunks()
