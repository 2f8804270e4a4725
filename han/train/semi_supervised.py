"""Semi-supervised training: what the unlabelled reviews teach, in stages.

  ngrams               weights of n-grams, fitted on the labelled reviews (`train.ngrams`)
  pretraining          the word GRU learns to predict the next and the previous words of all text (`train.pretrain`)
  teachers             networks that start from that GRU and learn the labelled reviews; every second one reads no n-grams
  soft labels          of every unlabelled review, by a weighted sum of the logits of the n-grams and the teachers
  n-grams of labels    where few reviews have labels: n-grams again, fitted on all reviews with the soft labels, which then include them
  student              the model: it starts from that GRU and learns all reviews with these labels

The result of a stage is a file or a run in the folder of stages, written at once. A killed run resumes after the last finished stage, and
within a teacher or the student after the last epoch. The student is the only network that is kept: one HAN with n-gram inputs.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from scipy import optimize, special

from han.config import ModelConfig, SemiSupervisedConfig, TrainConfig, as_json, differences, from_json, read_json
from han.model import artifact
from han.model.gru import compiled
from han.model.metrics import fit_temperature, measure, softmax
from han.model.network import HAN, FoldedHAN
from han.model.ragged import collate_table, token_batches
from han.storage import replace_file, write_json
from han.train.encoded import EncodedFolder, read_encoded, read_windows
from han.train.learn import read_soft_labels
from han.train.ngrams import NgramModel, fit_ngrams
from han.train.pretrain import pretrain
from han.types import Float32s, UserError

LEAST_STEPS = 300  # so that a network of few reviews is trained to its end
MOST_EPOCHS = 40
STUDENT_DROPOUT = 0.1  # soft labels are a weaker reason to overfit than labels
PROGRESS_EVERY_S = 10.0
TOKENS_PER_S = 60_000  # in training, for each CPU; only for the first estimate of the time
START_S, EPOCH_S = 8.0, 1.0  # of a training, for the estimates
LEAST_SHARE = 0.05  # of all tokens, for a stage whose time corrects the estimate
FEW_LABELS = 0.1  # share of reviews with labels, below which n-grams know too few words
LABELLING = 0.25  # cost of the answer for a token, beside training on it

Fit = Callable[..., Any]  # `trainer.fit`


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Files that a training starts from, beside the encoded folder."""

    ngrams: str  # a `NgramModel`
    weights: str  # safetensors: initial weights of the network by name; weights that are not in it are random
    reads_ngrams: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """The last training of the recipe."""

    model: ModelConfig
    train: TrainConfig
    start: Start


def teach(
    folder: EncodedFolder, stages: Path, model: ModelConfig, train: TrainConfig, recipe: SemiSupervisedConfig, *, fit: Fit
) -> Student:
    """Run all stages before the student that are not finished yet, and return the student's training.

    stages: the folder of the stages; several runs may share it. A `UserError` is raised if it holds stages of other data or settings.
    """
    if not folder.num_reviews("unlabelled"):
        raise UserError(f"{folder.path} has no unlabelled reviews: semi-supervised training needs some; prepare reviews without labels too")
    seed = _claim(folder, stages, model, train, recipe)
    cpus = train.num_workers * train.cpus_per_worker
    plan = _Plan(folder, train, recipe)
    words = stages / f"words-{model.word_hidden}.safetensors"
    ngrams, soft_labels = stages / "ngrams.safetensors", stages / "soft-labels.parquet"
    plan.begin("n-grams")
    if not ngrams.exists():
        ray.get(_fit_ngrams.options(num_cpus=1).remote(str(folder.path), str(ngrams), None))
    plan.begin(f"pretraining of the word GRU of {model.word_hidden} units")
    if not words.exists():
        settings = as_json(model), as_json(dataclasses.replace(train, seed=seed)), recipe.pretraining_passes
        ray.get(_pretrain.options(num_cpus=cpus).remote(str(folder.path), str(words), *settings))
    runs = []
    for number in range(1, recipe.teachers + 1):
        start = Start(ngrams=str(ngrams), weights=str(words), reads_ngrams=number % 2 == 1)
        plan.begin(f"teacher {number} of {recipe.teachers}, {'with' if start.reads_ngrams else 'without'} n-grams")
        own = dataclasses.replace(_supervised(train, plan.teacher_epochs), seed=1_000 * seed + number)
        runs.append(fit(folder.path, stages / f"teacher-{number}", model, own, start=start))
    plan.begin("soft labels")
    teachers, again = [run.artifact for run in runs], None
    if plan.few_labels:
        first, again = stages / "first-labels.parquet", stages / "ngrams-of-labels.safetensors"
        if not first.exists():
            write_soft_labels(folder, stages, ngrams, teachers, first, num_tasks=cpus, equally=True)
        plan.begin("n-grams of all reviews with the soft labels")
        if not again.exists():
            ray.get(_fit_ngrams.options(num_cpus=1).remote(str(folder.path), str(again), str(first)))
        plan.begin("soft labels with these n-grams")
    if not soft_labels.exists():
        write_soft_labels(folder, stages, ngrams, teachers, soft_labels, num_tasks=cpus, again=again, equally=plan.few_labels)
    plan.begin("student")
    # Not from a teacher, which knows the labelled reviews by heart.
    kept = Start(ngrams=str(again or ngrams), weights=str(words))
    return student_of(soft_labels, model, _supervised(train, plan.student_epochs), kept)


def student_of(soft_labels: Path, model: ModelConfig, train: TrainConfig, start: Start) -> Student:
    """The training of a student on soft labels."""
    quiet = dataclasses.replace(model, embedding_dropout=STUDENT_DROPOUT, dropout=STUDENT_DROPOUT)
    return Student(model=quiet, train=dataclasses.replace(train, soft_labels=str(soft_labels)), start=start)


def summary(stages: Path) -> dict[str, Any]:
    """Development figures of the stages, for the provenance of the model."""
    return read_json(stages / "soft-labels.json")


def _supervised(train: TrainConfig, epochs: int) -> TrainConfig:
    return dataclasses.replace(train, semi_supervised=False, epochs=epochs, patience=epochs)


def _claim(folder: EncodedFolder, stages: Path, model: ModelConfig, train: TrainConfig, recipe: SemiSupervisedConfig) -> int:
    """Record what the stages are made of, or refuse a folder that was made of something else. Returns the seed of the stages."""
    stages.mkdir(parents=True, exist_ok=True)
    own = as_json(recipe)
    content = {
        "encoding": folder.fingerprint,
        "data_fingerprint": folder.data_fingerprint,
        "model": as_json(model),
        "recipe": {name: own[name] for name in own if name not in ("student_epochs", "stages")},
        "batch_tokens": train.batch_tokens,
        "learning_rate": train.learning_rate,
    }
    if not (stages / "stages.json").exists():
        write_json(stages / "stages.json", content | {"seed": train.seed})
    earlier = read_json(stages / "stages.json")
    seed = int(earlier.pop("seed"))  # of the run that made the stages; runs of other seeds share them
    if changed := differences(content, earlier):
        raise UserError(f"{stages} holds stages of other data or settings ({'; '.join(changed[:3])}): give another folder")
    return seed


class _Plan:
    """Prints the stages, and the time that they are expected to need."""

    def __init__(self, folder: EncodedFolder, train: TrainConfig, recipe: SemiSupervisedConfig) -> None:
        labelled, unlabelled = folder.num_reviews("train"), folder.num_reviews("unlabelled")
        tokens = folder.counts["words_counted"] / (labelled + unlabelled)  # a review
        self.teacher_epochs = enough_epochs(labelled * tokens, train.batch_tokens, recipe.teacher_epochs)
        self.few_labels = labelled < FEW_LABELS * (labelled + unlabelled)
        of_all = (labelled + unlabelled) * tokens
        self.student_epochs = enough_epochs(of_all, train.batch_tokens, recipe.student_epochs)
        of_teacher = self.teacher_epochs * labelled * tokens
        labelling = recipe.teachers * LABELLING * unlabelled * tokens
        self.stages = [  # tokens and epochs of each; 0 epochs: no training by Ray Train
            (LABELLING * of_all, 0),
            (recipe.pretraining_passes * of_all, 0),
            *[(of_teacher, self.teacher_epochs)] * recipe.teachers,
            (labelling, 0),
            *[(LABELLING * of_all, 0), (labelling, 0)] * self.few_labels,
            (self.student_epochs * of_all, self.student_epochs),
        ]
        self.rate: float = TOKENS_PER_S * train.num_workers * train.cpus_per_worker
        self.number, self.began = 0, time.monotonic()

    def begin(self, name: str) -> None:
        now = time.monotonic()
        if self.number:
            tokens, epochs = self.stages[self.number - 1]
            took_s = now - self.began - _fixed_s(epochs)
            # a short stage, or one that was finished before, says nothing of the speed
            if took_s > PROGRESS_EVERY_S and tokens > LEAST_SHARE * sum(each for each, _ in self.stages):
                self.rate = tokens / took_s
        left_s = sum(tokens / self.rate + _fixed_s(epochs) for tokens, epochs in self.stages[self.number :])
        self.number, self.began = self.number + 1, now
        print(f"stage {self.number} of {len(self.stages)}: {name}; all stages end in about {math.ceil(left_s / 60)} min", flush=True)


def _fixed_s(epochs: int) -> float:
    """Seconds of a training that do not depend on its reviews: its start, and the evaluation and the checkpoint of each epoch."""
    return START_S + EPOCH_S * epochs if epochs else 0.0


def enough_epochs(num_tokens: float, batch_tokens: int, epochs: int) -> int:
    """Passes of a training over so many tokens: `epochs`, or more where the reviews are few."""
    return max(epochs, min(MOST_EPOCHS, math.ceil(LEAST_STEPS * batch_tokens / num_tokens)))


@ray.remote
def _fit_ngrams(data: str, out: str, soft_labels: str | None) -> None:
    folder = read_encoded(Path(data))
    soft = read_soft_labels(Path(soft_labels), folder.labels) if soft_labels is not None else None
    fit_ngrams(folder, lambda done, total: print(f"n-grams: {done} of {total} fits", flush=True), soft=soft).write(Path(out))


@ray.remote
def _pretrain(data: str, out: str, model: dict[str, Any], train: dict[str, Any], passes: int) -> None:
    torch.set_num_threads(int(ray.get_runtime_context().get_assigned_resources()["CPU"]))
    began = shown = time.monotonic()

    def report(seen: int, total: int, left: float) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= PROGRESS_EVERY_S:
            shown = now
            rate = seen / (now - began)
            seconds = int((total - seen) / rate)
            print(
                f"pretraining  {seen:,}/{total:,} reviews  {rate:,.0f} reviews/s  {left:.1%} of the variance unexplained  "
                f"{seconds // 60}:{seconds % 60:02d} left",
                flush=True,
            )

    config = from_json(TrainConfig, train)
    weights = pretrain(read_encoded(Path(data)), from_json(ModelConfig, model), config, passes=passes, report=report)
    replace_file(Path(out), lambda temporary: temporary.write_bytes(save(weights)))


def write_soft_labels(
    folder: EncodedFolder,
    stages: Path,
    ngrams: Path,
    artifacts: list[Path],
    out: Path,
    *,
    num_tasks: int,
    again: Path | None = None,
    equally: bool = False,
) -> None:
    """Write the soft labels of the unlabelled reviews, and into `stages` how good their teachers are on the development reviews.

    again: n-grams that were fitted on earlier soft labels; equally: weights that do not depend on the development reviews.
    """
    models = [str(ngrams), *([str(again)] if again else [])]
    arguments = (str(folder.path), models, [str(path) for path in artifacts])
    parts = ray.get([_answer.options(num_cpus=1).remote(*arguments, part, num_tasks) for part in range(num_tasks)])
    ids, logits = ([part[field] for part in parts] for field in ("ids", "unlabelled"))
    development = np.concatenate([part["development"] for part in parts], axis=1)
    labels = np.concatenate([part["labels"] for part in parts])
    names = ["n-grams", "n-grams of the soft labels"][: len(models)] + [f"teacher {number}" for number in range(1, len(artifacts) + 1)]
    apart = [number == 1 and again is not None for number in range(len(names))]
    weights = equal_weights(development, labels, apart) if equally else mixture(development, labels)
    figures: dict[str, Any] = {}
    for name, weight, answer in zip([*names, "all"], [*weights, 1.0], (*development, np.tensordot(weights, development, 1)), strict=True):
        measured = measure(softmax(answer), labels, label_names=folder.labels)
        figures[name] = {"weight": float(weight), "accuracy": measured["accuracy"], "log_loss": measured["log_loss"]}
        shown = f"development accuracy {measured['accuracy']:.2%}, log loss {measured['log_loss']:.4f}"
        print(f"{name}: {shown}, weight {weight:.2f}", flush=True)
    write_json(stages / "soft-labels.json", figures)
    probabilities = softmax(np.tensordot(weights, np.concatenate(logits, axis=1), 1)).astype(np.float32)
    columns = pa.StructArray.from_arrays([pa.array(column) for column in probabilities.T], names=list(folder.labels))
    table = pa.table({"review_id": [name for part in ids for name in part], "probabilities": columns})
    replace_file(out, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def mixture(logits: Float32s, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights [M] >= 0 of M models for which their summed logits have the lowest log loss; logits: [M, R, C], labels: int64 [R]."""
    own = np.arange(len(labels)), labels

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        summed = np.tensordot(weights, logits, 1)
        errors = softmax(summed)
        value = float(-special.log_softmax(summed, axis=1)[own].mean())
        errors[own] -= 1
        return value, np.tensordot(logits, errors, 2) / len(labels)

    start = np.full(len(logits), 1 / len(logits))
    weights: NDArray[np.float64] = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(logits)).x
    return weights


def equal_weights(logits: Float32s, labels: NDArray[np.int64], apart: Sequence[bool]) -> NDArray[np.float64]:
    """Weights [M] with which the logits [M, R, C] vary equally, and as much as those of the models `apart` from them, if there are any.

    The sum is calibrated on the labels. For few labels, on which better weights cannot be found.
    """
    weights: NDArray[np.float64] = 1 / logits.std(axis=(1, 2)).astype(np.float64)
    for group in {*apart}:
        own = np.array([each == group for each in apart])
        weights[own] /= np.tensordot(weights[own], logits[own], 1).std()
    weights /= fit_temperature(np.tensordot(weights, logits, 1), labels)
    return weights


@ray.remote
def _answer(data: str, ngrams: list[str], artifacts: list[str], part: int, num_parts: int) -> dict[str, Any]:
    """Logits [n-grams + teachers, reviews, C] of every num_parts-th window of the unlabelled and the development reviews."""
    torch.set_num_threads(1)
    folder = read_encoded(Path(data))
    models = [NgramModel.read(Path(path)) for path in ngrams]
    networks = [artifact.load(Path(path)).network for path in artifacts]
    answer = [FoldedHAN(network) if compiled() else network for network in networks]
    result: dict[str, Any] = {"ids": [], "labels": np.empty(0, np.int64)}
    for split in ("unlabelled", "development"):
        answers = [np.empty((len(models) + len(answer), 0, len(folder.labels)), np.float32)]
        for number, table in enumerate(read_windows(folder, split)):
            if number % num_parts == part:
                answers.append(np.stack([*(model.logits(table) for model in models), *(_logits(network, table) for network in answer)]))
                if split == "unlabelled":
                    result["ids"] += table["review_id"].to_pylist()
                else:
                    result["labels"] = np.concatenate([result["labels"], table["label"].to_numpy().astype(np.int64)])
        result[split] = np.concatenate(answers, axis=1)
    return result


def _logits(network: FoldedHAN | HAN, table: pa.Table) -> Float32s:
    """Logits [R, C] in the order of the rows."""
    num_tokens = table["token_ids"].combine_chunks().value_lengths().to_numpy()
    by_batch: list[Any] = []
    rows = token_batches(num_tokens, max_tokens=TrainConfig().batch_tokens)
    with torch.inference_mode():
        for some in rows:
            by_batch.append(network(collate_table(table.take(some))).logits.numpy())
    logits = np.empty((len(table), by_batch[0].shape[1]), np.float32)
    logits[np.concatenate(rows)] = np.concatenate(by_batch)
    return logits
