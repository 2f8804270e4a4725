"""One frozen tree of settings. A field is a flag, a line of config.json and a parameter a sweep may override.

`PrepareConfig` decides what the numbers mean (it is part of an encoding's fingerprint); `ModelConfig` and `TrainConfig` decide what is
learnt from them; `ScoreConfig` decides how fast, never what.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_type_hints

from han.types import AttentionDetail, Mistake

T = TypeVar("T")
TagRule: TypeAlias = Literal["html", "any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsConfig:
    """Which columns of the input hold what, and what integer labels are called."""

    text: str = "text"
    """the review"""
    label: str = "label"
    """its class: a name, or an integer that indexes label-names; -1 or null is an unlabelled review"""
    review_id: str = "review_id"
    """any value that names the review; without this column the id is <file name>:<row>"""
    rating: str = "rating"
    """stars, if any; used only to report accuracy by rating"""
    label_names: tuple[str, ...] = ()
    """names of integer labels, in order, e.g. --columns.label-names negative positive; built in for IMDB"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """How a review is cut into sentences of tokens."""

    max_characters: int = 50_000
    """a longer text is refused as too_long, never cut (IMDB's longest is 14,282)"""
    max_sentences: int | None = None
    """sentences kept of a review; None keeps all"""
    max_tokens: int | None = None
    """tokens kept of a sentence; None keeps all"""
    tags: TagRule = "html"
    """tags that are blanked before tokenising: html (those of HTML) or any (whatever looks like a tag, the rule of version 0.1.0)"""

    def __post_init__(self) -> None:
        _at_least(self, max_characters=1, max_sentences=1, max_tokens=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabConfig:
    """Which words get a row of their own; the others are <unk>."""

    min_count: int = 3
    """a word seen less often in what is trained on is <unk>"""
    max_size: int = 60_000
    """rows at most, <unk> among them; the most frequent words stay"""

    def __post_init__(self) -> None:
        _at_least(self, min_count=1, max_size=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsConfig:
    """What the embedding starts from."""

    source: str = "in-domain"
    """in-domain (word2vec on all that is trained on, as in the paper), random, the path of a .vec or .txt file, or glove.6B.200d (or 50d,
    100d, 300d), which is downloaded"""
    size: int = 200
    """dimensions of in-domain and random vectors; a file brings its own"""
    epochs: int = 5
    """passes over the text (in-domain)"""
    window: int = 5
    """words each side that count as context (in-domain)"""

    def __post_init__(self) -> None:
        _at_least(self, size=1, epochs=1, window=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """Everything that decides what an encoded folder holds."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    text: TextConfig = field(default_factory=TextConfig)
    vocab: VocabConfig = field(default_factory=VocabConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    punkt_sample: int = 2_000
    """reviews from which Punkt learns this corpus's abbreviations; 0 keeps it untrained"""
    drop_duplicates: bool | None = None
    """drop copies of test and development reviews from all that is trained on; None is on for IMDB, off elsewhere"""
    limit: int | None = None
    """labelled reviews kept for training and development, chosen by hash; None keeps all"""
    seed: int = 1
    """of the word vectors and of the order of the reviews"""

    def __post_init__(self) -> None:
        _at_least(self, punkt_sample=0, limit=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes of the network (Yang et al., NAACL 2016, section 3). The embedding is as wide as the data's word vectors."""

    word_hidden: int = 50
    """units of the word GRU, each way"""
    word_attention: int = 100
    """size of the word attention's hidden layer"""
    sentence_encoder: bool = True
    """a GRU over the sentences, as in the paper; without it attention weighs the bare sentence vectors"""
    sentence_hidden: int = 50
    """units of the sentence GRU, each way (sentence-encoder)"""
    sentence_attention: int = 100
    """size of the sentence attention's hidden layer"""
    embedding_dropout: float = 0.4
    """share of embedding elements dropped in training"""
    dropout: float = 0.4
    """share of sentence and review vector elements dropped in training"""

    def __post_init__(self) -> None:
        _at_least(self, word_hidden=1, word_attention=1, sentence_hidden=1, sentence_attention=1)
        for name in ("embedding_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise Mistake(f"{name} is {getattr(self, name)}: give a share from 0 to below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the network learns. Batches are counted in tokens over all workers, so more workers do not change the optimisation."""

    seed: int = 1
    """of the initial weights, the order of the reviews and dropout"""
    epochs: int = 5
    """passes over the training reviews at most"""
    patience: int = 3
    """epochs without a better development accuracy before training stops"""
    batch_tokens: int = 16_384
    """tokens a step, over all workers together (about 60 reviews of IMDB)"""
    learning_rate: float = 1e-3
    """peak of Adam's rate: it warms up over the first tenth and falls to 0 at the last epoch's end"""
    weight_decay: float = 0.0
    """of the dense weights, decoupled (AdamW)"""
    clip_norm: float = 1.0
    """longest gradient of a step"""
    num_workers: int = 1
    """data-parallel processes"""
    cpus_per_worker: int = 1
    """CPUs, and torch threads, of a worker"""
    gpu: bool = False
    """one GPU a worker, NCCL between them"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is autocast, on GPUs only"""
    max_failures: int = 3
    """deaths of workers survived by a restart from the last checkpoint"""

    def __post_init__(self) -> None:
        _at_least(self, epochs=1, patience=1, batch_tokens=1, num_workers=1, cpus_per_worker=1, max_failures=0)
        if self.learning_rate <= 0:
            raise Mistake(f"learning_rate is {self.learning_rate}: give a number above 0")
        if self.precision == "bfloat16" and not self.gpu:
            raise Mistake("precision bfloat16 needs --train.gpu: on CPUs it makes small recurrent networks no faster")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackConfig:
    """Where a run's figures go beside its folder and TensorBoard. No part of what a run is: it may change when a run goes on."""

    mlflow: str | None = None
    """tracking URI of MLflow: http://host:5000, or sqlite:////folder/mlflow.db; needs han-on-ray[mlflow]"""
    experiment: str = "han-on-ray"
    """MLflow's experiment, made if it is not there"""
    wandb: str | None = None
    """project, or entity/project, of Weights & Biases, where `wandb login` knows you; needs han-on-ray[wandb]"""
    wandb_offline: bool = False
    """write the run's folder alone, for `wandb sync` later"""
    name: str | None = None
    """what trackers call the run; None is its folder's name"""
    group: str | None = None
    """what trackers file it under, with others"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """How a dump is scored: never what a score is."""

    num_actors: int | None = None
    """scoring processes; None is one a CPU"""
    batch_tokens: int = 16_384
    """tokens in one forward pass at most, unless a single review has more"""
    gpu: bool = False
    """one GPU an actor"""
    stall_s: float = 300.0
    """seconds without progress in a batch (a fifth of it for a record on its own) after which a worker counts as hung and is ended"""

    def __post_init__(self) -> None:
        _at_least(self, num_actors=1, batch_tokens=1)
        if self.stall_s <= 0:
            raise Mistake(f"stall_s is {self.stall_s}: give seconds, above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """What a folder of scores holds, and what it puts up with."""

    attention: AttentionDetail = "words"
    """how much of the attention goes into the answer"""
    carry: tuple[str, ...] | None = None
    """columns of the input that are kept beside the answers; None keeps all"""
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = "zstd"
    """of the Parquet files"""
    rows_per_file: int | None = None
    """rows of a Parquet file at most; None is one file a shard of the input"""
    max_bad_ratio: float = 0.01
    """share of the records that may be quarantined; with more nothing is published (exit code 3)"""
    bad_files: Literal["stop", "quarantine"] = "stop"
    """a file that cannot be read, or breaks off: end the job (exit code 2), or set aside what is lost of it and go on"""

    def __post_init__(self) -> None:
        _at_least(self, rows_per_file=1)
        if not 0 <= self.max_bad_ratio <= 1:
            raise Mistake(f"max_bad_ratio is {self.max_bad_ratio}: give a share from 0 to 1")


def as_json(config: object) -> dict[str, Any]:
    """A dataclass of this file as JSON-ready dicts (tuples become lists)."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))  # type: ignore[call-overload]


def from_json(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass `kind` from `as_json`'s dicts. A name the tree does not have is a `Mistake`, a missing one takes its default."""
    hints = get_type_hints(kind)
    if kind is TextConfig:  # version 0.1.0 had no such setting
        values = {"tags": "any", **values}
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise Mistake(f"{kind.__name__} has no setting {', '.join(unknown)}: it has {', '.join(sorted(hints))}")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_json(cast(type[Any], hints[name]), value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ between two JSON trees, as `name: theirs -> ours` lines."""
    lines: list[str] = []
    for name in sorted(set(ours) | set(theirs)):
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            lines += differences(one, other, f"{prefix}{name}.")
        elif one != other:
            lines.append(f"{prefix}{name}: {other} -> {one}")
    return lines


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from disk; a file that is not one is a `Mistake`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Mistake(f"{path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Mistake(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise Mistake(f"{path} holds {type(values).__name__}, not a JSON object")
    return values


def _at_least(config: object, **smallest: int) -> None:
    for name, bound in smallest.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise Mistake(f"{name} is {value}: give at least {bound}")
