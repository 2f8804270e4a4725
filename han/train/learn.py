"""The training loop and the evaluation pass, for one worker or several, without Ray.

Workers sum their gradients: a step's gradient is that of the mean loss over the reviews of all workers. Each step starts with a sum over
the workers of their numbers of reviews. A worker without reviews contributes zeros, and the epoch ends for all workers when the sum is
zero. So every review is seen once, and no worker waits forever.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.nn import functional

from han.config import TrainConfig
from han.model.gru import compiled
from han.model.network import HAN, FoldedHAN
from han.model.ngrams import NgramTables
from han.model.ragged import collate_table, split, token_batches
from han.types import Float32s, RaggedBatch, UserError

PROBABILITY_TOLERANCE = 1e-3  # of the sum of soft labels
PIECE_TOKENS = 24_000  # of a forward and backward pass on a CPU; a larger batch costs up to 1.5 times as much a token
LENGTHS = 16  # classes of reviews of like length, in which workers take turns together
WARM_UP = 0.1  # share of all steps in which the learning rate rises


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBatch:
    reviews: RaggedBatch
    labels: Tensor  # int64 [R], -1 for an unlabelled review; or soft labels float32 [R, C], each row sums to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftLabels:
    """Probabilities of the labels of unlabelled reviews."""

    rows: dict[str, int]  # review_id to row
    probabilities: Float32s  # [N, C]

    def of(self, table: pa.Table) -> Float32s:
        """Labels [R, C] of encoded reviews: a labelled review has its own label with probability 1. A missing review is a KeyError."""
        labels = table["label"].to_pylist()
        one_hot = np.eye(self.probabilities.shape[1], dtype=np.float32)
        probabilities = [
            one_hot[label] if label is not None else self.probabilities[self.rows[name]]
            for name, label in zip(table["review_id"].to_pylist(), labels, strict=True)
        ]
        return np.stack(probabilities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Progress of all workers in an epoch."""

    num_reviews: int
    num_tokens: int
    loss: float  # mean cross-entropy a review, nats
    learning_rate: float
    waiting_s: float = 0.0  # this worker's seconds without a batch


class NotFinite(ArithmeticError):
    """A loss or a gradient that is infinite or not a number. All workers raise it at the same step, before the weights move."""

    def __init__(self, quantity: str, learning_rate: float) -> None:
        super().__init__(f"the {quantity} is not finite at learning rate {learning_rate:g}")
        self.quantity, self.learning_rate = quantity, learning_rate


class Learner:
    """A network, its optimisers and the position in the schedule. A checkpoint holds what `state` returns."""

    def __init__(self, network: HAN, config: TrainConfig, *, num_reviews: int, device: torch.device) -> None:
        """num_reviews: reviews of one epoch over all workers; the schedule depends on it."""
        self.network = network.to(device)
        self.config = config
        self.device = device
        self.total_reviews = num_reviews * config.epochs
        self.reviews_seen = 0
        self.dense = [parameter for parameter in network.parameters() if parameter is not network.embedding.weight]
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "dense": torch.optim.AdamW(self.dense, lr=config.learning_rate, weight_decay=config.weight_decay),
            "embedding": RowAdam([network.embedding.weight], lr=config.learning_rate),
        }

    def train_epoch(self, batches: Iterable[LabelledBatch], *, seed: int, report: Callable[[Seen], None] = lambda seen: None) -> Seen:
        """One pass over this worker's batches, in step with the other workers. `report` is called after every step.

        seed: of dropout; give every epoch and worker its own, so that a resumed epoch is the epoch it would have been.
        """
        torch.manual_seed(seed)
        self.network.train()
        seen = Seen(num_reviews=0, num_tokens=0, loss=0.0, learning_rate=0.0)
        mine: Iterator[LabelledBatch] = iter(batches)
        waiting_s = 0.0
        while True:
            started = time.perf_counter()
            labelled = next(mine, None)
            waiting_s += time.perf_counter() - started
            sums = self._add_gradients(labelled)
            num_reviews, num_tokens, loss = int(sums[0]), int(sums[1]), float(sums[2])
            if num_reviews == 0:
                return seen
            rate = self._step(num_reviews, loss)
            total = seen.num_reviews + num_reviews
            seen = Seen(
                num_reviews=total,
                num_tokens=seen.num_tokens + num_tokens,
                loss=(seen.loss * seen.num_reviews + loss) / total,
                learning_rate=rate,
                waiting_s=waiting_s,
            )
            report(seen)

    def evaluate(self, batches: Iterable[LabelledBatch]) -> tuple[Float32s, NDArray[np.int64]]:
        """Logits [N, C] and labels [N] of all workers' batches, the same on every worker."""
        self.network.eval()
        score = FoldedHAN(self.network) if self.device.type == "cpu" and self.config.precision == "float32" and compiled() else None
        num_classes = self.network.read_out.out_features
        rows = [torch.empty(0, num_classes + 1, device=self.device)]
        with torch.inference_mode():
            for batch in batches:
                logits = score(batch.reviews).logits if score is not None else self._forward(batch.reviews)
                rows.append(torch.cat([logits.float(), batch.labels.to(self.device)[:, None].float()], dim=1))
        gathered = _gather_rows(torch.cat(rows)).cpu().numpy()
        return gathered[:, :-1], gathered[:, -1].astype(np.int64)

    def state(self) -> dict[str, Tensor]:
        """Network and optimisers as named tensors on the CPU, with the place in the schedule."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for kind, optimiser in self.optimisers.items():
            for index, values in optimiser.state_dict()["state"].items():
                tensors |= {f"{kind}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        tensors["reviews_seen"] = torch.tensor(self.reviews_seen)
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Resume from what `state` returned."""
        network = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
        self.network.load_state_dict(network)
        self.reviews_seen = int(tensors["reviews_seen"])
        for kind, optimiser in self.optimisers.items():
            state: dict[int, dict[str, Tensor | int]] = {}
            for name, value in tensors.items():
                if name.startswith(f"{kind}."):
                    _, index, key = name.split(".")
                    # SparseAdam counts its steps in a plain int, AdamW in a tensor.
                    state.setdefault(int(index), {})[key] = int(value) if kind == "embedding" and key == "step" else value
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})

    def _add_gradients(self, batch: LabelledBatch | None) -> Tensor:
        """[reviews, tokens, summed loss] over all workers; the network's gradients become those of the summed loss."""
        self.network.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=self.device, dtype=torch.float32)
        if batch is not None:
            num_tokens = len(batch.reviews.token_ids)
            # The states of a piece stay in the cache of a CPU. The gradients of the pieces add up to those of the batch.
            for rows, piece in split(batch.reviews, max_tokens=PIECE_TOKENS if self.device.type == "cpu" else num_tokens):
                loss = self._backward(piece, batch.labels[rows].to(self.device))
                sums += torch.stack([loss.new_tensor(piece.num_reviews), loss.new_tensor(len(piece.token_ids)), loss.detach()])
        return add_over_workers(self.network, self.dense, sums)

    def _backward(self, piece: RaggedBatch, labels: Tensor) -> Tensor:
        """Add the gradients of the summed cross-entropy, which is returned."""
        loss = functional.cross_entropy(self._forward(piece).float(), labels, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _step(self, num_reviews: int, loss: float) -> float:
        """Divide the summed gradients by the reviews, clip them, move the weights; returns the learning rate used.

        A loss or gradient that is not finite is `NotFinite`.
        """
        rate = self.config.learning_rate * self._schedule()
        if not math.isfinite(loss):
            raise NotFinite("training loss", rate)
        rows = self.network.embedding.weight.grad
        assert rows is not None  # noqa: S101 - add_over_workers has just set it
        gradients = [parameter.grad for parameter in self.dense if parameter.grad is not None] + [rows.values()]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])) / num_reviews
        if not math.isfinite(float(norm)):
            raise NotFinite("gradient", rate)
        scale = min(1.0, self.config.clip_norm / (float(norm) + 1e-6)) / num_reviews
        for gradient in gradients:
            gradient.mul_(scale)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        self.reviews_seen += num_reviews
        return rate

    def _schedule(self) -> float:
        """Share of the peak learning rate: linear warm-up, then half a cosine down to 0."""
        done = self.reviews_seen / self.total_reviews
        if done < WARM_UP:
            return (done + 1 / self.total_reviews) / WARM_UP
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP))))

    def _forward(self, reviews: RaggedBatch) -> Tensor:
        with self._autocast():
            return self.network(self._on_device(reviews)).logits  # type: ignore[no-any-return]

    def _on_device(self, reviews: RaggedBatch) -> RaggedBatch:
        return dataclasses.replace(reviews, token_ids=reviews.token_ids.to(self.device, non_blocking=True))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


class RowAdam(torch.optim.SparseAdam):
    """`SparseAdam` of one table, with the same state; on a CPU a compiled kernel makes its step in a third of the time."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        (group,) = self.param_groups
        (weight,) = group["params"]
        kernels, gradient = compiled(), weight.grad
        if kernels is None or closure is not None or gradient is None or not self.state[weight] or weight.device.type != "cpu":
            return super().step(closure)  # type: ignore[no-untyped-call]
        state, rows = self.state[weight], gradient.coalesce()
        state["step"] += 1
        betas = np.array(group["betas"])
        corrections = 1 - betas ** state["step"]
        rate = group["lr"] * math.sqrt(corrections[1]) / corrections[0]
        tables = (weight, state["exp_avg"], state["exp_avg_sq"])
        arrays = (rows.indices()[0], rows.values(), *(table.detach() for table in tables))
        numbers = np.array([*(1 - betas), group["eps"], rate], dtype=tables[0].detach().numpy().dtype)
        kernels.adam_rows(*(array.numpy() for array in arrays), *numbers)
        return None


def read_soft_labels(path: Path, labels: Sequence[str]) -> SoftLabels:
    """Soft labels from a Parquet file or a folder of Parquet files: review_id, and probabilities with a number for each label."""
    try:
        table = pq.read_table(path, columns=["review_id", "probabilities"])
        columns = [table["probabilities"].combine_chunks().field(label).to_numpy(zero_copy_only=False) for label in labels]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(
            f"{path} has no soft labels: give Parquet with review_id and probabilities, a struct of {', '.join(labels)} ({error})"
        ) from None
    probabilities = np.stack(columns, axis=1).astype(np.float32)
    sums = probabilities.sum(axis=1)
    if not (np.abs(sums - 1) < PROBABILITY_TOLERANCE).all() or (probabilities < 0).any():
        raise UserError(f"{path} has probabilities that do not sum to 1, or are negative")
    return SoftLabels(rows={name: row for row, name in enumerate(table["review_id"].to_pylist())}, probabilities=probabilities)


def batches(
    tables: Iterable[pa.Table],
    batch_tokens: int,
    order: np.random.Generator | None,
    *,
    shared: np.random.Generator | None = None,
    ngrams: NgramTables | None = None,
    soft: SoftLabels | None = None,
) -> Iterator[LabelledBatch]:
    """Length-bucketed batches of a stream of windows; `order` shuffles the reviews and batches of a window.

    shared: of several workers, with the same seed on all of them: in a step all have batches of reviews of like length, which take equally
    long. ngrams: tables whose weights, out of fold, are the inputs of the reviews; None leaves the look-up to the network.
    """
    for table in tables:
        if order is not None:
            table = table.take(order.permutation(len(table)))
        tokens = table["token_ids"].combine_chunks().value_lengths().to_numpy()
        rows_by_batch = token_batches(tokens, max_tokens=batch_tokens)
        for index in _shuffled(len(rows_by_batch), order, shared) if order is not None else range(len(rows_by_batch)):
            rows = table.take(rows_by_batch[index])
            reviews = collate_table(rows)
            if ngrams is not None:
                reviews = dataclasses.replace(reviews, ngrams=torch.from_numpy(_ngram_inputs(rows, ngrams)))
            labels = soft.of(rows) if soft is not None else pc.fill_null(rows["label"], -1).to_numpy().astype(np.int64)
            yield LabelledBatch(reviews=reviews, labels=torch.from_numpy(labels))


def _shuffled(num_batches: int, order: np.random.Generator, shared: np.random.Generator | None) -> NDArray[np.int64]:
    """A random order of batches that are sorted by length. With `shared`, all workers go through all lengths together, again and again."""
    batches = order.permutation(num_batches)
    if shared is None:
        return batches
    length = batches * LENGTHS // num_batches
    by_length = np.argsort(length, kind="stable")
    turn = np.empty_like(batches)  # how many batches of this length come before
    turn[by_length] = np.arange(num_batches) - np.searchsorted(length[by_length], length[by_length])
    places = shared.spawn(1)[0].random((num_batches, LENGTHS))  # in each turn; workers may have different numbers of batches
    return batches[np.lexsort((places[turn, length], turn))]


def _ngram_inputs(rows: pa.Table, ngrams: NgramTables) -> Float32s:
    columns = (pc.is_valid(rows["label"]).to_pylist(), rows["token_ids"], rows["sentence_lengths"])
    return np.concatenate(
        [
            ngrams.inputs(token_ids.values.to_numpy(), sentence_lengths.values.to_numpy(), labelled=labelled)
            for labelled, token_ids, sentence_lengths in zip(*columns, strict=True)
        ]
    )


def add_over_workers(network: HAN, dense: list[torch.nn.Parameter], sums: Tensor) -> Tensor:
    """Replace gradients and `sums` by their sums over all workers. The embedding's gradient becomes its touched rows alone.

    Every worker calls this the same number of times. Two collectives a step: which words any worker touched, and one sum of everything: of
    `sums`, of the dense gradients and of the rows of those words. So a step costs what its words cost, and a byte for each other word.
    """
    weight = network.embedding.weight
    rows = weight.grad.coalesce() if weight.grad is not None else None
    ids = rows.indices()[0] if rows is not None else torch.empty(0, dtype=torch.int64, device=weight.device)
    values = rows.values() if rows is not None else weight.new_empty(0, weight.shape[1])
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        touched = torch.zeros(len(weight), dtype=torch.uint8, device=weight.device)
        touched[ids] = 1
        distributed.all_reduce(touched, distributed.ReduceOp.MAX)
        ids_everywhere = touched.nonzero()[:, 0]
        everywhere = values.new_zeros(len(ids_everywhere), values.shape[1])
        everywhere[torch.searchsorted(ids_everywhere, ids)] = values
        parts = [sums, *(_gradient(parameter) for parameter in dense), everywhere]
        flat = torch.cat([part.flatten() for part in parts])
        distributed.all_reduce(flat)
        summed = [each.view_as(part) for each, part in zip(torch.split(flat, [part.numel() for part in parts]), parts, strict=True)]
        sums, ids, values = summed[0], ids_everywhere, summed[-1]
        for parameter, gradient in zip(dense, summed[1:-1], strict=True):
            parameter.grad = gradient
    weight.grad = torch.sparse_coo_tensor(ids[None], values, weight.shape, is_coalesced=True, check_invariants=False)
    return sums


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def _gather_rows(rows: Tensor) -> Tensor:
    """The rows of all workers, end to end in order of rank; workers may bring different numbers of rows [N, K]."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(counts))
    padded = rows.new_zeros(longest, rows.shape[1])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(gathered, padded)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])
