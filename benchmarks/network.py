"""Time the network beside three baselines, forward and training, on one core: `python -m benchmarks.network`.

The baselines are written for this benchmark: a textbook HAN over padded reviews sorted by length, a HAN with `nn.GRU` over packed
sentences, and ONNX Runtime's GRU with `sequence_lens` (if the packages onnx and onnxruntime are installed). The candidates alternate, and
the medians of their processor times are printed, so that other processes disturb the ratios less. The floor is the time of the arithmetic
of the folded forward pass at the machine's own GEMM rate.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

from han.config import ModelConfig, TrainConfig
from han.model.network import HAN, FoldedHAN
from han.model.ragged import flat_batch
from han.train.learn import LabelledBatch, Learner
from han.types import RaggedBatch

NUM_WORDS, EMBEDDING, CLASSES, SIZE = 40_000, 100, 2, 64
OURS, PADDED, PACKED, ONNX = "this project", "textbook padded HAN", "packed nn.GRU", "ONNX Runtime's GRU"
MODEL = ModelConfig()
Reviews = list[list[NDArray[np.int64]]]  # token ids of every sentence of every review


def reviews(num_reviews: int, random: np.random.Generator, lengths: list[list[int]] | None = None, sentences: int | None = None) -> Reviews:
    """Reviews with IMDB's lengths: of `lengths`, else lognormal (median 17 tokens a sentence, 11 sentences; means 21.6 and 13).

    sentences: of every review; None draws them.
    """
    generated = []
    for _ in range(num_reviews):
        if lengths is not None and sentences is None:
            own = lengths[random.integers(len(lengths))]
        else:
            count = sentences or max(1, int(random.lognormal(2.36, 0.62)))
            own = np.clip(random.lognormal(2.84, 0.68, count), 1, 150).astype(int).tolist()
        generated.append([np.minimum(random.zipf(1.25, length), NUM_WORDS - 1) for length in own])
    return generated


def read_lengths(path: Path, num_reviews: int = 2_000) -> list[list[int]]:
    """Number of tokens in every sentence of the first reviews of an IMDB Parquet file, tokenised by NLTK."""
    from nltk.tokenize import PunktSentenceTokenizer, wordpunct_tokenize

    punkt = PunktSentenceTokenizer()
    texts = pq.read_table(path, columns=["text"]).slice(0, num_reviews)["text"].to_pylist()
    return [[len(wordpunct_tokenize(sentence)) for sentence in punkt.tokenize(text)] for text in texts]


def ragged(batch: Reviews) -> RaggedBatch:
    sentences = [sentence for review in batch for sentence in review]
    lengths = np.array([len(sentence) for sentence in sentences])
    return flat_batch(np.concatenate(sentences), lengths, np.array([len(review) for review in batch]))


class PackedHAN(nn.Module):
    """A HAN over packed sentences, like most public implementations."""

    def __init__(self, num_words: int = NUM_WORDS, embedding: int = EMBEDDING) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, embedding)
        self.words = nn.GRU(embedding, MODEL.word_hidden, bidirectional=True, batch_first=True)
        self.sentences = nn.GRU(2 * MODEL.word_hidden, MODEL.sentence_hidden, bidirectional=True, batch_first=True)
        sizes = ((2 * MODEL.word_hidden, MODEL.word_attention), (2 * MODEL.sentence_hidden, MODEL.sentence_attention))
        self.attentions = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.contexts = nn.ParameterList(nn.Parameter(torch.randn(size) * 0.1) for _, size in sizes)
        self.read_out = nn.Linear(2 * MODEL.sentence_hidden, CLASSES)

    def forward(self, batch: Reviews) -> Tensor:
        ids = [sentence for review in batch for sentence in review]
        sentences = self.embedding(torch.from_numpy(np.concatenate(ids))).split([len(sentence) for sentence in ids])
        states = self.words(pack_sequence(list(sentences), enforce_sorted=False))[0]
        vectors = self.attend(*pad_packed_sequence(states, batch_first=True), level=0)
        states = self.sentences(pack_sequence(vectors.split([len(review) for review in batch]), enforce_sorted=False))[0]
        return self.read_out(self.attend(*pad_packed_sequence(states, batch_first=True), level=1))  # type: ignore[no-any-return]

    def attend(self, states: Tensor, lengths: Tensor, *, level: int) -> Tensor:
        scores = torch.tanh(self.attentions[level](states)) @ self.contexts[level]
        outside = torch.arange(states.shape[1])[None] >= lengths[:, None]
        shares = scores.masked_fill(outside, -torch.inf).softmax(1).nan_to_num()
        return (shares[:, None] @ states)[:, 0]


class PaddedHAN(PackedHAN):
    """A textbook HAN on [reviews, sentences, words], padded in sentences and words. Reviews are sorted by length into groups of eight."""

    def forward(self, batch: Reviews) -> Tensor:
        batch = sorted(batch, key=lambda review: sum(map(len, review)))
        return torch.cat([self.forward_group(batch[first : first + 8]) for first in range(0, len(batch), 8)])

    def forward_group(self, batch: Reviews) -> Tensor:
        counts = torch.tensor([len(review) for review in batch])
        longest = max(len(sentence) for review in batch for sentence in review)
        ids, lengths = torch.zeros(len(batch), int(counts.max()), longest, dtype=torch.int64), torch.zeros(len(batch), int(counts.max()))
        for row, review in enumerate(batch):
            padded = pad_sequence([torch.from_numpy(sentence) for sentence in review], batch_first=True)
            ids[row, : len(review), : padded.shape[1]] = padded
            lengths[row, : len(review)] = torch.tensor([len(sentence) for sentence in review])
        states = self.words(self.embedding(ids.flatten(0, 1)))[0]
        vectors = self.attend(states, lengths.flatten(), level=0).unflatten(0, ids.shape[:2])
        return self.read_out(self.attend(self.sentences(vectors)[0], counts, level=1))  # type: ignore[no-any-return]


def onnx_words(network: PackedHAN) -> Callable[[Reviews], object] | None:
    """Only the GRU of the word level in ONNX Runtime, on sentences sorted into groups of 64. Omitting attention favours this baseline."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    weights: dict[str, NDArray[np.float32]] = {}
    order = [1, 0, 2]  # ONNX orders the gates z, r, n
    for name, kinds in (("W", ["weight_ih"]), ("R", ["weight_hh"]), ("B", ["bias_ih", "bias_hh"])):
        directions = []
        for suffix in ("_l0", "_l0_reverse"):
            gates = [np.stack(np.split(getattr(network.words, kind + suffix).detach().numpy(), 3))[order] for kind in kinds]
            directions.append(np.concatenate([gate.reshape(-1, *gate.shape[2:]) for gate in gates]))
        weights[name] = np.stack(directions)
    weights["table"] = network.embedding.weight.detach().numpy()
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node(
            "GRU", ["x", "W", "R", "B", "lens"], ["y"], hidden_size=MODEL.word_hidden, direction="bidirectional", linear_before_reset=1
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["t", "s"]),
        helper.make_tensor_value_info("lens", TensorProto.INT32, ["s"]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", 2, "s", MODEL.word_hidden])
    graph = helper.make_graph(nodes, "words", inputs, [output], [numpy_helper.from_array(value, key) for key, value in weights.items()])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(batch: Reviews) -> None:
        sentences = sorted((sentence for review in batch for sentence in review), key=len)
        for first in range(0, len(sentences), 64):
            part = sentences[first : first + 64]
            ids = pad_sequence([torch.from_numpy(sentence) for sentence in part]).numpy()
            session.run(None, {"ids": ids, "lens": np.array([len(sentence) for sentence in part], np.int32)})

    return run


def baseline_step(network: nn.Module, batch: Reviews) -> Callable[[], None]:
    """A training step of a baseline: forward, backward, Adam."""
    optimiser = torch.optim.Adam(network.parameters())
    labels = torch.zeros(len(batch), dtype=torch.int64)

    def step() -> None:
        optimiser.zero_grad()
        functional.cross_entropy(network(batch), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def project_learner(num_reviews: int) -> Learner:
    torch.manual_seed(0)
    network = HAN(MODEL, num_words=NUM_WORDS, embedding_size=EMBEDDING, num_classes=CLASSES)
    return Learner(network, TrainConfig(), num_reviews=num_reviews, device=torch.device("cpu"))


def project_step(learner: Learner, batch: Reviews) -> Callable[[], object]:
    labelled = LabelledBatch(reviews=ragged(batch), labels=torch.zeros(len(batch), dtype=torch.int64))
    return lambda: learner.train_epoch([labelled], seed=1)


def medians(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each candidate after one warm-up round. The candidates alternate."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(repeats + 1):
        for name, run in candidates.items():
            started = time.process_time()
            run()
            if number:
                times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def gemm_rate(repeats: int = 50) -> float:
    """Median FLOP/s of one core for [4096, 128] times [128, 320] in float32."""
    left, right = torch.randn(4096, 128), torch.randn(128, 320)
    return 2 * 4096 * 128 * 320 / medians({"gemm": lambda: left @ right}, repeats)["gemm"]


def floor_flop(batch: RaggedBatch) -> float:
    """FLOP of one forward pass with the folded projection of words, without activations."""
    word, sentence = MODEL.word_hidden, MODEL.sentence_hidden
    words = 12 * word**2 + 4 * word * MODEL.word_attention
    sentences = 24 * word * sentence + 12 * sentence**2 + 4 * sentence * MODEL.sentence_attention
    return len(batch.token_ids) * words + len(batch.sentence_lengths) * sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Reviews/s of one core, by candidate."""

    title: str
    reviews_per_s: dict[str, float]

    def times(self, other: str) -> float:
        """How many times as fast as another candidate this project is."""
        return self.reviews_per_s[OURS] / self.reviews_per_s[other]

    def show(self) -> None:
        print(self.title)
        for name, rate in self.reviews_per_s.items():
            against = "" if name == OURS else f"   this project is {self.times(name):.1f} times as fast"
            print(f"  {name:<22} {rate:>8,.0f} reviews/s{against}", flush=True)


def forward(lengths: list[list[int]] | None, repeats: int) -> tuple[Comparison, float]:
    """The forward pass of 64 reviews, and the share of the floor that it reaches."""
    batch = reviews(SIZE, np.random.default_rng(1), lengths)
    flat, packed, padded = ragged(batch), PackedHAN().eval(), PaddedHAN().eval()
    folded = FoldedHAN(project_learner(10**9).network)

    def without_gradients(network: Callable[[Reviews], object]) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return network(batch)

        return run

    candidates: dict[str, Callable[[], object]] = {
        OURS: lambda: folded(flat),
        PADDED: without_gradients(padded),
        PACKED: without_gradients(packed),
    }
    if (onnx := onnx_words(packed)) is not None:
        candidates[ONNX] = lambda: onnx(batch)
    rate = gemm_rate()
    seconds = medians(candidates, repeats)
    print(f"{len(flat.token_ids) / SIZE:.0f} tokens and {len(flat.sentence_lengths) / SIZE:.1f} sentences a review")
    print(f"GEMM {rate / 1e9:.0f} GFLOP/s, {floor_flop(flat) / SIZE / 1e6:.1f} MFLOP a review")
    comparison = Comparison(title="forward, one core", reviews_per_s={name: SIZE / value for name, value in seconds.items()})
    return comparison, floor_flop(flat) / rate / seconds[OURS]


def training(lengths: list[list[int]] | None, repeats: int) -> Comparison:
    """Steps of 64 random reviews."""
    batch = reviews(SIZE, np.random.default_rng(1), lengths)
    candidates = {
        OURS: project_step(project_learner(10**9), batch),
        PADDED: baseline_step(PaddedHAN(), batch),
        PACKED: baseline_step(PackedHAN(), batch),
    }
    seconds = medians(candidates, repeats)
    return Comparison(title="training, 64 reviews a step, one core", reviews_per_s={name: SIZE / value for name, value in seconds.items()})


def costs(lengths: list[list[int]] | None) -> dict[str, tuple[float, float]]:
    """Microseconds a token, forward and training, by the size of the batch and by the sentences of a review."""
    learner, random = project_learner(10**9), np.random.default_rng(2)
    folded = FoldedHAN(learner.network)
    sizes: list[tuple[str, int, int | None]] = [(f"{size} reviews", size, None) for size in (16, 32, 64, 128, 256, 512, 1024)]
    sizes += [(f"{count} sentences", max(1, 1_000 // count), count) for count in (5, 50, 500)]
    costs_us = {}
    for name, size, sentences in sizes:
        batch = reviews(size, random, lengths, sentences)
        flat = ragged(batch)
        times = medians({"forward": functools.partial(folded, flat), "training": project_step(learner, batch)}, 3)
        costs_us[name] = (1e6 * times["forward"] / len(flat.token_ids), 1e6 * times["training"] / len(flat.token_ids))
    return costs_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, help="IMDB Parquet file with a column text; its review lengths are used")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each comparison")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths = read_lengths(arguments.data) if arguments.data else None
    comparison, share = forward(lengths, arguments.repeats)
    comparison.show()
    print(f"  {share:.0%} of the floor")
    training(lengths, arguments.repeats).show()
    print("cost per token")
    for name, (without, with_gradients) in costs(lengths).items():
        print(f"  {name:<16}  forward {without:6.2f} us   training {with_gradients:6.2f} us")


if __name__ == "__main__":
    main()
