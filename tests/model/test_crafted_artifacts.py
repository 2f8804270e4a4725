"""Hostile artifacts with valid checksums are refused with one line and without a traceback."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from han.config import ModelConfig, TextConfig
from han.evaluate import registry
from han.model import artifact
from han.model.network import HAN
from han.text.encode import Encoder
from han.text.vocabulary import Vocab
from han.types import UserError
from jobs import promote

Craft = Callable[[Path], None]
MODEL = ModelConfig(word_hidden=2, word_attention=3, sentence_hidden=2, sentence_attention=3)
PUNKT: dict[str, Any] = {"abbreviations": ["dr"], "collocations": [["dr", "no"]], "sentence_starters": [], "orthography": {"it": 2}}
WORDS = ("<unk>", "good", "bad", ".")


def network() -> HAN:
    torch.manual_seed(3)
    return HAN(MODEL, num_words=len(WORDS), embedding_size=4, num_classes=2).eval()


def save(folder: Path, **changes: Any) -> Path:
    encoder = Encoder(TextConfig(), PUNKT, Vocab(WORDS))
    usual: dict[str, Any] = {"encoder": encoder, "network": network(), "labels": ("no", "yes"), "metrics": {}, "provenance": {}}
    artifact.save(folder, **(usual | changes))
    return folder


def sum_again(folder: Path) -> None:
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and path.name not in ("README.md", "SHA256SUMS")]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def field(name: str, value: object, file: str = "config.json") -> Craft:
    """Set a field, or remove it where the value is `...`; dots go into objects."""

    def craft(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        *outer, last = name.split(".")
        inner = values
        for part in outer:
            inner = inner[part]
        inner.pop(last, None)
        if value is not ...:
            inner[last] = value
        (folder / file).write_text(json.dumps(values))

    return craft


def content(file: str, data: bytes) -> Craft:
    return lambda folder: (folder / file).write_bytes(data) and None


def large(file: str, size: int) -> Craft:
    def craft(folder: Path) -> None:
        with (folder / file).open("r+b") as opened:
            opened.truncate(size)

    return craft


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Craft:
    def craft(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return craft


def orthography(value: int) -> Craft:
    """A Punkt whose fingerprint is the one in config.json."""

    def craft(folder: Path) -> None:
        punkt = PUNKT | {"orthography": {"it": value}}
        field("orthography", punkt["orthography"], "punkt.json")(folder)
        field("encoder", Encoder(TextConfig(), punkt, Vocab(WORDS)).fingerprint)(folder)

    return craft


DEEP = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
CRAFTED: dict[str, Craft] = {
    **{
        f"config without {name}": field(name, ...)
        for name in ("format", "text", "model", "embedding_size", "labels", "encoder", "provenance")
    },
    **{f"format {value!r}": field("format", value) for value in ("1", None, 0, [1], 1.5)},
    **{f"text {value!r}": field("text", value) for value in (None, [], "text")},
    **{f"model {value!r}": field("model", value) for value in (None, [], {"depth": 3})},
    **{f"embedding_size {value!r}": field("embedding_size", value) for value in ("4", 0, -4, 4.5, 10**30, 10**12)},
    **{f"labels {value!r}": field("labels", value) for value in ("no", [], ["no"], ["no", "no"], ["", "yes"], [" ", "yes"], [1, 2], {})},
    **{f"word_hidden {value!r}": field("model.word_hidden", value) for value in ("2", None, 0, 10**12, 10**30, [2])},
    **{f"dropout {value!r}": field("model.dropout", value) for value in ("0.4", 1.0, -1, None)},
    **{f"max_characters {value!r}": field("text.max_characters", value) for value in ("many", None, [], {})},
    **{f"encoder {value!r}": field("encoder", value) for value in (None, 7, "0123456789abcdef")},
    "provenance as a list": field("provenance", []),
    **{f"deep {name}": content(name, DEEP) for name in ("config.json", "metrics.json", "punkt.json")},
    **{f"empty {name}": content(name, b"") for name in ("config.json", "metrics.json", "punkt.json", "vocab.txt", "model.safetensors")},
    **{f"{name} as a list": content(name, b"[]") for name in ("config.json", "metrics.json", "punkt.json")},
    **{f"{name} not UTF-8": content(name, b"\xff\xfe") for name in ("config.json", "metrics.json", "punkt.json", "vocab.txt")},
    "config with NaN": content("config.json", b'{"format": NaN}'),
    "a number of 100,000 digits": content("config.json", b'{"format": ' + b"9" * 100_000 + b"}"),
    "huge config.json": large("config.json", 5 << 20),
    "huge metrics.json": large("metrics.json", 17 << 20),
    "huge punkt.json": large("punkt.json", 65 << 20),
    "metrics of text": field("development", "good", "metrics.json"),
    "accuracy of text": field("development", {"accuracy": "good"}, "metrics.json"),
    "accuracy above 1": field("test", {"accuracy": 7.0}, "metrics.json"),
    **{f"{split} null": field(split, None, "metrics.json") for split in ("development", "test")},
    "accuracy null": field("development", {"accuracy": None}, "metrics.json"),
    "temperature 0": field("temperature", 0.0, "metrics.json"),
    "punkt without abbreviations": field("abbreviations", ..., "punkt.json"),
    "punkt with numbers": field("abbreviations", [1], "punkt.json"),
    "punkt with a triple": field("collocations", [["a", "b", "c"]], "punkt.json"),
    "punkt with orthography of text": field("orthography", {"it": "two"}, "punkt.json"),
    **{f"punkt with orthography {value}": orthography(value) for value in (-2, 1, 128, 300, 10**30)},
    "a word twice": content("vocab.txt", b"<unk>\ngood\ngood\n.\n"),
    "no <unk>": content("vocab.txt", b"good\nbad\n.\n!\n"),
    "weights of zeros": content("model.safetensors", bytes(4_096)),
    "weights with a header longer than the file": content("model.safetensors", b"\xff" * 8 + b"{}"),
    "weights with a broken header": content("model.safetensors", (9).to_bytes(8, "little") + b"not JSON!"),
    "no weights": weights(lambda tensors: tensors.clear()),
    "a weight missing": weights(lambda tensors: tensors.pop("read_out.bias")),
    "a weight too many": weights(lambda tensors: tensors.update(more=torch.zeros(2))),
    "integer weights": weights(lambda tensors: tensors.update({"read_out.bias": torch.zeros(2, dtype=torch.int64)})),
    "weights of NaN": weights(lambda tensors: tensors["read_out.bias"].fill_(float("nan"))),
    "infinite word vectors": weights(lambda tensors: tensors["embedding.weight"].fill_(float("inf"))),
    "weights that overflow": weights(lambda tensors: (tensors["words.context"].fill_(3e38), tensors["words.attention.bias"].fill_(9.0))),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_artifact_is_refused_with_one_line(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    CRAFTED[name](folder)
    sum_again(folder)
    with pytest.raises(UserError) as caught:
        artifact.load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700 + len(str(tmp_path))
    with pytest.raises(UserError):
        registry.promote(folder, tmp_path / "models")


def test_an_artifact_without_an_accuracy_is_promoted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, models = save(tmp_path / "model"), tmp_path / "models"
    field("development", {"num_reviews": 3}, "metrics.json")(folder)
    sum_again(folder)
    registry.promote(folder, models)
    promote.main(promote.Promote(models=str(models), list=True))
    assert "not measured" in capsys.readouterr().out


POINTERS: dict[str, Craft] = {
    **{f"previous {value!r}": field("previous", value, "best.json") for value in (7, [], {}, ...)},
    **{f"date {value!r}": field("date", value, "best.json") for value in (3, None, ...)},
    **{f"version {value!r}": field("version", value, "best.json") for value in (7, "", "../model", ...)},
    **{f"metrics {value!r}": field("metrics", value, "best.json") for value in (7, {"test": None}, {"development": {"accuracy": "good"}})},
    "deep": content("best.json", DEEP),
    "a list": content("best.json", b"[]"),
}


@pytest.mark.parametrize("name", POINTERS)
def test_a_crafted_pointer_is_refused_with_one_line(name: str, tmp_path: Path) -> None:
    folder, models = save(tmp_path / "model"), tmp_path / "models"
    registry.promote(folder, models)
    POINTERS[name](models)
    for read in (lambda: registry.promote(folder, models), lambda: registry.roll_back(models), lambda: registry.versions(models)):
        with pytest.raises(UserError, match=r"best\.json") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_at_least_forty_artifacts_are_crafted() -> None:
    assert len(CRAFTED) >= 40


def test_a_checksum_list_of_50_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    large("SHA256SUMS", 50 << 20)(folder)
    started = time.monotonic()
    with pytest.raises(UserError, match="SHA256SUMS has 52,428,800 bytes"):
        artifact.load(folder)
    assert time.monotonic() - started < 5


def test_a_network_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    broken = network()
    broken.read_out.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"read_out\.bias are not finite"):
        save(tmp_path / "model", network=broken)
    overflowing = network()
    overflowing.words.context.data.fill_(3e38)
    overflowing.words.attention.bias.data.fill_(9.0)
    with pytest.raises(UserError, match="golden text"):
        save(tmp_path / "model", network=overflowing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", [("no", "no"), ("", "yes"), ("no",)])
def test_labels_that_are_equal_or_empty_are_never_saved(labels: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"label|at least 2"):
        save(tmp_path / "model", labels=labels)
    assert list(tmp_path.iterdir()) == []
