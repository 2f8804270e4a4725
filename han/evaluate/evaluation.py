"""Metrics of a model on labelled reviews, computed with the scorers of batch scoring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from han.config import ColumnsConfig, ScoreConfig
from han.data import sources
from han.data.sources import BadRecord, Batch
from han.model import artifact, metrics
from han.score import pool
from han.score.retries import Attempts
from han.score.scorer import Scored
from han.score.worker import Item, Report, Task, local_scorer
from han.storage import write_json
from han.types import Mistake

_ANSWERS = pa.schema([("label", pa.int32()), ("rating", pa.int8()), ("num_tokens", pa.int32()), ("logits", pa.list_(pa.float32()))])


def evaluate(source: str, out: Path, *, model: str, columns: ColumnsConfig, config: ScoreConfig, report: Report) -> dict[str, Any]:
    """Write the metrics (`metrics.measure`) of the labelled reviews of `source` to `out`/metrics.json, and return them.

    If the input has a test split, only that split is measured. Records without a label, and records that cannot be scored, are left out and
    counted.
    """
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {"metrics.json", "settings.toml"}):
        raise Mistake(f"--out {out} holds something else: give a new folder")
    model = artifact.resolve(model)
    loaded = artifact.load(artifact.find(model))
    if not columns.label_names:  # integer labels mean the same as for the model
        columns = dataclasses.replace(columns, label_names=loaded.labels)
    shards = sources.find_shards(source, columns, labelled=True)
    test = [shard for shard in shards if shard.split == "test"]
    items = [Item(name=f"{shard.path} {index}", shard=shard, num_rows=None) for index, shard in enumerate(test or shards)]
    task = Task(
        model=model,
        fingerprint=loaded.fingerprint,
        columns=columns,
        labelled=True,
        config=config,
        sink=_Answers,
        make_scorer=local_scorer,
        cpus=1,
        survives_broken_files=False,
    )
    results = list(pool.run(items, task, report))
    answers = pa.concat_tables([pa.ipc.open_stream(content).read_all() for _, content in results]).combine_chunks()
    if not len(answers):
        raise Mistake(f"{source} has no labelled review that can be scored: name the column of labels with --columns.label")
    logits = answers["logits"].combine_chunks().flatten().to_numpy().reshape(len(answers), -1)
    figures = metrics.measure(
        metrics.softmax(logits),
        answers["label"].to_numpy(),
        label_names=loaded.labels,
        num_tokens=answers["num_tokens"].to_numpy(),
        ratings=answers["rating"].to_numpy() if answers["rating"].null_count < len(answers) else None,
    )
    about = {"model": loaded.fingerprint, "temperature": loaded.metrics.get("temperature"), "data": source, "test_split": bool(test)}
    figures |= about | {key: sum(record[key] for record, _ in results) for key in ("rows_in", "unlabelled", "quarantined")}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", figures)
    return figures


class _Answers:
    """A sink that compares the answers of a shard with its labels."""

    attempts: Attempts | None = None

    def __init__(self, item: Item, labels: tuple[str, ...]) -> None:
        self._path, self._labels = item.shard.path, labels
        self._tables = [_ANSWERS.empty_table()]
        self._counts = {"rows_in": 0, "unlabelled": 0, "quarantined": 0}

    def add(self, batch: Batch, reviews: pa.Table, scored: Scored) -> None:
        kept = reviews.take(scored.kept)
        label = pc.index_in(kept["label"], pa.array(self._labels))
        strange = kept["label"].filter(pc.and_(pc.is_null(label), pc.is_valid(kept["label"])))
        if len(strange):
            raise Mistake(f"{self._path} has the label {strange[0].as_py()!r}, the model knows {', '.join(self._labels)}")
        offsets = np.arange(len(kept) + 1, dtype=np.int32) * len(self._labels)
        logits = pa.ListArray.from_arrays(pa.array(offsets), pa.array(scored.logits.ravel()))
        table = pa.table([label, kept["rating"], pa.array(scored.num_tokens), logits], schema=_ANSWERS)
        self._tables.append(table.filter(pc.is_valid(table["label"])))
        self._counts["rows_in"] += len(batch.rows) + len(batch.bad)
        self._counts["unlabelled"] += table["label"].null_count
        self._counts["quarantined"] += len(scored.refused) + len(batch.bad)

    def set_aside(self, bad: BadRecord) -> None:
        self._counts["rows_in"] += 1
        self._counts["quarantined"] += 1

    def close(self) -> tuple[dict[str, Any], bytes]:
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, _ANSWERS) as writer:
            writer.write_table(pa.concat_tables(self._tables))
        return dict(self._counts), stream.getvalue().to_pybytes()
