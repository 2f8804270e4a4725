"""Pretraining of the word GRU on all text, labelled or not: each state predicts the words that its direction reads next.

The forward state at a word predicts the mean vector of the next `CONTEXT` words of the sentence, the backward state that of the previous
ones. Rare words weigh more (Arora et al. 2017). This is the two-view learning of Johnson and Zhang (2016) with word vectors in place of
bags of words, so the output layer is small. The word vectors stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from han.config import ModelConfig, TrainConfig
from han.model.gru import RaggedGRU
from han.train.encoded import EncodedFolder, read_windows
from han.train.learn import batches
from han.types import UserError

CONTEXT = 5  # words on each side
RARITY = 1e-3  # a word of this frequency has half the weight of the rarest
SMOOTHING = 0.2  # weight of a mean vector of 0 beside the context
DROPOUT = 0.1  # of the word vectors
LEARNING_RATE = 2e-3
WARM_UP = 0.02  # share of the steps
TEXT = "train+unlabelled"


def pretrain(
    folder: EncodedFolder, model: ModelConfig, train: TrainConfig, *, passes: int, report: Callable[[int, int, float], None]
) -> dict[str, Tensor]:
    """The weights of the word GRU by their names in `HAN`.

    report: reviews read, all reviews, and the share of the variance of the mean vectors that is not predicted yet. A loss or gradient that
    is not finite is a `UserError`.
    """
    torch.manual_seed(train.seed)
    vectors = torch.from_numpy(folder.vectors)
    size = vectors.shape[1]
    context = _Context(vectors, _frequencies(folder))
    gru = RaggedGRU(size, model.word_hidden)
    heads = nn.ModuleList([nn.Linear(model.word_hidden, size) for _ in range(2)])
    optimiser = torch.optim.AdamW([*gru.parameters(), *heads.parameters()], lr=LEARNING_RATE, weight_decay=0.0)
    seen, total = 0, folder.num_reviews(TEXT) * passes
    left = 1.0
    for number in range(passes):
        order = np.random.default_rng([train.seed, number])
        for batch in batches(read_windows(folder, TEXT, int(order.integers(1 << 62))), train.batch_tokens, order):
            ids, lengths = batch.reviews.token_ids, batch.reviews.sentence_lengths
            mask = functional.dropout(torch.ones(len(lengths), size), DROPOUT)
            states = gru(vectors[ids] * torch.repeat_interleave(mask, lengths, dim=0), lengths)
            loss, variance = _loss(heads, states, context.targets(ids, lengths))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(gru.parameters(), 1.0)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise UserError(_diverged("gradient" if torch.isfinite(loss) else "loss", seen, total))
            done = seen / total
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, done / WARM_UP + 0.05) * (1 - done)
            optimiser.step()
            seen += batch.reviews.num_reviews
            left += 0.02 * (float(loss.detach() / variance) - left)
            report(seen, total, left)
    return {f"words.gru.{name}": weight.detach() for name, weight in gru.state_dict().items()}


def _diverged(quantity: str, seen: int, total: int) -> str:
    """One line: the learning rate is fixed and safe for vectors of usual size, so these are to blame."""
    return (
        f"pretraining of the word GRU diverged: the {quantity} is not finite after {seen:,} of {total:,} reviews at learning rate "
        f"{LEARNING_RATE:g}: prepare the data with other word vectors (--vectors.source), or train without --train.semi-supervised"
    )


def _frequencies(folder: EncodedFolder) -> Tensor:
    """The share of every word in the text, float32 [V]."""
    counts = np.zeros(len(folder.vectors), np.int64)
    for table in read_windows(folder, TEXT):
        counts += np.bincount(table["token_ids"].combine_chunks().flatten().to_numpy(), minlength=len(counts))
    return torch.from_numpy((counts / counts.sum()).astype(np.float32))


class _Context:
    """The mean vectors that the states predict."""

    def __init__(self, vectors: Tensor, frequencies: Tensor) -> None:
        centred = vectors - (vectors * frequencies[:, None]).sum(0)
        self.weights = RARITY / (RARITY + frequencies)  # [V]
        self.weights[0] = 0  # <unk>
        self.weighted = centred / (centred.std() + 1e-6) * self.weights[:, None]  # [V, E]

    def targets(self, ids: Tensor, lengths: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of the next and of the previous words of each token: their mean vector [T, E] and their summed weight [T]."""
        sums = torch.cumsum(functional.pad(self.weighted[ids], (0, 0, 1, 0)), 0)
        weights = torch.cumsum(functional.pad(self.weights[ids], (1, 0)), 0)
        ends = torch.repeat_interleave(torch.cumsum(lengths, 0), lengths)
        starts = ends - torch.repeat_interleave(lengths, lengths)
        place = torch.arange(len(ids))
        ranges = ((place + 1, torch.minimum(place + 1 + CONTEXT, ends)), (torch.maximum(place - CONTEXT, starts), place))
        targets = []
        for first, last in ranges:
            weight = (weights[last] - weights[first]).clamp(min=0)
            targets.append(((sums[last] - sums[first]) / (weight[:, None] + SMOOTHING), weight))
        return targets


def _loss(heads: nn.ModuleList, states: Tensor, targets: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The weighted squared error of both directions, and that of predicting 0."""
    loss, variance = states.new_zeros(()), states.new_zeros(())
    for head, way, (mean, weight) in zip(heads, states.chunk(2, dim=1), targets, strict=True):
        share = weight / (weight.sum() + 1e-6) / mean.shape[1]
        loss = loss + ((head(way) - mean).square().sum(1) * share).sum()
        variance = variance + (mean.square().sum(1) * share).sum()
    return loss, variance
