"""A model on disk: one folder that contains all that scoring needs. Nothing in it is pickled.

    config.json        format, text settings, sizes, labels, the encoder's fingerprint, provenance
    vocab.txt          one word a line; a word's line is its id
    punkt.json         Punkt's parameters, if it was trained
    model.safetensors  the weights; any tensor may be float16 (the word vectors of a small artifact are), all load as float32
    ngrams.safetensors the table of n-grams, if the network has one: hashes uint32 [N], weights float16 [N, K]
    metrics.json       metrics on the development split and, if it was opened, on the test split
    README.md          the model card, generated; the only file that may be edited
    SHA256SUMS         checksums of all files except the card, for `sha256sum -c`

Beside the folder, NAME.test.json may hold metrics on test reviews that were measured later (see `registry.keep_test`).

The logits are calibrated: the read-out was divided by the temperature before `save`. `save` and `load` refuse a model with a weight, or
an answer to one of `GOLDEN`, that is not finite. `load` checks sizes before it reads a file, and the content against the schemas below.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json as parse_json

from han.config import ModelConfig, TextConfig, as_json, from_json
from han.model.card import model_card
from han.text.encode import Encoder
from han.text.vocabulary import Vocab
from han.types import Encoded, UserError

if TYPE_CHECKING:  # a wrong path is found before torch is loaded
    import torch

    from han.model.network import HAN
    from han.model.ngrams import NgramTable

FORMAT = 2  # 1 without n-grams, which earlier versions can read
# Beside this package. The uploaded code of a submitted job lacks it (.rayignore) and uses the package installed on its node.
_PLACES = (Path(__file__).parents[2], *map(Path, sys.path))
SHIPPED = next(
    (place / "han" / "pretrained" for place in _PLACES if (place / "han" / "pretrained").is_dir()), _PLACES[0] / "han/pretrained"
)
BEST = "best"  # models/best is the version that models/best.json names (see `evaluate.registry`)
TEST = ".test.json"
_SUMMED = ("config.json", "vocab.txt", "model.safetensors", "metrics.json")  # and punkt.json, ngrams.safetensors, if there are any
GOLDEN = (
    "A wonderful film. I loved every minute of it, and the cast was great!",
    "The worst film I have ever seen: boring, bad and far too long. Avoid it.",
    "ok",
)
UNFAMILIAR_ABOVE = (
    0.3  # share of unknown tokens; of IMDB's 2,520 development reviews the largest is 0.09, texts in other languages have 0.38 and more
)
_MIB = 1 << 20
_MOST_BYTES = {  # of each file; far more than any model needs, far less than a machine has
    "SHA256SUMS": _MIB // 16,
    f"{BEST}.json": 4 * _MIB,
    "config.json": 4 * _MIB,
    "metrics.json": 16 * _MIB,
    "punkt.json": 64 * _MIB,
    "vocab.txt": 256 * _MIB,
    "model.safetensors": 16_384 * _MIB,
    "ngrams.safetensors": 4_096 * _MIB,
}
_MOST_FILES = 16  # lines of SHA256SUMS
_MOST_UNITS = 65_536  # of a layer


def _distinct(labels: list[str]) -> list[str]:
    if len(set(labels)) != len(labels):
        raise ValueError("two labels have one name")
    if not all(label.strip() for label in labels):
        raise ValueError("a label has an empty name")
    return labels


_Labels = Annotated[list[str], Field(min_length=2), AfterValidator(_distinct)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Config(BaseModel):
    """config.json. `text` and `model` are checked as `TextConfig` and `ModelConfig`."""

    model_config = ConfigDict(strict=True)
    format: Annotated[int, Field(ge=1)]
    text: dict[str, Any]
    model: dict[str, Any]
    embedding_size: Annotated[int, Field(ge=1, le=_MOST_UNITS)]
    labels: _Labels
    encoder: str
    provenance: dict[str, Any]


class Figures(BaseModel):
    """One split of metrics.json. An older version may have measured less, a newer one more: a default means that it may be absent."""

    model_config = ConfigDict(strict=True)
    num_reviews: Annotated[int, Field(ge=0)] = 0
    accuracy: _Share = 0.0
    f1: _Share = 0.0
    auc: _Share | None = None
    log_loss: Annotated[float, Field(ge=0)] = 0.0
    expected_calibration_error: _Share = 0.0


class Splits(BaseModel):
    """Metrics by split; a split that was not measured is absent."""

    model_config = ConfigDict(strict=True)
    development: Figures = Figures()
    test: Figures = Figures()


class _Metrics(Splits):
    """metrics.json."""

    temperature: Annotated[float, Field(gt=0)] | None = None
    uncertain_below: _Share | None = None
    unfamiliar_above: _Share | None = None


class _Punkt(BaseModel):
    """punkt.json."""

    model_config = ConfigDict(strict=True)
    abbreviations: list[str]
    collocations: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    sentence_starters: list[str]
    orthography: dict[str, Annotated[int, Field(ge=0, le=126, multiple_of=2)]]  # NLTK's six orthographic contexts, bits 1 to 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model that is ready to score on the CPU."""

    encoder: Encoder
    network: HAN  # float32, eval mode
    labels: tuple[str, ...]  # [C], in the order of the logits
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    fingerprint: str  # 16 hexadecimal digits: equal means the same answer to every text

    @property
    def uncertain_below(self) -> float | None:
        """An answer with a lower probability is flagged as uncertain. None flags no answer."""
        return self.metrics.get("uncertain_below")

    @property
    def unfamiliar_above(self) -> float:
        """A text with a larger share of unknown tokens is flagged as unfamiliar."""
        above: float | None = self.metrics.get("unfamiliar_above")
        return UNFAMILIAR_ABOVE if above is None else above


def save(
    folder: Path,
    *,
    encoder: Encoder,
    network: HAN,
    labels: Sequence[str],
    metrics: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Write the artifact as a new `folder`, wholly or not at all.

    Tensors keep their dtype. `metrics` holds what `metrics.measure` returned as `development` and, if any, `test`, and the
    `temperature`, and optionally `uncertain_below` and `unfamiliar_above`; `provenance` is any JSON. `UserError` if the folder exists, a
    label is empty or repeated, or the network is not finite.
    """
    from safetensors.torch import save as safetensors_bytes

    if folder.exists():
        raise UserError(f"{folder} exists already: give a new folder for the artifact")
    config = {
        "format": 1 if network.ngrams is None else FORMAT,
        "text": as_json(encoder.tokeniser.config),
        "model": as_json(network.config),
        "embedding_size": network.embedding.embedding_dim,
        "labels": list(labels),
        "encoder": encoder.fingerprint,
        "provenance": provenance,
    }
    _checked(folder / "config.json", _Labels, list(labels))
    _check_finite(folder, encoder, copy.deepcopy(network).cpu().float().eval())
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(network.state_dict().items())}
    unfinished = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.unfinished"
    unfinished.mkdir(parents=True)
    try:
        _write_json(unfinished / "config.json", config)
        encoder.vocab.write(unfinished / "vocab.txt")
        if encoder.tokeniser.punkt is not None:
            _write_json(unfinished / "punkt.json", encoder.tokeniser.punkt)
        (unfinished / "model.safetensors").write_bytes(safetensors_bytes(weights))
        if network.ngrams is not None:
            (unfinished / "ngrams.safetensors").write_bytes(_ngrams_as_bytes(network.ngrams))
        _write_json(unfinished / "metrics.json", metrics)
        sums = {path.name: _sha256(path) for path in sorted(unfinished.iterdir())}
        (unfinished / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        card = model_card(config, metrics, num_words=len(encoder.vocab), fingerprint=_fingerprint(sums, config))
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        for path in (*unfinished.iterdir(), unfinished):
            _flush(path)
        unfinished.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def load(folder: Path) -> Artifact:
    """The model in `folder`, with every checksum verified. A damaged, missing or inconsistent file is a `UserError`."""
    sums = _verified_sums(folder)
    config = _read_config(folder / "config.json")
    punkt = read_checked(folder / "punkt.json", _Punkt) if "punkt.json" in sums else None
    figures = read_checked(folder / "metrics.json", _Metrics)
    encoder = Encoder(from_json(TextConfig, config["text"]), punkt, Vocab.read(folder / "vocab.txt"))
    if encoder.fingerprint != config["encoder"]:
        raise UserError(
            f"{folder}: its text files have the fingerprint {encoder.fingerprint}, its weights were trained with {config['encoder']}: "
            "they are from two models"
        )
    ngrams = _read_ngrams(folder / "ngrams.safetensors") if "ngrams.safetensors" in sums else None
    network = _without_weights(
        from_json(ModelConfig, config["model"]),
        num_words=len(encoder.vocab),
        embedding_size=config["embedding_size"],
        num_classes=len(config["labels"]),
        ngrams=ngrams,
    )
    weights = _read_weights(folder / "model.safetensors")
    _check_shapes(folder, network, weights)
    network.load_state_dict(weights, assign=True)
    _check_finite(folder, encoder, network.eval())
    fingerprint = _fingerprint(sums, config)
    return Artifact(
        encoder=encoder,
        network=network.eval(),
        labels=tuple(config["labels"]),
        metrics=read_test(folder, fingerprint) | figures,
        provenance=config["provenance"],
        fingerprint=fingerprint,
    )


def read_fingerprint(folder: Path) -> str:
    """`Artifact.fingerprint` without torch, with every checksum verified. A damaged or missing file is a `UserError`."""
    return _fingerprint(_verified_sums(folder), _read_config(folder / "config.json"))


def read_test(folder: Path, fingerprint: str) -> dict[str, Any]:
    """`test` with the metrics in the file beside the artifact `folder`; nothing if there is no file, or if it is of another model."""
    file = folder.parent / f"{folder.name}{TEST}"
    if not file.is_file():
        return {}
    measured = read_checked(file, Figures)
    return {"test": measured} if measured.get("model") == fingerprint else {}


def render_card(folder: Path, *, weaknesses: str = "", recipe: dict[str, Any] | None = None) -> str:
    """The card of the artifact in `folder`, with the test figures beside it. recipe: settings that an older artifact does not have."""
    sums = _verified_sums(folder)
    config = _read_config(folder / "config.json")
    fingerprint = _fingerprint(sums, config)
    figures = read_test(folder, fingerprint) | read_checked(folder / "metrics.json", _Metrics)
    if recipe is not None:
        config["provenance"] = {"recipe": recipe} | config["provenance"]
    num_words = len(Vocab.read(folder / "vocab.txt"))
    return model_card(config, figures, num_words=num_words, fingerprint=fingerprint, weaknesses=weaknesses)


def trim(model: Artifact, num_words: int) -> tuple[Encoder, HAN]:
    """Encoder and network of a smaller model: its `num_words` most frequent words including `<unk>`, with vectors rounded to float16.

    A vocabulary is sorted by frequency, so the remaining words keep their ids and all others become `<unk>`.
    """
    tokeniser, vocab = model.encoder.tokeniser, Vocab(model.encoder.vocab.words[:num_words])
    weights = model.network.state_dict()
    weights["embedding.weight"] = weights["embedding.weight"][: len(vocab)].half().float()
    network = _without_weights(
        model.network.config,
        num_words=len(vocab),
        embedding_size=model.network.embedding.embedding_dim,
        num_classes=len(model.labels),
        ngrams=model.network.ngrams,
    )
    network.load_state_dict(weights, assign=True)
    return Encoder(tokeniser.config, tokeniser.punkt, vocab), network.eval()


def _without_weights(config: ModelConfig, **sizes: Any) -> HAN:
    """A `HAN` whose parameters have shapes and no values, for weights that are assigned next."""
    import torch
    from torch.overrides import TorchFunctionMode

    from han.model.network import HAN

    class NoInitialisation(TorchFunctionMode):
        """Skips `torch.nn.init`: on the device "meta" it does nothing but import torch's compiler, which takes a second."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__module__", None) == "torch.nn.init":
                return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
            return func(*args, **(kwargs or {}))

    with torch.device("meta"), NoInitialisation():
        return HAN(config, **sizes)


def find(model: str) -> Path:
    """The artifact that `model` names: its folder, the folder of a run or a sweep, the promoted version (models/best), or
    `imdb`, the shipped model.
    """
    if model == "imdb":
        if not (SHIPPED / model).is_dir():
            raise UserError("the shipped model imdb is not part of this installation: give --model a run or an artifact")
        return SHIPPED / model
    folder = Path(model)
    for candidate in (folder / "artifact", folder):
        if (candidate / "SHA256SUMS").is_file():
            return candidate
    if folder.name == BEST and folder.parent.is_dir():
        return _promoted(folder.parent)
    if not folder.is_dir():
        raise UserError(f"no model at {folder}: give the folder of a run or of an artifact, or imdb")
    raise UserError(f"{folder} holds no model: an artifact has a SHA256SUMS, a finished run an artifact/")


def read_labels(folder: Path) -> tuple[str, ...]:
    """The labels of an artifact, without its weights."""
    config = read_object(folder / "config.json")
    _checked(folder / "config.json", _Labels, config.get("labels"))
    return tuple(config["labels"])


def resolve(model: str) -> str:
    """`model` under a name that means the same model on every node for the whole job, even if models/best changes meanwhile."""
    return model if model == "imdb" else str(find(model))


def _promoted(models: Path) -> Path:
    pointer = models / f"{BEST}.json"
    if not pointer.is_file():
        raise UserError(f"no model was promoted in {models} (it has no {pointer.name}): run han promote RUN --models {models}")
    version = read_object(pointer).get("version")
    if not isinstance(version, str) or Path(version).name != version or not (models / version / "SHA256SUMS").is_file():
        raise UserError(f"{pointer} names the version {version!r}, which is not in {models}: copy it back, or promote a run")
    return models / version


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size and depth, with finite numbers. Anything else is a `UserError`."""
    _check_size(path)
    try:
        values = parse_json(path.read_bytes(), allow_inf_nan=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {_line(str(error))}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not a JSON object")
    return values


def read_checked(path: Path, schema: Any) -> dict[str, Any]:
    """A JSON object that fits the schema; the values as they are in the file."""
    values = read_object(path)
    _checked(path, schema, values)
    return values


def _checked(path: Path, schema: Any, values: object) -> None:
    """Validate JSON values against a type, strictly. The `UserError` names the first field that is wrong."""
    try:
        TypeAdapter(schema).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is wrong{f' at {_line(name)}' if name else ''}: {_line(first['msg'])}") from None


def _line(text: str) -> str:
    return " ".join(text.split())[:200]


def _read_config(path: Path) -> dict[str, Any]:
    config = read_object(path)
    version = config.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise UserError(f"{path.parent} has format {version}, this version reads up to {FORMAT}: upgrade han")
    _checked(path, _Config, config)
    for part, kind in (("text", TextConfig), ("model", ModelConfig)):
        _checked(path, kind, config[part])
        from_json(kind, config[part])  # names a setting that does not exist
    for name, value in config["model"].items():
        if value > _MOST_UNITS:
            raise UserError(f"{path} is wrong at model.{name}: {value} is more than {_MOST_UNITS}")
    return config


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """float32 tensors, for any floating-point type in the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is not a safetensors file: {_line(str(error))}") from None
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise UserError(f"{path} has {name} as {tensor.dtype}, not as floating point")
    return {name: tensor.float() for name, tensor in weights.items()}


def _ngrams_as_bytes(table: NgramTable) -> bytes:
    from safetensors.numpy import save

    return save({"hashes": table.hashes, "weights": table.weights.astype(np.float16)})


def _read_ngrams(path: Path) -> NgramTable:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from han.model.ngrams import NgramTable

    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is not a safetensors file: {_line(str(error))}") from None
    shapes = {name: (str(array.dtype), array.ndim) for name, array in arrays.items()}
    if shapes != {"hashes": ("uint32", 1), "weights": ("float16", 2)} or len(arrays["hashes"]) != len(arrays["weights"]):
        raise UserError(f"{path} has {shapes}: it must have hashes uint32 [N] and weights float16 [N, K]")
    if not (arrays["hashes"][1:] > arrays["hashes"][:-1]).all():
        raise UserError(f"{path}: its hashes are not in ascending order")
    if not np.isfinite(arrays["weights"]).all():
        raise UserError(f"{path}: a weight is not finite")
    return NgramTable.of(arrays["hashes"], arrays["weights"].astype(np.float32))


def _check_finite(folder: Path, encoder: Encoder, network: HAN) -> None:
    """Every weight, and the logits of the golden texts. `network` is float32, on the CPU, in eval mode."""
    import torch

    from han.model.ragged import collate

    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{folder}: the weights {name} are not finite: the training diverged; train again with a lower learning rate")
    encoded = [answer for text in GOLDEN if isinstance(answer := encoder.encode(text), Encoded)]
    if encoded:
        with torch.inference_mode():
            logits = network(collate(encoded)).logits
        if not torch.isfinite(logits).all():
            raise UserError(f"{folder}: the answer to a golden text is not finite: the training diverged; train with a lower learning rate")


def _check_size(path: Path) -> None:
    most = _MOST_BYTES.get(path.name)
    size = path.stat().st_size if path.is_file() else None
    if most is not None and size is not None and size > most:
        raise UserError(f"{path} has {size:,} bytes, at most {most:,} are read: it is not part of a model")


def _verified_sums(folder: Path) -> dict[str, str]:
    _check_size(folder / "SHA256SUMS")
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{folder} is not an artifact: it has no SHA256SUMS") from None
    except UnicodeDecodeError:
        raise UserError(f"{folder}/SHA256SUMS is damaged: copy the artifact again") from None
    if len(lines) > _MOST_FILES:
        raise UserError(f"{folder}/SHA256SUMS has {len(lines)} lines, an artifact at most {_MOST_FILES}: copy the artifact again")
    sums = {Path(name).name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in (*_SUMMED, *sorted(set(sums) - set(_SUMMED))):
        if name not in sums:
            raise UserError(f"{folder}/SHA256SUMS has no line for {name}: copy the artifact again")
        if not (folder / name).is_file():
            raise UserError(f"{folder}/{name} is missing: copy the artifact again")
        _check_size(folder / name)
        if _sha256(folder / name) != sums[name]:
            raise UserError(f"{folder}/{name} does not match its line in SHA256SUMS: it was damaged or changed; copy the artifact again")
    return sums


def _check_shapes(folder: Path, network: HAN, weights: dict[str, torch.Tensor]) -> None:
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    actual = {name: list(tensor.shape) for name, tensor in weights.items()}
    if actual.get("embedding.weight", [0])[0] != expected["embedding.weight"][0]:
        rows, words = actual.get("embedding.weight", [0])[0], expected["embedding.weight"][0]
        raise UserError(f"{folder}/vocab.txt has {words} words, but model.safetensors has {rows} word vectors: they are from two models")
    for name in sorted(set(expected) | set(actual)):
        if expected.get(name) != actual.get(name):
            raise UserError(f"{folder}/model.safetensors has {name} of {actual.get(name)}, config.json wants {expected.get(name)}")


def _fingerprint(sums: dict[str, str], config: dict[str, Any]) -> str:
    """A hash of everything that decides an answer, without metrics and provenance."""
    deciding = {name: value for name, value in config.items() if name != "provenance"}
    parts = [json.dumps(deciding, sort_keys=True), *(sums.get(name, "") for name in ("vocab.txt", "punkt.json", "model.safetensors"))]
    parts += [sums["ngrams.safetensors"]] if "ngrams.safetensors" in sums else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Write files and folders to the disk before the rename that publishes them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
