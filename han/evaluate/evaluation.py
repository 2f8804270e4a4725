"""Metrics of a model on labelled reviews, computed with the scorers of batch scoring."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

from han.config import ColumnsConfig, ScoreConfig
from han.data import sources
from han.data.sources import BadRecord, Batch, Shard
from han.evaluate import faithfulness
from han.evaluate.evaluation_page import FAITHFULNESS, FAITHFULNESS_PLOT, METRICS, PAGE, PREDICTIONS, check_out, page
from han.model import artifact, metrics
from han.model.gru import compiled
from han.model.network import FoldedHAN
from han.model.ragged import flat_batch
from han.score import pool, worker
from han.score.retries import Attempts
from han.score.scorer import Scored, Scorer
from han.score.worker import Item, Report, Task, local_scorer
from han.storage import write_json
from han.types import Score, UserError

NUM_MISTAKES = 20  # drawn on the page
_REVIEWS_A_TASK = 25  # of a faithfulness report
_ANSWERS = pa.schema(
    [
        ("shard", pa.int32()),
        ("review_id", pa.string()),
        ("label", pa.int32()),
        ("rating", pa.int8()),
        ("num_tokens", pa.int32()),
        ("unfamiliar", pa.bool_()),
        ("uncertain", pa.bool_()),
        ("logits", pa.list_(pa.float32())),
        ("text", pa.string()),  # null unless the review is among the worst mistakes of its shard
    ]
)


def evaluate(source: str, out: Path, *, model: str, columns: ColumnsConfig, config: ScoreConfig, report: Report) -> dict[str, Any]:
    """Measure the labelled reviews of `source`, and return the metrics.

    Writes metrics.json, predictions.parquet and evaluation.html into `out`.

    If the input has a test split, only that split is measured. Records without a label, and records that cannot be scored, are left out and
    counted.
    """
    check_out(out)
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
    answers = pa.concat_tables([pa.ipc.open_stream(content).read_all() for _, content in results]).sort_by("shard").combine_chunks()
    if not len(answers):
        raise UserError(f"{source} has no labelled review that can be scored: name the column of labels with --columns.label")
    probabilities = metrics.softmax(answers["logits"].combine_chunks().flatten().to_numpy().reshape(len(answers), -1))
    figures = metrics.measure(
        probabilities,
        answers["label"].to_numpy(),
        label_names=loaded.labels,
        num_tokens=answers["num_tokens"].to_numpy(),
        ratings=answers["rating"].to_numpy() if answers["rating"].null_count < len(answers) else None,
    )
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == answers["label"].to_numpy()
    figures["calibration"] = metrics.calibration_curve(confidence, correct)
    figures["accuracy_at_coverage"] = metrics.accuracy_at_coverage(confidence, correct)
    figures |= {f"num_{flag}": int(pc.sum(answers[flag]).as_py() or 0) for flag in ("unfamiliar", "uncertain")}
    about = {"model": loaded.fingerprint, "temperature": loaded.metrics.get("temperature"), "data": source, "test_split": bool(test)}
    figures |= about | {key: sum(record[key] for record, _ in results) for key in ("rows_in", "unlabelled", "quarantined")}
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(_predictions(answers, probabilities, loaded.labels), out / PREDICTIONS)
    mistakes = _worst_mistakes(answers, probabilities, Scorer(loaded), loaded.labels)
    (out / PAGE).write_text(page(figures, mistakes), encoding="utf-8")
    write_json(out / METRICS, figures)
    return figures


def _predictions(answers: pa.Table, probabilities: metrics.Float64s, labels: Sequence[str]) -> pa.Table:
    """A row for each measured review, in the order of the input."""
    predicted = probabilities.argmax(axis=1)
    columns = {
        "review_id": answers["review_id"],
        "true_label": pa.array(labels).take(answers["label"].combine_chunks()),
        "label": pa.array(labels).take(pa.array(predicted)),
        "correct": pa.array(predicted == answers["label"].to_numpy()),
        "probability": pa.array(probabilities.max(axis=1), pa.float32()),
        "probabilities": pa.StructArray.from_arrays([pa.array(each, pa.float32()) for each in probabilities.T], names=list(labels)),
        **{name: answers[name] for name in ("rating", "num_tokens", "unfamiliar", "uncertain")},
    }
    return pa.table(columns)


def _worst_mistakes(
    answers: pa.Table, probabilities: metrics.Float64s, scorer: Scorer, labels: Sequence[str]
) -> list[tuple[str, str, Score]]:
    """The wrong answers with the highest probability, the worst first: caption, text and Score of each."""
    wrong = np.flatnonzero(pc.is_valid(answers["text"]).to_numpy())
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:NUM_MISTAKES]
    rows = answers.take(pa.array(worst)).select(["review_id", "label", "text"]).to_pylist()
    scores = scorer.score([row["text"] for row in rows])
    return [
        (f"{row['review_id']}, labelled {labels[row['label']]}", row["text"], score)
        for row, score in zip(rows, scores, strict=True)
        if isinstance(score, Score)
    ]


def faithful(
    source: str, out: Path, *, model: str, columns: ColumnsConfig, num_reviews: int, num_for_words: int, report: Report, seed: int = 0
) -> dict[str, Any]:
    """Write the faithfulness report of random reviews of `source` to `out`/faithfulness.json and .svg, and return it.

    The reviews are measured on all CPUs of Ray. If the input has a test split, only that split is read. num_for_words: as many of the
    reviews are measured at the level of words too, which takes most of the time.
    """
    model = artifact.resolve(model)
    artifact.load(artifact.find(model))
    shards = sources.find_shards(source, columns, labelled=False)
    texts = _sample([shard for shard in shards if shard.split == "test"] or shards, columns, num_reviews, seed)
    if not texts:
        raise UserError(f"{source} has no review")
    parts = [texts[first : first + _REVIEWS_A_TASK] for first in range(0, len(texts), _REVIEWS_A_TASK)]
    remote = ray.remote(num_cpus=1)(_measure)
    waiting = [
        remote.remote(model, part, max(0, num_for_words - number * _REVIEWS_A_TASK), seed + number) for number, part in enumerate(parts)
    ]
    measured, left = [], waiting
    while left:
        report("reviews measured", len(texts) - sum(len(parts[waiting.index(each)]) for each in left), len(texts))
        _, left = ray.wait(left, num_returns=1)
    for each in ray.get(waiting):
        measured += each
    report("reviews measured", len(texts), len(texts))
    if not measured:
        raise UserError(f"none of {len(texts)} reviews of {source} can be scored")
    figures = {**faithfulness.summarise(measured, seed=seed), "model": artifact.load(artifact.find(model)).fingerprint, "data": source}
    figures["failed_checks"] = faithfulness.failures(figures)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FAITHFULNESS, figures)
    (out / FAITHFULNESS_PLOT).write_text(faithfulness.plot(figures), encoding="utf-8")
    return figures


def _sample(shards: Sequence[Shard], columns: ColumnsConfig, number: int, seed: int) -> list[str]:
    """Random texts of the shards, in random order: every text is equally likely (reservoir sampling, algorithm R)."""
    generator = np.random.default_rng(seed)
    chosen: list[str] = []
    seen = 0
    for shard in shards:
        for batch in sources.read(shard, columns, batch_rows=worker.BATCH_ROWS):
            for text in sources.reviews(batch, shard, columns, labelled=False)["text"].to_pylist():
                seen += 1
                if len(chosen) < number:
                    chosen.append(text)
                elif (place := int(generator.integers(seen))) < number:
                    chosen[place] = text
    return [chosen[place] for place in generator.permutation(len(chosen))]


def _measure(model: str, texts: Sequence[str], num_for_words: int, seed: int) -> list[dict[faithfulness.Parts, faithfulness.Measured]]:
    """The figures of some reviews, in a Ray worker."""
    torch.set_num_threads(1)
    loaded = artifact.load(artifact.find(model))
    network = loaded.network.eval()
    folded = FoldedHAN(network) if compiled() else network
    results = []
    for part, words in ((texts[:num_for_words], True), (texts[num_for_words:], False)):
        encoded = loaded.encoder.encode_batch(part)
        if len(encoded.kept):
            batch = flat_batch(encoded.token_ids, encoded.sentence_lengths, encoded.review_lengths)
            results.append(faithfulness.measure(network, batch, model=folded, words=words, seed=seed))
    return results


class _Answers:
    """A sink that compares the answers of a shard with its labels."""

    attempts: Attempts | None = None

    def __init__(self, item: Item, labels: tuple[str, ...]) -> None:
        self._path, self._labels, self._shard = item.shard.path, labels, int(item.name.rpartition(" ")[2])
        self._tables = [_ANSWERS.empty_table()]
        self._counts = {"rows_in": 0, "unlabelled": 0, "quarantined": 0}

    def add(self, batch: Batch, reviews: pa.Table, scored: Scored) -> None:
        kept = reviews.take(scored.kept)
        label = pc.index_in(kept["label"], pa.array(self._labels))
        strange = kept["label"].filter(pc.and_(pc.is_null(label), pc.is_valid(kept["label"])))
        if len(strange):
            raise UserError(f"{self._path} has the label {strange[0].as_py()!r}, the model knows {', '.join(self._labels)}")
        offsets = np.arange(len(kept) + 1, dtype=np.int32) * len(self._labels)
        table = pa.table(
            [
                pa.array(np.full(len(kept), self._shard, np.int32)),
                kept["review_id"],
                label,
                kept["rating"],
                pa.array(scored.num_tokens),
                pa.array(scored.unfamiliar),
                pa.array(scored.uncertain),
                pa.ListArray.from_arrays(pa.array(offsets), pa.array(scored.logits.ravel())),
                _texts_of_worst(kept["text"], label, scored),
            ],
            schema=_ANSWERS,
        )
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


def _texts_of_worst(texts: pa.ChunkedArray, labels: pa.ChunkedArray, scored: Scored) -> pa.Array:
    """[R], the texts of the wrong answers with the highest probability in this batch; null for all other reviews."""
    truth = pc.fill_null(labels, -1).to_numpy()
    is_wrong = (truth >= 0) & (scored.logits.argmax(axis=1) != truth)
    confidence = np.where(is_wrong, scored.probabilities.max(axis=1), -1)
    worst = np.zeros(len(confidence), np.bool_)
    worst[np.argsort(-confidence, kind="stable")[:NUM_MISTAKES]] = True
    return pc.if_else(pa.array(worst & is_wrong), texts.combine_chunks(), pa.scalar(None, pa.string()))
