import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from benchmarks.card import render as render_card
from han.config import ModelConfig, TextConfig
from han.model import artifact, metrics
from han.model.network import HAN
from han.model.ngrams import NgramTable
from han.model.ragged import collate
from han.text.encode import Encoder
from han.text.tokenise import learn_punkt
from han.text.vocabulary import Vocab
from han.types import Attention, Encoded, UserError

WORDS = ("<unk>", "good", "bad", "café", ".")
LABELS = ("negative", "positive")


def parts(**changes: Any) -> dict[str, Any]:
    """The arguments of `save`, with `changes`."""
    torch.manual_seed(3)
    config = ModelConfig(word_hidden=2, word_attention=3, sentence_hidden=2, sentence_attention=3)
    usual = {
        "encoder": Encoder(TextConfig(max_sentences=9), learn_punkt(["Dr. Who met Dr. No. It was good."]), Vocab(WORDS)),
        "network": HAN(config, num_words=len(WORDS), embedding_size=4, num_classes=2).eval(),
        "labels": LABELS,
        "metrics": {"temperature": 1.5, "development": metrics.measure([[0.9, 0.1], [0.2, 0.8]], [0, 1], label_names=LABELS)},
        "provenance": {"data": "two reviews", "seed": 3},
    }
    return usual | changes


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    artifact.save(tmp_path / "model", **parts())
    return tmp_path / "model"


def logits(network: HAN, encoder: Encoder) -> torch.Tensor:
    encoded = encoder.encode("Good. Bad café!")
    assert isinstance(encoded, Encoded)
    with torch.inference_mode():
        answer: Attention = network(collate([encoded]))
    return answer.logits


def flip(path: Path) -> None:
    """Change the lowest bit of the byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def sum_again(folder: Path) -> None:
    names = [path.name for path in sorted(folder.iterdir()) if path.name not in ("README.md", "SHA256SUMS")]
    sums = subprocess.run(["sha256sum", *names], cwd=folder, check=True, capture_output=True)
    (folder / "SHA256SUMS").write_bytes(sums.stdout)


def test_a_loaded_model_scores_like_the_saved_one(saved: Path) -> None:
    original, loaded = parts(), artifact.load(saved)
    torch.testing.assert_close(logits(loaded.network, loaded.encoder), logits(original["network"], original["encoder"]), rtol=0, atol=0)
    assert (loaded.labels, loaded.metrics, loaded.provenance) == (LABELS, original["metrics"], original["provenance"])
    assert loaded.encoder.fingerprint == original["encoder"].fingerprint
    assert not loaded.network.training


def test_a_loaded_model_can_be_trained_further(saved: Path) -> None:
    loaded = artifact.load(saved)
    encoded = loaded.encoder.encode("good")
    assert isinstance(encoded, Encoded)
    loaded.network.train()(collate([encoded])).logits.sum().backward()
    assert loaded.network.read_out.weight.grad is not None


def test_a_model_without_a_newer_setting_loads_and_keeps_its_fingerprint(saved: Path) -> None:
    before = artifact.load(saved)
    config = json.loads((saved / "config.json").read_text())
    del config["model"]["sentence_encoder"]
    (saved / "config.json").write_text(json.dumps(config))
    sum_again(saved)
    old = artifact.load(saved)
    assert old.network.config == before.network.config
    torch.testing.assert_close(logits(old.network, old.encoder), logits(before.network, before.encoder), rtol=0, atol=0)
    shipped = artifact.find("imdb")
    assert artifact.load(shipped).fingerprint in (shipped / "README.md").read_text()


def test_a_model_without_a_sentence_encoder_is_saved_and_loaded(tmp_path: Path) -> None:
    config = ModelConfig(word_hidden=2, word_attention=3, sentence_attention=3, sentence_encoder=False)
    network = HAN(config, num_words=len(WORDS), embedding_size=4, num_classes=2).eval()
    artifact.save(tmp_path / "model", **parts(network=network))
    loaded = artifact.load(tmp_path / "model")
    assert not loaded.network.config.sentence_encoder
    torch.testing.assert_close(logits(loaded.network, loaded.encoder), logits(network, loaded.encoder), rtol=0, atol=0)


def test_loading_draws_no_random_number(saved: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    artifact.load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_word_vectors_load_as_float32(tmp_path: Path) -> None:
    original = parts()
    original["network"].embedding.half()
    artifact.save(tmp_path / "half", **original)
    loaded = artifact.load(tmp_path / "half")
    assert loaded.network.embedding.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.network.embedding.weight, original["network"].embedding.weight.float(), rtol=0, atol=0)


def test_a_fingerprint_depends_only_on_what_changes_scores(tmp_path: Path) -> None:
    heavier = parts()
    heavier["network"].read_out.weight.data *= 1.001
    variants = {
        "usual": parts(),
        "measured again": parts(metrics={}, provenance={}),
        "other weights": heavier,
        "other labels": parts(labels=("bad", "good")),
        "other text settings": parts(encoder=Encoder(TextConfig(max_sentences=8), parts()["encoder"].tokeniser.punkt, Vocab(WORDS))),
        "other Punkt": parts(encoder=Encoder(TextConfig(max_sentences=9), None, Vocab(WORDS))),
    }
    found = {}
    for name, variant in variants.items():
        artifact.save(tmp_path / name, **variant)
        found[name] = artifact.load(tmp_path / name).fingerprint
    assert found["measured again"] == found["usual"]
    assert len(set(found.values())) == len(variants) - 1


def test_sha256sum_accepts_the_checksums(saved: Path) -> None:
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=saved, check=True, capture_output=True, text=True)
    assert checked.stdout.count(": OK") == 5


def test_nothing_is_pickled(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "punkt.json",
        "vocab.txt",
    ]


def test_an_existing_folder_is_refused_and_not_changed(saved: Path) -> None:
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        artifact.save(saved, **parts())
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


def test_a_failed_save_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        artifact.save(tmp_path / "model", **parts(metrics={"accuracy": object()}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "punkt.json", "model.safetensors", "metrics.json", "SHA256SUMS"])
def test_a_flipped_bit_is_named_in_one_line(saved: Path, name: str) -> None:
    flip(saved / name)
    with pytest.raises(UserError) as caught:
        artifact.load(saved)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or name == "SHA256SUMS"


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "punkt.json", "model.safetensors", "SHA256SUMS"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=name):
        artifact.load(saved)


def test_the_card_may_be_edited_or_removed(saved: Path) -> None:
    (saved / "README.md").unlink()
    assert artifact.load(saved).labels == LABELS


def test_a_vocabulary_of_another_model_is_refused_even_with_valid_checksums(saved: Path) -> None:
    Vocab([*WORDS[:-1], "other"]).write(saved / "vocab.txt")
    sum_again(saved)
    with pytest.raises(UserError, match="two models"):
        artifact.load(saved)


def test_a_vocabulary_of_the_wrong_size_is_refused_with_both_sizes(saved: Path, tmp_path: Path) -> None:
    larger = Encoder(TextConfig(), None, Vocab([*WORDS, "more"]))
    artifact.save(tmp_path / "larger", **parts(encoder=larger))
    with pytest.raises(UserError, match=r"6 words, but model\.safetensors has 5"):
        artifact.load(tmp_path / "larger")


def test_weights_of_the_wrong_shape_are_named(saved: Path) -> None:
    config = (saved / "config.json").read_text().replace('"sentence_hidden": 2', '"sentence_hidden": 3')
    (saved / "config.json").write_text(config)
    sum_again(saved)
    with pytest.raises(UserError, match=r"read_out\.weight|sentences\."):
        artifact.load(saved)


def test_a_newer_format_asks_for_an_upgrade(saved: Path) -> None:
    (saved / "config.json").write_text((saved / "config.json").read_text().replace('"format": 1', '"format": 3'))
    sum_again(saved)
    with pytest.raises(UserError, match="upgrade"):
        artifact.load(saved)


def test_a_model_is_found_by_its_own_folder_and_by_its_run(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(saved, tmp_path / "run" / "artifact")
    assert artifact.find(str(saved)) == saved
    assert artifact.find(str(tmp_path / "run")) == tmp_path / "run" / "artifact"


def test_a_folder_without_a_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        artifact.find(str(tmp_path))
    with pytest.raises(UserError, match="no model at"):
        artifact.find(str(tmp_path / "nowhere"))


def test_the_card_has_the_development_figures_and_states_that_test_figures_are_missing(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert "| development | 2 | 100.00% " in card
    assert "The test split was not opened." in card
    assert "- data: two reviews" in card


def test_the_card_shows_test_figures_after_an_evaluation(tmp_path: Path) -> None:
    original = parts()
    artifact.save(tmp_path / "model", **parts(metrics={**original["metrics"], "test": original["metrics"]["development"]}))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| test | 2 | 100.00% " in card
    assert "not opened" not in card


def test_the_card_of_the_shipped_model_has_its_test_figures_and_weaknesses() -> None:
    shipped = artifact.find("imdb")
    card = (shipped / "README.md").read_text(encoding="utf-8")
    test = json.loads((shipped.parent / "imdb.test.json").read_text(encoding="utf-8"))
    assert f"| test | 25,000 | {test['accuracy']:.2%} (" in card
    assert "not opened" not in card
    for slices in (test["accuracy_by_rating"], test["accuracy_by_length"]):
        assert [each for each in slices if f"| {each['num_reviews']:,} | {each['accuracy']:.2%} (" not in card] == []
    assert '"student_epochs": 3' in card
    assert card == render_card(), "han/pretrained/imdb/README.md is outdated: run python -m benchmarks.card"


def with_ngrams() -> dict[str, Any]:
    given = parts()
    hashes = np.array([3, 70_000, 4_000_000_000], np.uint32)
    table = NgramTable.of(hashes, np.array([[0.5], [-1.25], [2.0]], np.float32))
    network = HAN(given["network"].config, num_words=len(WORDS), embedding_size=4, num_classes=2, ngrams=table)
    return given | {"network": network.eval()}


def test_an_artifact_with_ngrams_loads_as_it_was(tmp_path: Path) -> None:
    given = with_ngrams()
    artifact.save(tmp_path / "model", **{**given, "metrics": {**given["metrics"], "uncertain_below": 0.8}})
    loaded = artifact.load(tmp_path / "model")
    assert loaded.uncertain_below == 0.8
    assert loaded.network.ngrams is not None
    np.testing.assert_array_equal(loaded.network.ngrams.hashes, given["network"].ngrams.hashes)
    np.testing.assert_array_equal(loaded.network.ngrams.weights, given["network"].ngrams.weights)
    torch.testing.assert_close(logits(loaded.network, loaded.encoder), logits(given["network"], given["encoder"]))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["format"] == artifact.FORMAT


def test_an_artifact_without_ngrams_keeps_the_format_that_earlier_versions_read(saved: Path) -> None:
    assert json.loads((saved / "config.json").read_text())["format"] == 1
    assert artifact.load(saved).uncertain_below is None


def test_a_table_whose_hashes_do_not_ascend_is_refused(tmp_path: Path) -> None:
    artifact.save(tmp_path / "model", **with_ngrams())
    arrays = load_arrays(tmp_path / "model" / "ngrams.safetensors")
    save_arrays({**arrays, "hashes": arrays["hashes"][::-1].copy()}, tmp_path / "model" / "ngrams.safetensors")
    sum_again(tmp_path / "model")
    with pytest.raises(UserError, match="are not in ascending order"):
        artifact.load(tmp_path / "model")
