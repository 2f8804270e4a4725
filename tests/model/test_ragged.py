import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st

from han.model.ragged import collate, collate_table, split, token_batches
from han.types import Encoded


def review(*sentences: list[int]) -> Encoded:
    token_ids = np.array([token for sentence in sentences for token in sentence], np.int32)
    lengths = np.array([len(sentence) for sentence in sentences], np.int32)
    return Encoded(token_ids=token_ids, spans=np.zeros((len(token_ids), 2), np.int32), sentence_lengths=lengths, num_characters_cut=0)


def test_reviews_lie_end_to_end() -> None:
    batch = collate([review([1, 2], [3]), review([4])])
    assert batch.token_ids.tolist() == [1, 2, 3, 4]
    assert batch.sentence_lengths.tolist() == [2, 1, 1]
    assert batch.review_lengths.tolist() == [2, 1]


def test_rows_of_a_table_collate_like_reviews_even_when_sliced() -> None:
    table = pa.table({"token_ids": [[9], [1, 2, 3], [4]], "sentence_lengths": [[1], [2, 1], [1]]})
    batch, expected = collate_table(table.slice(1)), collate([review([1, 2], [3]), review([4])])
    assert batch.token_ids.equal(expected.token_ids)
    assert batch.sentence_lengths.equal(expected.sentence_lengths)
    assert batch.review_lengths.equal(expected.review_lengths)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 100))
def test_every_review_is_in_one_batch_and_batches_keep_their_token_budget(num_tokens: list[int], max_tokens: int) -> None:
    tokens = np.array(num_tokens, np.int64)
    batches = token_batches(tokens, max_tokens=max_tokens)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(tokens)))
    assert all(len(batch) == 1 or tokens[batch].sum() <= max_tokens for batch in batches)


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=12), st.integers(1, 20))
def test_the_pieces_of_a_batch_are_its_reviews_in_order_and_keep_the_token_budget(lengths: list[list[int]], max_tokens: int) -> None:
    batch = collate([review(*([number] * length for length in own)) for number, own in enumerate(lengths)])
    pieces = split(batch, max_tokens=max_tokens)
    for name in ("token_ids", "sentence_lengths", "review_lengths"):
        assert torch.equal(torch.cat([getattr(piece, name) for _, piece in pieces]), getattr(batch, name))
    assert [row for rows, _ in pieces for row in range(rows.start, rows.stop)] == list(range(len(lengths)))
    assert all(len(piece.token_ids) <= max_tokens or piece.num_reviews == 1 for _, piece in pieces)
