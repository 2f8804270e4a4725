"""Inputs from n-grams equal loops over words, and the network with n-grams equals its folded form."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from han.config import ModelConfig
from han.model import ngrams
from han.model.network import HAN, FoldedHAN
from han.model.ngrams import FOLDS, ORDERS, Folds, NgramTable, NgramTables, ngram_hashes, review_key
from han.model.ragged import flat_batch
from han.types import RaggedBatch

NUM_WORDS = 12
SMALL = ModelConfig(word_hidden=5, word_attention=7, sentence_hidden=4, sentence_attention=6)


def random_batch(num_reviews: int = 20, seed: int = 0) -> RaggedBatch:
    generator = np.random.default_rng(seed)
    review_lengths = generator.integers(1, 6, num_reviews)
    sentence_lengths = generator.integers(1, 9, review_lengths.sum())
    return flat_batch(generator.integers(0, NUM_WORDS, sentence_lengths.sum()), sentence_lengths, review_lengths)


def ngrams_of(batch: RaggedBatch) -> Iterator[list[tuple[int, ...] | None]]:
    """The unigram, bigram and trigram that end at each token; None for what crosses a sentence or has <unk>."""
    ids = iter(batch.token_ids.tolist())
    for length in batch.sentence_lengths.tolist():
        words = [next(ids) for _ in range(length)]
        for end in range(1, length + 1):
            found = [tuple(words[end - order : end]) if end >= order else None for order in range(1, ORDERS + 1)]
            yield [ngram if ngram and 0 not in ngram else None for ngram in found]


def hash_of(ngram: tuple[int, ...]) -> int:
    return int(ngram_hashes(np.array(ngram), np.array([len(ngram)]))[-1, len(ngram) - 1])


def table(batch: RaggedBatch, *, columns: int = 2) -> tuple[NgramTable, dict[tuple[int, ...], list[float]]]:
    """A table of every second n-gram of a batch, and the weights by n-gram."""
    known = sorted({ngram for found in ngrams_of(batch) for ngram in found if ngram})[::2]
    weights = np.random.default_rng(1).standard_normal((len(known), columns)).astype(np.float32)
    hashes = np.array([hash_of(ngram) for ngram in known], np.uint32)
    order = np.argsort(hashes)
    assert len(set(hashes.tolist())) == len(known)
    return NgramTable.of(hashes[order], weights[order]), dict(zip(known, weights.tolist(), strict=True))


@pytest.mark.parametrize("compiler", [True, False])
def test_the_inputs_of_a_token_are_the_weights_of_the_ngrams_that_end_at_it(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler:
        monkeypatch.setattr(ngrams, "compiled", lambda: None)
    batch = random_batch()
    known, weights = table(batch)
    expected = [[value for ngram in found for value in weights.get(ngram or (), [0.0, 0.0])] for found in ngrams_of(batch)]
    assert np.count_nonzero(expected) > 100
    np.testing.assert_array_equal(known.inputs(batch.token_ids.numpy(), batch.sentence_lengths.numpy()), np.array(expected, np.float32))


@pytest.mark.parametrize("compiler", [True, False])
def test_an_empty_table_gives_zeros(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler:
        monkeypatch.setattr(ngrams, "compiled", lambda: None)
    empty = NgramTable.of(np.empty(0, np.uint32), np.empty((0, 1), np.float32))
    np.testing.assert_array_equal(empty.inputs(np.array([3, 4]), np.array([2])), np.zeros((2, ORDERS)))


def network(known: NgramTable, dtype: torch.dtype = torch.float32) -> HAN:
    torch.manual_seed(0)
    han = HAN(SMALL, num_words=NUM_WORDS, embedding_size=9, num_classes=2, ngrams=known)
    assert han.ngram_projection is not None
    assert not han.ngram_projection.any()
    torch.nn.init.normal_(han.ngram_projection, std=0.7)
    return han.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_folded_network_equals_the_network_with_ngrams(dtype: torch.dtype) -> None:
    batch = random_batch(200)
    han = network(table(batch)[0], dtype)
    with torch.inference_mode():
        slow, fast = han(batch), FoldedHAN(han)(batch)
    torch.testing.assert_close(fast.logits, slow.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(fast.word_attention.float(), slow.word_attention, atol=1e-6, rtol=0)
    assert not torch.allclose(slow.logits, network(NgramTable.of(np.empty(0, np.uint32), np.empty((0, 2))), dtype)(batch).logits)


def test_a_review_with_ngrams_scores_the_same_alone_and_beside_others() -> None:
    batch = random_batch(30)
    folded = FoldedHAN(network(table(batch)[0]))
    together = folded(batch).logits
    sentences = np.split(batch.sentence_lengths.numpy(), np.cumsum(batch.review_lengths.numpy())[:-1])
    words = np.split(batch.token_ids.numpy(), np.cumsum([length.sum() for length in sentences])[:-1])
    for row, (ids, lengths) in enumerate(zip(words, sentences, strict=True)):
        torch.testing.assert_close(folded(flat_batch(ids, lengths, np.array([len(lengths)]))).logits[0], together[row], atol=1e-6, rtol=0)


def test_a_labelled_review_reads_weights_that_were_fitted_without_its_fold() -> None:
    ids, lengths = np.array([3, 4, 5], np.int32), np.array([3], np.int32)
    hashes = np.unique(ngram_hashes(ids.astype(np.int64), lengths.astype(np.int64)))[1:]
    tables = [NgramTable.of(hashes, np.full((len(hashes), 1), float(number))) for number in range(1 + FOLDS)]
    folds = Folds(keys=np.empty(0, np.uint32), numbers=np.empty(0, np.uint8))
    known = NgramTables(whole=tables[0], by_fold=tuple(tables[1:]), folds=folds)
    assert known.inputs(ids, lengths, labelled=True).max() == 1 + review_key(ids) % FOLDS
    assert known.inputs(ids, lengths, labelled=False).max() == 0
