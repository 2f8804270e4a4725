"""Shared by many tests: a tiny network with random weights, and its artifact."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from han.config import ModelConfig, TextConfig
from han.model import artifact
from han.model.network import HAN
from han.text.encode import Encoder
from han.text.vocabulary import Vocab

settings.register_profile("han", deadline=None)  # a busy machine is no failure
settings.load_profile("han")

WORDS = ("<unk>", "the", "film", "was", "good", "bad", "dull", "not", "i", "loved", "it", ".", "!", ",")


def tiny_network(num_words: int = len(WORDS), *, num_classes: int = 2, seed: int = 1) -> HAN:
    """A network with random weights large enough for predictions to differ."""
    torch.manual_seed(seed)
    config = ModelConfig(word_hidden=3, word_attention=4, sentence_hidden=5, sentence_attention=6)
    network = HAN(config, num_words=num_words, embedding_size=7, num_classes=num_classes)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    return network.eval()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an artifact with the labels negative and positive. Read only."""
    folder = tmp_path_factory.mktemp("tiny") / "artifact"
    artifact.save(
        folder,
        encoder=Encoder(TextConfig(max_characters=5_000), None, Vocab(WORDS)),
        network=tiny_network(),
        labels=("negative", "positive"),
        metrics={"temperature": 1.0},
        provenance={"data": "random weights"},
    )
    return folder
