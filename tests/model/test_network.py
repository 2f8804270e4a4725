"""The fast network against a slow, obvious one: one review at a time, torch's own GRU, loops."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from han.config import ModelConfig
from han.model.gru import RaggedGRU, _pack
from han.model.network import HAN, Level
from han.types import Attention, RaggedBatch

NUM_WORDS = 30


def oracle(network: HAN, batch: RaggedBatch) -> Attention:
    """Yang et al. 2016, equations 1 to 10, word for word."""
    words, sentences, read_out = network.words, network.sentences, network.read_out
    tokens = iter(batch.token_ids.split(batch.sentence_lengths.tolist()))
    logits, word_attention, sentence_attention = [], [], []
    for num_sentences in batch.review_lengths.tolist():
        vectors = []
        for _ in range(num_sentences):
            vector, attention = oracle_level(words, network.embedding(next(tokens)))
            vectors.append(vector)
            word_attention.append(attention)
        vector, attention = oracle_level(sentences, torch.stack(vectors))
        sentence_attention.append(attention)
        logits.append(read_out(vector))
    return Attention(logits=torch.stack(logits), word_attention=torch.cat(word_attention), sentence_attention=torch.cat(sentence_attention))


def oracle_level(level: Level, inputs: Tensor) -> tuple[Tensor, Tensor]:
    states = inputs if level.gru is None else level.gru.gru(inputs)[0]
    scores = torch.tanh(level.attention(states)) @ level.context
    attention = torch.softmax(scores, 0)
    return attention @ states, attention


def random_batch(seed: int, num_reviews: int = 7, num_words: int = NUM_WORDS) -> RaggedBatch:
    generator = torch.Generator().manual_seed(seed)
    review_lengths = torch.randint(1, 6, (num_reviews,), generator=generator)
    sentence_lengths = torch.randint(1, 12, (int(review_lengths.sum()),), generator=generator)
    token_ids = torch.randint(0, num_words, (int(sentence_lengths.sum()),), generator=generator)
    return RaggedBatch(token_ids=token_ids, sentence_lengths=sentence_lengths, review_lengths=review_lengths)


def network(config: ModelConfig | None = None, *, embedding_size: int = 9, num_classes: int = 2) -> HAN:
    torch.manual_seed(0)
    config = config or ModelConfig(word_hidden=5, word_attention=7, sentence_hidden=4, sentence_attention=6)
    return HAN(config, num_words=NUM_WORDS, embedding_size=embedding_size, num_classes=num_classes).eval()


def gradients(han: HAN, attention: Attention) -> list[Tensor]:
    weights = torch.sin(torch.arange(attention.logits.numel())).view_as(attention.logits)
    loss = (attention.logits * weights).sum() + (attention.word_attention**2).sum() + (attention.sentence_attention**2).sum()
    found = torch.autograd.grad(loss, list(han.parameters()))
    return [gradient.to_dense() for gradient in found]


@pytest.mark.parametrize("seed", range(4))
def test_the_network_equals_the_oracle_gradients_included(seed: int) -> None:
    han, batch = network(), random_batch(seed)
    ours, slow = han(batch), oracle(han, batch)
    for name in ("logits", "word_attention", "sentence_attention"):
        torch.testing.assert_close(getattr(ours, name), getattr(slow, name), atol=1e-5, rtol=0)
    for gradient, expected in zip(gradients(han, ours), gradients(han, slow), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("hidden", "attention", "embedding", "classes"), list(product((1, 6), (1, 5), (1, 8), (2, 5))))
def test_every_combination_of_sizes_works(hidden: int, attention: int, embedding: int, classes: int) -> None:
    config = ModelConfig(word_hidden=hidden, word_attention=attention, sentence_hidden=7 - hidden, sentence_attention=6 - attention)
    han, batch = network(config, embedding_size=embedding, num_classes=classes), random_batch(1)
    torch.testing.assert_close(han(batch).logits, oracle(han, batch).logits, atol=1e-5, rtol=0)


def test_without_a_sentence_encoder_attention_weighs_the_bare_sentence_vectors() -> None:
    han, batch = network(ModelConfig(word_hidden=5, word_attention=7, sentence_attention=6, sentence_encoder=False)), random_batch(1)
    ours, slow = han(batch), oracle(han, batch)
    torch.testing.assert_close(ours.logits, slow.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.sentence_attention, slow.sentence_attention, atol=1e-5, rtol=0)
    assert not any(name.startswith("sentences.gru") for name in han.state_dict())
    for gradient, expected in zip(gradients(han, ours), gradients(han, slow), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)


def test_attention_sums_to_one_in_every_sentence_and_review() -> None:
    batch = random_batch(2)
    attention = network()(batch)
    for weights, lengths in (
        (attention.word_attention, batch.sentence_lengths),
        (attention.sentence_attention, batch.review_lengths),
    ):
        assert weights.min() >= 0
        for row in weights.split(lengths.tolist()):
            torch.testing.assert_close(row.sum(), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_a_review_scores_the_same_alone_and_in_company() -> None:
    han, batch = network(), random_batch(3, num_reviews=20)
    together = han(batch)
    alone = [han(part).logits for part in split(batch)]
    torch.testing.assert_close(torch.cat(alone), together.logits, atol=1e-6, rtol=0)


def split(batch: RaggedBatch) -> list[RaggedBatch]:
    lengths = batch.sentence_lengths.split(batch.review_lengths.tolist())
    tokens = batch.token_ids.split([int(length.sum()) for length in lengths])
    return [
        RaggedBatch(token_ids=ids, sentence_lengths=length, review_lengths=torch.tensor([len(length)]))
        for ids, length in zip(tokens, lengths, strict=True)
    ]


def test_the_recurrence_passes_gradcheck() -> None:
    torch.manual_seed(1)
    gru = RaggedGRU(3, 2).double()
    lengths = torch.tensor([2, 4, 1])
    inputs = torch.randn(7, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: gru(rows, lengths), inputs)


def test_the_path_for_gpus_equals_the_path_for_cpus() -> None:
    torch.manual_seed(2)
    gru, lengths = RaggedGRU(3, 4), torch.tensor([5, 1, 3, 3, 9])
    inputs = torch.randn(int(lengths.sum()), 3)
    torch.testing.assert_close(gru._packed(inputs, _pack(lengths)), gru(inputs, lengths))


def test_dropout_is_one_mask_a_sentence_and_only_in_training() -> None:
    han, batch = network(), random_batch(4)
    torch.testing.assert_close(han(batch).logits, han(batch).logits)
    han.train()
    embedded = torch.ones(len(batch.token_ids), 9)
    for sentence in han._dropped(embedded, batch.sentence_lengths).split(batch.sentence_lengths.tolist()):
        assert (sentence == sentence[0]).all()


def test_a_long_sentence_keeps_its_gradient_finite() -> None:
    gru = RaggedGRU(2, 3)
    inputs = torch.randn(800, 2, requires_grad=True)
    gru(inputs, torch.tensor([769, 31])).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.isfinite().all()
    assert isinstance(gru.gru, nn.GRU)
