"""The settings, as frozen dataclasses. A field is a flag, a key of config.json and a parameter that a sweep may vary.

`PrepareConfig` decides how text is encoded and is part of an encoding's fingerprint. `ModelConfig` and `TrainConfig` decide what is
trained. `ScoreConfig` decides how fast reviews are scored, not their scores.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_type_hints

from han.types import AttentionDetail, UserError

SETTINGS_FILE = "settings.toml"  # repeats a run: a job writes it before its work, so a folder that holds nothing else is new
T = TypeVar("T")
REMOVED: dict[str, object] = {"adversarial": 0.0, "teacher_adversarial": 0.0, "teacher_hidden": None}
"""settings of earlier versions, and the only value of each that this version can repeat"""
TagRule: TypeAlias = Literal["html", "any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsConfig:
    """Names of the input's columns, and names of integer labels."""

    text: str = "text"
    """column of the review's text"""
    label: str = "label"
    """column of the label: a name, or an integer that indexes label-names; -1 or null means unlabelled"""
    review_id: str = "review_id"
    """column of the review's id; without it the id is <file name>:<row>"""
    rating: str = "rating"
    """column of the star rating, used only to report accuracy by rating"""
    label_names: tuple[str, ...] = ()
    """names of integer labels, in order, e.g. --columns.label-names negative positive; built in for IMDB"""
    csv_types: Literal["infer", "text"] = "infer"
    """types of CSV columns: infer reads a column of numbers as numbers (not the text, the id or the label); text keeps all strings"""
    delimiter: str | None = None
    """character between the fields of a CSV file, e.g. ';'; the default is a comma, and a tab for .tsv"""

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\r\n\0'):
            raise UserError(f"delimiter is {self.delimiter!r}: give one ASCII character that is neither a quote nor a line break")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """How a review is split into sentences of tokens."""

    max_characters: int = 50_000
    """longer texts are refused as too_long, never truncated (IMDB's longest has 14,282)"""
    max_sentences: int | None = None
    """maximum number of sentences of a review; the default keeps all"""
    max_tokens: int | None = None
    """maximum number of tokens of a sentence; the default keeps all"""
    tags: TagRule = "html"
    """tags that are blanked before tokenising: html (tags of HTML) or any (everything that looks like a tag, the rule of version 0.1.0)"""

    def __post_init__(self) -> None:
        _at_least(self, max_characters=1, max_sentences=1, max_tokens=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabConfig:
    """Which words are in the vocabulary; all others are <unk>."""

    min_count: int = 3
    """words that occur less often in the training text are <unk>"""
    max_size: int = 60_000
    """maximum size of the vocabulary including <unk>; the most frequent words are kept"""

    def __post_init__(self) -> None:
        _at_least(self, min_count=1, max_size=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsConfig:
    """Initial word vectors."""

    source: str = "in-domain"
    """in-domain (word2vec on all training text, as in the paper), random, the path of a .vec or .txt file, or glove.6B.200d (50d, 100d,
    300d), which is downloaded"""
    size: int = 200
    """dimensions of in-domain and random vectors; a file has its own"""
    epochs: int = 5
    """passes over the text (in-domain)"""
    window: int = 5
    """context words on each side (in-domain)"""

    def __post_init__(self) -> None:
        _at_least(self, size=1, epochs=1, window=1)

    @property
    def is_file(self) -> bool:
        """Whether the source is a file, or the name of one that is downloaded."""
        return self.source not in ("in-domain", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """All settings that decide the content of an encoded folder."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    text: TextConfig = field(default_factory=TextConfig)
    vocab: VocabConfig = field(default_factory=VocabConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    punkt_sample: int = 2_000
    """reviews from which Punkt learns abbreviations; 0 uses untrained Punkt"""
    drop_duplicates: bool | None = None
    """drop copies of test and development reviews from the training text; the default is yes for IMDB, no for other data"""
    limit: int | None = None
    """number of labelled reviews for training and development, chosen by hash; the default keeps all"""
    seed: int = 1
    """seed of the word vectors and of the order of the reviews"""

    def __post_init__(self) -> None:
        _at_least(self, punkt_sample=0, limit=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes of the network (Yang et al., NAACL 2016, section 3). The embedding has the width of the word vectors of the data."""

    word_hidden: int = 50
    """units of the word GRU in each direction"""
    word_attention: int = 100
    """size of the word attention's hidden layer"""
    sentence_encoder: bool = True
    """use a GRU over the sentences, as in the paper; without it attention weighs the sentence vectors themselves"""
    sentence_hidden: int = 50
    """units of the sentence GRU in each direction (with sentence-encoder)"""
    sentence_attention: int = 100
    """size of the sentence attention's hidden layer"""
    embedding_dropout: float = 0.4
    """dropout of embeddings in training"""
    dropout: float = 0.4
    """dropout of sentence and review vectors in training"""

    def __post_init__(self) -> None:
        _at_least(self, word_hidden=1, word_attention=1, sentence_hidden=1, sentence_attention=1)
        for name in ("embedding_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give a share from 0 to below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the network is trained. Batch sizes count tokens over all workers, so more workers do not change the optimisation."""

    seed: int = 1
    """seed of the initial weights, the order of the reviews and dropout"""
    epochs: int = 5
    """maximum passes over the training reviews"""
    patience: int = 3
    """training stops after this many epochs without a lower development log loss"""
    batch_tokens: int = 16_384
    """tokens in a step over all workers (16,384 are about 60 IMDB reviews)"""
    learning_rate: float = 1e-3
    """peak learning rate of Adam; it warms up over the first tenth of the steps and falls to 0 at the end"""
    weight_decay: float = 0.0
    """decoupled weight decay of the dense weights (AdamW)"""
    clip_norm: float = 1.0
    """maximum norm of a step's gradient"""
    num_workers: int = 1
    """data-parallel processes"""
    cpus_per_worker: int = 1
    """CPUs and torch threads of a worker"""
    gpu: bool = False
    """use one GPU for each worker, with NCCL between them"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 uses autocast; GPUs only"""
    max_failures: int = 3
    """restarts from the last checkpoint after workers die"""
    soft_labels: str | None = None
    """Parquet file, or folder of scores, with probabilities of the unlabelled reviews: columns review_id and probabilities (a struct with
    a number for each label); the training then includes these reviews"""
    semi_supervised: bool = False
    """also learn from the unlabelled reviews: fits n-grams, pretrains the word GRU on all text, trains teachers, and trains the model on
    the teachers' answers; a killed run resumes after its last finished stage"""
    coverage: float = 0.9
    """share of the development reviews that are not flagged as uncertain; sets the model's threshold"""

    def __post_init__(self) -> None:
        _at_least(self, epochs=1, patience=1, batch_tokens=1, num_workers=1, cpus_per_worker=1, max_failures=0)
        if not 0 < self.coverage <= 1:
            raise UserError(f"coverage is {self.coverage}: give a share above 0, at most 1")
        if self.semi_supervised and self.soft_labels is not None:
            raise UserError("semi_supervised makes its own soft labels: give --train.semi-supervised or --train.soft-labels, not both")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate is {self.learning_rate}: give a number above 0")
        if self.precision == "bfloat16" and not self.gpu:
            raise UserError("precision bfloat16 needs --train.gpu: on CPUs it makes small recurrent networks no faster")


@dataclass(frozen=True, slots=True, kw_only=True)
class SemiSupervisedConfig:
    """How the unlabelled reviews are used with --train.semi-supervised."""

    teachers: int = 4
    """number of teacher networks; the n-gram model labels the unlabelled reviews too"""
    teacher_epochs: int = 3
    """passes of a teacher over the labelled reviews; few reviews get more passes"""
    student_epochs: int = 3
    """passes of the model over all reviews with the labels of the teachers; few reviews get more passes"""
    pretraining_passes: int = 3
    """passes over all text that pretrain the word GRU"""
    stages: str | None = None
    """folder of the stages' results; the default is `stages` in the folder of the run; runs with different seeds may share it"""

    def __post_init__(self) -> None:
        _at_least(self, teachers=1, teacher_epochs=1, student_epochs=1, pretraining_passes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackConfig:
    """Trackers that receive the metrics of a run, in addition to TensorBoard. They may change when a run resumes."""

    mlflow: str | None = None
    """MLflow's tracking URI: http://host:5000, or sqlite:////folder/mlflow.db; needs han-on-ray[mlflow]"""
    experiment: str = "han-on-ray"
    """MLflow's experiment, created if it does not exist"""
    wandb: str | None = None
    """project or entity/project of Weights & Biases, after `wandb login`; needs han-on-ray[wandb]"""
    wandb_offline: bool = False
    """write only the run's folder, for `wandb sync` later"""
    name: str | None = None
    """name of the run for trackers; the default uses the name of its folder"""
    group: str | None = None
    """group of runs for trackers"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """How a search space is searched."""

    trials: int
    """number of settings to try; the first trial uses the flags as given"""
    seed: int = 1
    """seed of the search; --train.seed is the seed of each training"""
    sampler: Literal["tpe", "random", "gp", "nsgaii"] = "tpe"
    """Optuna's sampler"""
    reduction_factor: int = 4
    """ASHA: after grace, grace x factor, ... epochs, 1 of this many trials continues; 1 turns early stopping off"""
    grace: int = 1
    """epochs before a trial may be stopped"""
    cost: bool = False
    """two objectives: development log loss, and training milliseconds for each review; no trial is stopped early"""
    warm_start: str | None = None
    """folder of an earlier sweep; its best settings (a quarter of --trials) are tried after the first"""

    def __post_init__(self) -> None:
        _at_least(self, trials=1, reduction_factor=1, grace=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """How a dump is scored. These settings do not change the scores."""

    num_actors: int | None = None
    """scoring processes; the default uses one for each CPU"""
    batch_tokens: int = 16_384
    """maximum tokens in a forward pass, unless a single review has more"""
    gpu: bool = False
    """use one GPU for each process"""
    stall_s: float = 300.0
    """a worker without progress for this many seconds (a fifth of them for a single record) is stopped as hung"""

    def __post_init__(self) -> None:
        _at_least(self, num_actors=1, batch_tokens=1)
        if self.stall_s <= 0:
            raise UserError(f"stall_s is {self.stall_s}: give seconds, above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Content of a folder of scores, and how many bad records it tolerates."""

    attention: AttentionDetail = "words"
    """detail of the attention in the output"""
    effects: Literal["none", "sentences", "words"] = "none"
    """effects in the output, where attention is not none: of sentences (exact), or of words too (an estimate, about 8 times as slow)"""
    carry: tuple[str, ...] | None = None
    """columns of the input to keep; the default keeps all"""
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = "zstd"
    """compression codec of the Parquet files"""
    rows_per_file: int | None = None
    """maximum rows of a Parquet file; the default writes one file for each shard of the input"""
    max_bad_ratio: float = 0.01
    """share of records that may be quarantined; above it nothing is published (exit code 3)"""
    bad_files: Literal["stop", "quarantine"] = "stop"
    """when a file cannot be read or is truncated: stop (exit code 2), or quarantine its lost records and continue"""

    def __post_init__(self) -> None:
        _at_least(self, rows_per_file=1)
        if self.effects != "none" and self.attention != "words" and self.attention != self.effects:
            raise UserError(f"effects is {self.effects}, but attention is {self.attention}: the attention must have at least that detail")
        if not 0 <= self.max_bad_ratio <= 1:
            raise UserError(f"max_bad_ratio is {self.max_bad_ratio}: give a share from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusConfig:
    """What a corpus view lists."""

    min_count: int | None = None
    """minimum occurrences of a word or phrase for a label; None: 1 for every 200 reviews, at least 2 and at most 20"""
    rows: int = 200
    """number of words, and number of phrases, of each label on the page, for each of its sort orders"""

    def __post_init__(self) -> None:
        _at_least(self, min_count=1, rows=1)


def as_json(config: object) -> dict[str, Any]:
    """A dataclass of this file as JSON-ready dicts (tuples become lists)."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))  # type: ignore[call-overload]


def from_json(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass `kind` from `as_json`'s dicts. An unknown name is a `UserError`; a missing one has its default."""
    hints = get_type_hints(kind)
    if kind is TextConfig:  # version 0.1.0 had no such setting
        values = {"tags": "any", **values}
    values = without_removed(values)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{kind.__name__} has no setting {', '.join(unknown)}: it has {', '.join(sorted(hints))}")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_json(cast(type[Any], hints[name]), value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def without_removed(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of an earlier version without those that do not exist any more, where this version does the same without them."""
    return {name: value for name, value in values.items() if name not in REMOVED or value != REMOVED[name]}


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ between two JSON trees, as `name: theirs -> ours` lines."""
    lines: list[str] = []
    ours, theirs = without_removed(ours), without_removed(theirs)
    for name in sorted(set(ours) | set(theirs)):
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            lines += differences(one, other, f"{prefix}{name}.")
        elif one != other:
            lines.append(f"{prefix}{name}: {other} -> {one}")
    return lines


def without_settings(names: Iterable[str]) -> list[str]:
    """The names in a folder without those of its settings file, finished or not."""
    return [name for name in names if not name.removeprefix("_").startswith(SETTINGS_FILE)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from disk; a file that is not one is a `UserError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not a JSON object")
    return values


def _at_least(config: object, **smallest: int) -> None:
    for name, bound in smallest.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise UserError(f"{name} is {value}: give at least {bound}")
