"""What each step of semi-supervised training adds: `python -m benchmarks.ablations --data D --stages S --out F [--seeds 1 2 3]`.

D and S are the encoded folder and the stages of `make reproduce` (out/reproduce/data and out/reproduce/stages); all seeds share them. Each
row of the table adds a step to the row above it:

  labels only              the labelled reviews, from random weights, as `han train` does without a flag
  n-gram inputs            the same with n-grams as inputs of the words
  pretrained GRU           the same from the pretrained word GRU
  labels of the n-grams    the unlabelled reviews too, with soft labels of the n-grams alone
  full recipe              the same with the soft labels of the n-grams and the teachers

The figures are those of the best epoch on the development reviews. The minutes are those of this training alone, without the stages. The
result is F/ablations.json and the table. The same command resumes: a finished training is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import save_file

from han.config import ModelConfig, SemiSupervisedConfig, TrainConfig, from_json, read_json
from han.storage import write_json
from han.train.encoded import EncodedFolder, read_encoded
from han.train.semi_supervised import Start, enough_epochs, student_of, write_soft_labels
from han.train.trainer import fit
from jobs import cli

LABELLED = ("labels only", "n-gram inputs", "pretrained GRU")
VARIANTS = (*LABELLED, "labels of the n-grams", "full recipe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="encoded folder, from jobs.prepare")
    parser.add_argument("--stages", type=Path, required=True, help="finished stages of a training with --train.semi-supervised")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; the same command resumes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the trainings")
    parser.add_argument("--only", choices=VARIANTS, nargs="+", default=VARIANTS, help="variants to train")
    parser.add_argument("--workers", type=int, default=1, help="data-parallel processes of a training")
    given = parser.parse_args()
    cli.connect(given.workers + 1)
    rows = measure(given.data.resolve(), given.stages.resolve(), given.out.resolve(), given.seeds, given.only, workers=given.workers)
    print(table(rows))


def measure(data: Path, stages: Path, out: Path, seeds: Sequence[int], variants: Sequence[str], *, workers: int) -> list[dict[str, Any]]:
    """Train what is not finished; out/ablations.json is written after every training."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for variant in variants:
        for seed in seeds:
            model, train, start = settings(read_encoded(data), stages, out, variant, TrainConfig(seed=seed, num_workers=workers))
            run = fit(data, out / f"{variant.replace(' ', '-')}-{seed}", model, train, start=start)
            minutes = sum(epoch["train_s"] for epoch in run.history) / 60
            figures = {name: run.best[name] for name in ("accuracy", "log_loss")}
            rows.append({"variant": variant, "seed": seed, **figures, "minutes": minutes})
            print(json.dumps(rows[-1]), flush=True)
            write_json(out / "ablations.json", {"rows": rows})
    return rows


def settings(
    folder: EncodedFolder, stages: Path, out: Path, variant: str, train: TrainConfig
) -> tuple[ModelConfig, TrainConfig, Start | None]:
    """The training of a variant, with the sizes and the learning rate of the stages."""
    made = read_json(stages / "stages.json")
    model = from_json(ModelConfig, made["model"])
    recipe = from_json(SemiSupervisedConfig, made["recipe"])
    train = replace(train, batch_tokens=made["batch_tokens"], learning_rate=made["learning_rate"])
    labelled, every = (folder.num_reviews(split) for split in ("train", "train+unlabelled"))
    tokens = folder.counts["words_counted"] / every  # a review
    ngrams, words = stages / "ngrams.safetensors", stages / f"words-{model.word_hidden}.safetensors"
    if variant in LABELLED:
        epochs = enough_epochs(labelled * tokens, train.batch_tokens, train.epochs)
        supervised = replace(train, epochs=epochs, patience=epochs)
        if variant == "labels only":
            return model, supervised, None
        weights = words if variant == "pretrained GRU" else _no_weights(out)
        return model, supervised, Start(ngrams=str(ngrams), weights=str(weights))
    soft_labels = stages / "soft-labels.parquet"
    if variant == "labels of the n-grams":
        soft_labels = out / "ngrams-alone.parquet"
        if not soft_labels.exists():
            write_soft_labels(folder, out, ngrams, [], soft_labels, num_tasks=train.num_workers)
    epochs = enough_epochs(every * tokens, train.batch_tokens, recipe.student_epochs)
    student = student_of(soft_labels, model, replace(train, epochs=epochs, patience=epochs), Start(ngrams=str(ngrams), weights=str(words)))
    return student.model, student.train, student.start


def _no_weights(out: Path) -> Path:
    """A file of no weights: a network that starts from it is random."""
    path = out / "random.safetensors"
    if not path.exists():
        save_file(dict[str, torch.Tensor](), path)
    return path


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures in Markdown: the mean, and every seed in parentheses."""
    lines = ["| training | development accuracy | log loss | minutes |", "|---|---|---|---|"]
    for variant in VARIANTS:
        own = [row for row in rows if row["variant"] == variant]
        if own:
            cells = [
                _cell([row[name] for row in own], form) for name, form in (("accuracy", ".2%"), ("log_loss", ".4f"), ("minutes", ".1f"))
            ]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], form: str) -> str:
    return f"{mean(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"


if __name__ == "__main__":
    main()
