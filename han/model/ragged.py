"""Batches of reviews as flat arrays, and the choice of the reviews that share a batch.

A batch is stored flat (see `types.RaggedBatch`): all tokens, then two arrays of lengths. Nothing is padded, so no attention falls on
padding, and a review's score does not depend on the other reviews of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from han.types import Encoded, Int32s, RaggedBatch


def collate(reviews: Sequence[Encoded]) -> RaggedBatch:
    """R encoded reviews, end to end."""
    return flat_batch(
        np.concatenate([review.token_ids for review in reviews]),
        np.concatenate([review.sentence_lengths for review in reviews]),
        np.array([len(review.sentence_lengths) for review in reviews]),
    )


def collate_table(table: pa.Table) -> RaggedBatch:
    """R rows of an encoded folder (`token_ids`, `sentence_lengths`: list<int32>), end to end, without a loop over rows."""
    sentences = table["sentence_lengths"].combine_chunks()
    return flat_batch(
        table["token_ids"].combine_chunks().flatten().to_numpy(),
        sentences.flatten().to_numpy(),
        sentences.value_lengths().to_numpy(),
    )


def token_batches(num_tokens: Int32s | NDArray[np.int64], *, max_tokens: int) -> list[NDArray[np.int64]]:
    """Which reviews share a batch: int arrays of row numbers, each row once.

    Reviews of like length stand together (fewer steps of the recurrent network a token), and a batch holds at most `max_tokens` tokens
    unless a single review has more. num_tokens: [R], tokens of each review.
    """
    order = np.argsort(num_tokens, kind="stable")
    batches: list[NDArray[np.int64]] = []
    first = total = 0
    for position, tokens in enumerate(num_tokens[order].tolist()):
        if position > first and total + tokens > max_tokens:
            batches.append(order[first:position])
            first, total = position, 0
        total += tokens
    if first < len(order):
        batches.append(order[first:])
    return batches


def flat_batch(token_ids: Int32s, sentence_lengths: Int32s, review_lengths: Int32s | NDArray[np.int64]) -> RaggedBatch:
    """A batch from arrays [T], [S] and [R] of any integer type; they are copied as int64."""
    as_int64 = [torch.from_numpy(array.astype(np.int64)) for array in (token_ids, sentence_lengths, review_lengths)]
    return RaggedBatch(token_ids=as_int64[0], sentence_lengths=as_int64[1], review_lengths=as_int64[2])


def split(batch: RaggedBatch, *, max_tokens: int) -> list[tuple[slice, RaggedBatch]]:
    """The reviews of a batch in pieces of at most `max_tokens` tokens, or of one longer review, with the rows of each piece."""
    ends_S = torch.cumsum(batch.review_lengths, 0)
    ends_T = torch.cumsum(batch.sentence_lengths, 0)[ends_S - 1]  # [R], tokens up to the end of each review
    pieces, first = [], 0
    while first < batch.num_reviews:
        sentence, token = (0, 0) if first == 0 else (int(ends_S[first - 1]), int(ends_T[first - 1]))
        last = max(first + 1, int(torch.searchsorted(ends_T, token + max_tokens, right=True)))
        tokens = slice(token, int(ends_T[last - 1]))
        piece = RaggedBatch(
            token_ids=batch.token_ids[tokens],
            sentence_lengths=batch.sentence_lengths[sentence : int(ends_S[last - 1])],
            review_lengths=batch.review_lengths[first:last],
            ngrams=None if batch.ngrams is None else batch.ngrams[tokens],
        )
        pieces.append((slice(first, last), piece))
        first = last
    return pieces
