"""The fast network equals a slow, simple one: one review at a time, torch's own GRU, loops."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from han.config import ModelConfig
from han.model import network as network_module
from han.model.gru import RaggedGRU, _pack, compiled
from han.model.network import HAN, FoldedHAN, Level
from han.types import Attention, RaggedBatch

NUM_WORDS = 30


def oracle(network: HAN, batch: RaggedBatch) -> Attention:
    """Equations 1 to 10 of Yang et al. 2016, written literally."""
    words, sentences, read_out = network.words, network.sentences, network.read_out
    tokens = iter(batch.token_ids.split(batch.sentence_lengths.tolist()))
    logits, word_attention, sentence_attention, sentence_vectors = [], [], [], []
    for num_sentences in batch.review_lengths.tolist():
        vectors = []
        for _ in range(num_sentences):
            vector, attention = oracle_level(words, network.embedding(next(tokens)))
            vectors.append(vector)
            word_attention.append(attention)
        sentence_vectors += vectors
        vector, attention = oracle_level(sentences, torch.stack(vectors))
        sentence_attention.append(attention)
        logits.append(read_out(vector))
    return Attention(
        logits=torch.stack(logits),
        word_attention=torch.cat(word_attention),
        sentence_attention=torch.cat(sentence_attention),
        sentence_vectors=torch.stack(sentence_vectors),
    )


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


def test_a_review_scores_the_same_alone_and_in_a_batch() -> None:
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


def test_the_gpu_path_equals_the_cpu_path() -> None:
    torch.manual_seed(2)
    gru, lengths = RaggedGRU(3, 4), torch.tensor([5, 1, 3, 3, 9])
    inputs = torch.randn(int(lengths.sum()), 3)
    torch.testing.assert_close(gru._packed(inputs, _pack(lengths)), gru(inputs, lengths))


def test_dropout_uses_one_mask_per_sentence_and_only_in_training() -> None:
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


def test_the_path_without_numba_equals_the_compiled_one_gradients_included() -> None:
    torch.manual_seed(3)
    gru, lengths = RaggedGRU(3, 21), torch.randint(1, 30, (45,))
    inputs = torch.randn(int(lengths.sum()), 3)
    assert compiled() is not None
    weights = torch.randn(int(lengths.sum()), 42)
    fast, slow = gru(inputs, lengths), gru._by_steps(gru.project(inputs), _pack(lengths))
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=0)
    parameters = list(gru.parameters())
    for ours, theirs in zip(*(torch.autograd.grad((states * weights).sum(), parameters) for states in (fast, slow)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("hidden", [1, 7, 16, 21, 50])
def test_the_recurrence_equals_nn_gru_in_float64_gradients_included(hidden: int) -> None:
    torch.manual_seed(4)
    gru, lengths = RaggedGRU(5, hidden).double(), torch.randint(1, 15, (19,))
    inputs = torch.randn(int(lengths.sum()), 5, dtype=torch.double, requires_grad=True)
    slow = torch.cat([gru.gru(row)[0] for row in inputs.split(lengths.tolist())])
    fast = gru(inputs, lengths)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    weights = torch.randn_like(slow)
    wanted = [inputs, *gru.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad((states * weights).sum(), wanted) for states in (fast, slow)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)


def test_the_recurrence_passes_gradcheck_for_its_weights() -> None:
    torch.manual_seed(5)
    gru, lengths = RaggedGRU(2, 3).double(), torch.tensor([3, 1, 2])
    inputs = torch.randn(6, 2, dtype=torch.double)
    names, parameters = zip(*gru.named_parameters(), strict=True)

    def states(*values: Tensor) -> Tensor:
        return torch.func.functional_call(gru, dict(zip(names, values, strict=True)), (inputs, lengths))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(states, tuple(parameter.detach().requires_grad_() for parameter in parameters))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("limit", [0, network_module.FOLDED_BYTES])
@pytest.mark.parametrize("sentence_encoder", [True, False])
def test_the_folded_network_equals_the_oracle(
    monkeypatch: pytest.MonkeyPatch, num_threads: int, limit: int, sentence_encoder: bool
) -> None:
    monkeypatch.setattr(network_module, "FOLDED_BYTES", limit)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr("han.model.gru._TOKENS_FOR_THREADS", 0)
    han = network(
        ModelConfig(word_hidden=21, word_attention=23, sentence_hidden=17, sentence_attention=6, sentence_encoder=sentence_encoder)
    )
    batch = random_batch(6, num_reviews=30)
    fast, slow = FoldedHAN(han)(batch), oracle(han, batch)
    for name in ("logits", "word_attention", "sentence_attention"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), atol=1e-6, rtol=0)


def test_the_folded_network_scores_a_review_bit_for_bit_as_in_a_batch() -> None:
    batch = random_batch(7, num_reviews=20)
    folded = FoldedHAN(network())
    together, alone = folded(batch), [folded(part) for part in split(batch)]
    for name in ("word_attention", "sentence_attention", "logits"):
        assert torch.equal(torch.cat([getattr(part, name) for part in alone]), getattr(together, name))


def test_the_folded_network_refuses_a_token_outside_the_vocabulary() -> None:
    batch = RaggedBatch(token_ids=torch.tensor([NUM_WORDS]), sentence_lengths=torch.tensor([1]), review_lengths=torch.tensor([1]))
    with pytest.raises(IndexError, match="vocabulary has 30"):
        FoldedHAN(network())(batch)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30, -1e30])
def test_a_weight_that_is_not_finite_shows_in_the_output_and_a_large_one_saturates(value: float) -> None:
    han = network()
    han.embedding.weight.data[3, 0] = value
    batch = RaggedBatch(token_ids=torch.tensor([1, 3, 2]), sentence_lengths=torch.tensor([3]), review_lengths=torch.tensor([1]))
    fast, slow = FoldedHAN(han)(batch).logits, oracle(han, batch).logits
    assert torch.equal(fast.isfinite(), slow.isfinite())
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=0, equal_nan=True)
