"""A smaller copy of a model: `han trim --model run --data data --out small --num-words 35000`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from han.config import TrainConfig
from han.types import UserError
from jobs import cli

if TYPE_CHECKING:
    from han.model.network import HAN
    from han.train.encoded import EncodedFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """Keep the most frequent words of a model, with float16 vectors, and print the cost on the development split."""

    model: str
    """folder of a run, a sweep or an artifact, or models/best after `promote`"""
    data: str
    """the encoded folder that the model was trained on, for its development split"""
    out: str
    """the smaller artifact: a new folder"""
    num_words: int = 35_000
    """number of words to keep, the most frequent ones"""


def main(job: Trim) -> None:
    named = cli.model(job.model)
    out, data = cli.local(job.out, "--out"), cli.encoded(job.data)
    if out.exists():
        raise UserError(f"--out {out} exists already: give a new folder")
    from han.model import artifact
    from han.train.encoded import read_encoded

    model = artifact.load(artifact.find(named))
    folder = read_encoded(data)
    if folder.fingerprint != model.encoder.fingerprint:
        raise UserError(
            f"{data} has the encoding {folder.fingerprint}, the model has {model.encoder.fingerprint}: give the data it was trained on"
        )
    encoder, network = artifact.trim(model, job.num_words)
    before, after = _development(folder, model.network), _development(folder, network)
    network.embedding.half()
    kept = ("temperature", "uncertain_below", "unfamiliar_above")
    figures = {"development": after} | {name: model.metrics[name] for name in kept if name in model.metrics}
    artifact.save(out, encoder=encoder, network=network, labels=model.labels, metrics=figures, provenance=model.provenance)
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    change = f"{before['accuracy']:.2%} -> {after['accuracy']:.2%}"
    print(f"{len(model.encoder.vocab):,} words -> {len(encoder.vocab):,}; development accuracy {change}; {size_mb:.1f} MB in {out}")
    print(f"next: {cli.command('evaluate')} --model {out} --data <labelled test reviews> --out evaluation")


def _development(folder: EncodedFolder, network: HAN) -> dict[str, Any]:
    """Metrics of a network on the development split; ids that it has no row for are <unk>."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from han.model import metrics
    from han.train.learn import Learner, batches

    files = folder.files["development"]
    table = pa.concat_tables([pq.read_table(folder.path / "development" / name) for name in files]).combine_chunks()
    ids = table["token_ids"].combine_chunks()
    known = np.where(ids.values.to_numpy() < network.embedding.num_embeddings, ids.values.to_numpy(), 0)
    table = table.set_column(table.column_names.index("token_ids"), "token_ids", pa.ListArray.from_arrays(ids.offsets, pa.array(known)))
    learner = Learner(network, TrainConfig(), num_reviews=len(table), device=torch.device("cpu"))
    logits, labels = learner.evaluate(batches([table], TrainConfig().batch_tokens, None))
    return metrics.measure(metrics.softmax(logits), labels, label_names=folder.labels)


def run() -> None:
    cli.run(Trim, main, examples=("--model run --data data --out small --num-words 35000",))


if __name__ == "__main__":
    run()
