from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import distributed

from han.config import ModelConfig, TrainConfig
from han.model.network import HAN
from han.model.ragged import token_batches
from han.train import learn
from han.train.learn import LabelledBatch, Learner, RowAdam, batches, read_soft_labels
from han.types import RaggedBatch, UserError

NUM_WORDS, CLASSES = 40, 2
STILL = ModelConfig(word_hidden=4, word_attention=5, sentence_hidden=3, sentence_attention=4, embedding_dropout=0, dropout=0)
CPU = torch.device("cpu")


def learner(config: ModelConfig = STILL, *, num_reviews: int = 60, **train: object) -> Learner:
    torch.manual_seed(0)
    network = HAN(config, num_words=NUM_WORDS, embedding_size=6, num_classes=CLASSES)
    return Learner(network, TrainConfig(learning_rate=0.02, **train), num_reviews=num_reviews, device=CPU)  # type: ignore[arg-type]


def reviews(num_reviews: int, seed: int = 0) -> list[tuple[list[list[int]], int]]:
    """Reviews of very unequal lengths. The label is whether word 1 occurs."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(num_reviews):
        lengths = generator.integers(1, 9, size=generator.integers(1, 12 if index % 10 else 40))
        sentences = [generator.integers(2, NUM_WORDS, size=length).tolist() for length in lengths]
        label = index % 2
        if label:
            sentences[0][0] = 1
        made.append((sentences, label))
    return made


def batched(made: list[tuple[list[list[int]], int]], max_tokens: int) -> list[LabelledBatch]:
    tokens = np.array([sum(map(len, sentences)) for sentences, _ in made])
    return [batch([made[row] for row in rows]) for rows in token_batches(tokens, max_tokens=max_tokens)]


def batch(made: list[tuple[list[list[int]], int]]) -> LabelledBatch:
    return LabelledBatch(
        reviews=RaggedBatch(
            token_ids=torch.tensor([token for sentences, _ in made for sentence in sentences for token in sentence]),
            sentence_lengths=torch.tensor([len(sentence) for sentences, _ in made for sentence in sentences]),
            review_lengths=torch.tensor([len(sentences) for sentences, _ in made]),
        ),
        labels=torch.tensor([label for _, label in made]),
    )


def test_a_network_learns() -> None:
    made = reviews(200)
    student = learner(num_reviews=200, epochs=8)
    losses = [student.train_epoch(batched(made, 100), seed=epoch).loss for epoch in range(8)]
    logits, labels = student.evaluate(batched(made, 400))
    assert losses[-1] < losses[0]
    assert (logits.argmax(1) == labels).mean() > 0.9


def test_an_epoch_sees_every_review_once() -> None:
    made = reviews(101)
    seen = learner(num_reviews=101).train_epoch(batched(made, 60), seed=1)
    assert seen.num_reviews == 101
    assert seen.num_tokens == sum(len(sentence) for sentences, _ in made for sentence in sentences)


def test_a_learner_resumes_from_its_state_with_the_same_result() -> None:
    config = ModelConfig(word_hidden=4, word_attention=5, sentence_hidden=3, sentence_attention=4)
    made = batched(reviews(60), 100)
    straight = learner(config)
    straight.train_epoch(made, seed=1)
    state = straight.state()
    straight.train_epoch(made, seed=2)
    resumed = learner(config)
    resumed.load_state(state)
    resumed.train_epoch(made, seed=2)
    for name, tensor in straight.state().items():
        torch.testing.assert_close(resumed.state()[name], tensor, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_step_of_the_embedding_is_that_of_sparse_adam(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    tables = [torch.nn.Parameter(torch.ones(30, 7, dtype=dtype)) for _ in range(2)]
    optimisers = [kind([table], lr=0.01) for kind, table in zip((RowAdam, torch.optim.SparseAdam), tables, strict=True)]
    for _ in range(20):
        rows = torch.randperm(30, generator=generator)[:11]
        gradient = torch.sparse_coo_tensor(rows[None], torch.randn(11, 7, generator=generator, dtype=dtype), (30, 7), check_invariants=True)
        for table, optimiser in zip(tables, optimisers, strict=True):
            table.grad = gradient.clone()
            optimiser.step()
    state, expected = (next(iter(optimiser.state.values())) for optimiser in optimisers)
    assert state["step"] == expected["step"] == 20
    torch.testing.assert_close(tables[0], tables[1])
    torch.testing.assert_close([state["exp_avg"], state["exp_avg_sq"]], [expected["exp_avg"], expected["exp_avg_sq"]])


def test_waiting_time_for_batches_is_counted() -> None:
    def slow() -> Iterator[LabelledBatch]:
        for each in batched(reviews(20), 60):
            started = time.perf_counter()
            while time.perf_counter() - started < 0.01:
                pass
            yield each

    num_batches = len(batched(reviews(20), 60))
    assert learner(num_reviews=20).train_epoch(slow(), seed=1).waiting_s >= 0.01 * num_batches


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    student = learner(num_reviews=100, epochs=2)
    rates: list[float] = []
    for epoch in range(2):
        student.train_epoch([batch(reviews(2))] * 50, seed=epoch, report=lambda seen: rates.append(seen.learning_rate))
    assert max(rates) == pytest.approx(0.02, rel=0.1)
    assert rates.index(max(rates)) < 20
    assert rates[-1] < 1e-4


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def train_as_one_of(rank: int, num_workers: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_workers)
    student = learner(num_reviews=101)
    # Rank 1 gets 20 reviews and rank 0 the other 81: very unequal numbers of steps.
    mine = reviews(101)[:81] if rank == 0 else reviews(101)[81:]
    seen = student.train_epoch(batched(mine, 60), seed=rank)
    logits, _ = student.evaluate(batched(mine, 60))
    state = student.state()
    np.savez(out / f"{rank}.npz", seen=seen.num_reviews, logits=logits, **{name: tensor.numpy() for name, tensor in state.items()})
    distributed.destroy_process_group()


def add_as_one_of(rank: int, num_workers: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_workers)
    np.savez(out / f"{rank}.npz", **summed_gradients(reviews(30)[rank::num_workers]))
    distributed.destroy_process_group()


def summed_gradients(made: list[tuple[list[list[int]], int]]) -> dict[str, np.ndarray]:
    student = learner()
    sums = student._add_gradients(batch(made))
    found = {
        name: parameter.grad.to_dense().numpy() for name, parameter in student.network.named_parameters() if parameter.grad is not None
    }
    return {**found, "sums": sums.numpy()}


def run_workers(target: object, out: Path) -> Iterator[dict[str, np.ndarray]]:
    context = multiprocessing.get_context("spawn")
    port = free_port()
    workers = [context.Process(target=target, args=(rank, 2, port, out)) for rank in range(2)]  # type: ignore[arg-type]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    for rank in range(2):
        with np.load(out / f"{rank}.npz") as arrays:
            yield dict(arrays)


def test_two_workers_sum_to_the_gradients_of_one_worker(tmp_path: Path) -> None:
    alone = summed_gradients(reviews(30))
    for together in run_workers(add_as_one_of, tmp_path):
        assert together.keys() == alone.keys()
        for name, gradient in alone.items():
            np.testing.assert_allclose(together[name], gradient, atol=1e-5, err_msg=name)


def test_the_gradients_of_the_pieces_of_a_batch_are_those_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = summed_gradients(reviews(30))
    monkeypatch.setattr(learn, "PIECE_TOKENS", 60)
    pieces = summed_gradients(reviews(30))
    assert pieces.keys() == whole.keys()
    for name, gradient in whole.items():
        np.testing.assert_allclose(pieces[name], gradient, atol=1e-5, err_msg=name)


def test_workers_with_unequal_shards_see_every_review_and_end_with_equal_networks(tmp_path: Path) -> None:
    first, second = run_workers(train_as_one_of, tmp_path)
    assert first["seen"] == second["seen"] == 101
    assert len(first["logits"]) == 101
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, second[name], err_msg=name)


@pytest.mark.parametrize("numbers", [(141, 142), (16, 17), (3, 40)])
def test_workers_take_batches_of_like_length_together(numbers: tuple[int, int]) -> None:
    first, second = (
        learn._shuffled(number, np.random.default_rng([7, rank]), np.random.default_rng(7)) for rank, number in enumerate(numbers)
    )
    assert (sorted(first), sorted(second)) == tuple(list(range(number)) for number in numbers)
    together = min(numbers) // learn.LENGTHS * learn.LENGTHS
    lengths = [order[:together] * learn.LENGTHS // len(order) for order in (first, second)]
    np.testing.assert_array_equal(*lengths)


def encoded(ids: list[list[int]], labels: list[int | None]) -> pa.Table:
    columns = {
        "review_id": [f"r{row}" for row in range(len(ids))],
        "label": pa.array(labels, pa.int32()),
        "token_ids": pa.array(ids, pa.list_(pa.int32())),
        "sentence_lengths": pa.array([[len(words)] for words in ids], pa.list_(pa.int32())),
    }
    return pa.table(columns)


def test_labelled_reviews_keep_their_label_beside_soft_labels(tmp_path: Path) -> None:
    probabilities = [{"bad": 0.25, "good": 0.75}, {"bad": 0.5, "good": 0.5}]
    pq.write_table(pa.table({"review_id": ["r1", "r9"], "probabilities": probabilities}), tmp_path / "soft.parquet")
    soft = read_soft_labels(tmp_path / "soft.parquet", ("bad", "good"))
    (found,) = batches([encoded([[1, 2], [3]], [0, None])], 100, None, soft=soft)
    assert found.labels[found.reviews.token_ids[found.reviews.sentence_lengths.cumsum(0) - 1] == 3].tolist() == [[0.25, 0.75]]
    assert [1.0, 0.0] in found.labels.tolist()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"review_id": ["r1"], "probabilities": [{"bad": 0.5, "good": 0.6}]}), "do not sum to 1"),
        (pa.table({"review_id": ["r1"], "probabilities": [{"bad": 1.0}]}), "has no soft labels"),
        (pa.table({"review_id": ["r1"]}), "has no soft labels"),
    ],
)
def test_soft_labels_that_are_not_probabilities_of_the_labels_are_refused(table: pa.Table, message: str, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "soft.parquet")
    with pytest.raises(UserError, match=message):
        read_soft_labels(tmp_path / "soft.parquet", ("bad", "good"))


def test_the_loss_of_one_hot_soft_labels_is_that_of_labels() -> None:
    made = batch(reviews(10))
    soft = LabelledBatch(reviews=made.reviews, labels=torch.eye(CLASSES)[made.labels])
    torch.testing.assert_close(learner()._add_gradients(soft), learner()._add_gradients(made))
