"""Diverging trainings, and atomically written state files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from han.config import ModelConfig, TrainConfig
from han.model.network import HAN
from han.storage import replace_file, write_json
from han.train import pretrain
from han.train.learn import LabelledBatch, Learner, NotFinite
from han.types import RaggedBatch, UserError

MODEL = ModelConfig(word_hidden=2, word_attention=3, sentence_hidden=2, sentence_attention=3, embedding_dropout=0, dropout=0)


def learner(**train: object) -> Learner:
    torch.manual_seed(0)
    network = HAN(MODEL, num_words=9, embedding_size=4, num_classes=2)
    return Learner(network, TrainConfig(**train), num_reviews=40, device=torch.device("cpu"))  # type: ignore[arg-type]


def batches(num_steps: int) -> list[LabelledBatch]:
    generator = np.random.default_rng(1)
    reviews = [
        RaggedBatch(
            token_ids=torch.from_numpy(generator.integers(0, 9, 8)),
            sentence_lengths=torch.full((4,), 2),
            review_lengths=torch.full((2,), 2),
        )
        for _ in range(num_steps)
    ]
    return [LabelledBatch(reviews=batch, labels=torch.tensor([0, 1])) for batch in reviews]


def test_training_stops_at_the_first_step_whose_loss_is_not_finite() -> None:
    student, steps = learner(), []
    student.network.read_out.bias.data[0] = float("inf")
    before = student.network.embedding.weight.detach().clone()
    with pytest.raises(NotFinite, match="training loss is not finite at learning rate"):
        student.train_epoch(batches(20), seed=1, report=steps.append)
    assert steps == []
    assert torch.equal(student.network.embedding.weight, before)


def test_training_stops_at_the_first_step_whose_gradient_is_not_finite() -> None:
    student = learner()
    student.network.read_out.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NotFinite, match="gradient is not finite"):
        student.train_epoch(batches(20), seed=1)
    assert all(torch.isfinite(parameter).all() for parameter in student.network.parameters())


class Folder:
    """An encoded folder of 40 reviews of two sentences."""

    def __init__(self, scale: float) -> None:
        self.vectors = np.random.default_rng(2).standard_normal((9, 4), dtype=np.float32) * np.float32(scale)

    def num_reviews(self, split: str) -> int:
        return 40

    def windows(self, *_: object) -> list[pa.Table]:
        ids = np.random.default_rng(3).integers(0, 9, (40, 8)).tolist()
        kinds = [("token_ids", pa.list_(pa.int32())), ("sentence_lengths", pa.list_(pa.int32())), ("label", pa.int32())]
        return [pa.table([ids, [[4, 4]] * 40, [0] * 40], schema=pa.schema(kinds))]


@pytest.mark.parametrize(("scale", "diverges"), [(1.0, False), (float("inf"), True), (float("nan"), True)])
def test_pretraining_stops_at_the_first_loss_that_is_not_finite(scale: float, diverges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, reported = Folder(scale), []
    monkeypatch.setattr(pretrain, "read_windows", lambda folder, *more: folder.windows(*more))

    def fit() -> dict[str, torch.Tensor]:
        return pretrain.pretrain(folder, MODEL, TrainConfig(batch_tokens=64), passes=1, report=lambda *step: reported.append(step))  # type: ignore[arg-type]

    if not diverges:
        assert all(torch.isfinite(weight).all() for weight in fit().values())
        assert reported
        return
    with pytest.raises(UserError, match="pretraining of the word GRU diverged: the loss is not finite after 0 of 40 reviews") as caught:
        fit()
    assert "\n" not in str(caught.value)
    assert reported == []


def test_a_state_file_is_old_or_new_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "config.json", {"epochs": 1})

    def full(temporary: Path) -> None:
        temporary.write_text('{"epo')
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        replace_file(tmp_path / "config.json", full)
    assert json.loads((tmp_path / "config.json").read_text()) == {"epochs": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    order = []
    flush, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("flush"), flush(descriptor)))
    monkeypatch.setattr(os, "rename", lambda *names: (order.append("rename"), rename(*names)))
    write_json(tmp_path / "config.json", {"epochs": 2})
    assert order == ["flush", "rename", "flush"]
