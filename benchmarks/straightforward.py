"""A straightforward baseline: NLTK and `nn.GRU` over packed sentences in an actor pool of Ray Data, then `write_parquet`.

`python -m benchmarks.straightforward --input FILE --out FOLDER` uses the weights of the shipped model, so its predictions are the same.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from nltk.tokenize import WordPunctTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
from ray.data import ActorPoolStrategy
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from han.model import artifact
from han.text.raw import blank_tags

BATCH = 64


class Level(nn.Module):
    """A packed bidirectional GRU and its attention."""

    def __init__(self, gru: nn.GRU, projection: nn.Linear, context: Tensor) -> None:
        super().__init__()
        self.gru, self.projection, self.context = gru, projection, context

    def forward(self, packed: PackedSequence) -> tuple[Tensor, list[Tensor]]:
        """One vector and the attention weights for each sequence."""
        states, lengths = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        scores = torch.tanh(self.projection(states)) @ self.context
        mask = torch.arange(states.shape[1])[None] < lengths[:, None]
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=1)
        vectors = (weights[:, :, None] * states).sum(dim=1)
        return vectors, [row[:length] for row, length in zip(weights, lengths.tolist(), strict=True)]


class Score:
    """An actor that loads the model once and scores batches of rows."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        model = artifact.load(artifact.find("imdb"))
        network, self.labels = model.network, model.labels
        self.embedding, self.read_out = network.embedding, network.read_out
        self.words, self.sentences = _level(network.words), _level(network.sentences)
        self.ids = {word: row for row, word in enumerate(model.encoder.vocab.words)}
        parameters, punkt = PunktParameters(), model.encoder.tokeniser.punkt or {}
        parameters.abbrev_types = set(punkt["abbreviations"])
        parameters.collocations = {(first, second) for first, second in punkt["collocations"]}
        parameters.sent_starters = set(punkt["sentence_starters"])
        parameters.ortho_context.update(punkt["orthography"])
        self.sentence_tokeniser, self.word_tokeniser = PunktSentenceTokenizer(parameters), WordPunctTokenizer()

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts = batch["text"].to_pylist()
        with torch.inference_mode():
            rows = [self._score(texts[first : first + BATCH]) for first in range(0, len(texts), BATCH)]
        scores = [row for some in rows for row in some]
        return batch.append_column("score", pa.array(scores))

    def _score(self, texts: list[str]) -> list[dict[str, Any]]:
        reviews = [self._tokenise(text) for text in texts]
        sentences = [torch.tensor([self.ids.get(word.lower(), 0) for word, _, _ in words]) for review in reviews for words in review]
        embedded = [self.embedding(sentence) for sentence in sentences]
        vectors, word_weights = self.words(pack_sequence(embedded, enforce_sorted=False))
        split = vectors.split([len(review) for review in reviews])
        documents, sentence_weights = self.sentences(pack_sequence(list(split), enforce_sorted=False))
        probabilities = self.read_out(documents).softmax(dim=1).numpy()
        scores, index = [], 0
        for review, weights, row in zip(reviews, sentence_weights, probabilities, strict=True):
            parts = []
            for words, weight in zip(review, weights.tolist(), strict=True):
                shares = word_weights[index].tolist()
                index += 1
                listed = [{"start": start, "end": end, "attention": share} for (_, start, end), share in zip(words, shares, strict=True)]
                parts.append({"start": words[0][1], "end": words[-1][2], "attention": weight, "words": listed})
            scores.append({"label": self.labels[int(np.argmax(row))], "probability": float(row.max()), "sentences": parts})
        return scores

    def _tokenise(self, text: str) -> list[list[tuple[str, int, int]]]:
        sentences = []
        text = blank_tags(text)
        for first, last in self.sentence_tokeniser.span_tokenize(text):
            sentence = text[first:last]
            sentences.append([(sentence[a:b], first + a, first + b) for a, b in self.word_tokeniser.span_tokenize(sentence)])
        return sentences


def _level(level: Any) -> Level:
    return Level(level.gru.gru, level.attention, level.context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="Parquet with a column text")
    parser.add_argument("--out", required=True, help="folder of the scores")
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_parquet(arguments.input).repartition(target_num_rows_per_block=512)
    dataset.map_batches(Score, batch_size=512, batch_format="pyarrow", compute=ActorPoolStrategy(size=2), num_cpus=1).write_parquet(
        arguments.out
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
