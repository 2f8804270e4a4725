"""Effects equal their definition: the encoded review is scored again without the part."""

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from han.config import ModelConfig, TextConfig, TrainConfig
from han.data.samples import planted
from han.model import effects
from han.model.network import HAN
from han.model.ngrams import NgramTable, ngram_hashes
from han.model.ragged import collate, flat_batch, token_batches
from han.text.encode import Encoder
from han.text.vocabulary import Vocab
from han.train.learn import LabelledBatch, Learner
from han.types import Encoded, Int32s, RaggedBatch

NUM_WORDS = 30
ROUNDING = 2e-6  # the attention of a float64 network is computed in float32
SMALL = ModelConfig(word_hidden=5, word_attention=7, sentence_hidden=4, sentence_attention=6)
WIDE = ModelConfig(word_hidden=5, word_attention=7, sentence_hidden=19, sentence_attention=37)  # several SIMD vectors, and a rest
WITHOUT_SENTENCE_GRU = ModelConfig(word_hidden=5, word_attention=7, sentence_encoder=False, sentence_attention=6)


def network(config: ModelConfig = SMALL, *, num_classes: int = 2, seed: int = 0, ngrams: NgramTable | None = None) -> HAN:
    torch.manual_seed(seed)
    han = HAN(config, num_words=NUM_WORDS, embedding_size=9, num_classes=num_classes, ngrams=ngrams)
    for weight in han.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    return han.double().eval()


def table_of(batch: RaggedBatch, *, columns: int = 1) -> NgramTable:
    """Random weights for all n-grams that may appear when one word of the batch is taken out, and for no others."""
    hashes = [
        ngram_hashes(np.array(words[:place] + words[place + 1 :]), np.array([len(words) - 1]))
        for review in sentences_of(batch)
        for words in review
        for place in range(len(words))
        if len(words) > 1
    ]
    known = np.unique(np.concatenate(hashes))[1:]
    return NgramTable.of(known, np.random.default_rng(0).standard_normal((len(known), columns)))


def random_batch(review_lengths: list[int], *, seed: int = 0, longest: int = 12) -> RaggedBatch:
    generator = np.random.default_rng(seed)
    sentence_lengths = generator.integers(1, longest, sum(review_lengths))
    return flat_batch(generator.integers(0, NUM_WORDS, sentence_lengths.sum()), sentence_lengths, np.array(review_lengths))


def sentences_of(batch: RaggedBatch) -> list[list[list[int]]]:
    """Word ids of every sentence of every review."""
    ids, lengths = iter(batch.token_ids.tolist()), iter(batch.sentence_lengths.tolist())
    return [[[next(ids) for _ in range(next(lengths))] for _ in range(number)] for number in batch.review_lengths.tolist()]


def logits_of(han: HAN, review: list[list[int]]) -> Tensor:
    """Logits [1, C] of a review that is scored alone; sentences without words are left out."""
    sentences = [sentence for sentence in review if sentence]
    ids = np.array([word for sentence in sentences for word in sentence])
    with torch.no_grad():
        return han(flat_batch(ids, np.array([len(sentence) for sentence in sentences]), np.array([len(sentences)]))).logits


def evidence_of(han: HAN, review: list[list[int]], label: int) -> float:
    share = float(logits_of(han, review).softmax(1)[0, label])
    return float(np.log(share / (1 - share)))


def sentence_vectors(han: HAN, batch: RaggedBatch) -> Tensor:
    with torch.no_grad():
        return han.words(han.embedding(batch.token_ids), batch.sentence_lengths)[0]


@pytest.mark.parametrize("config", [SMALL, WIDE, WITHOUT_SENTENCE_GRU])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_effect_of_a_sentence_equals_scoring_the_review_without_it(config: ModelConfig, num_classes: int) -> None:
    han, batch = network(config, num_classes=num_classes), random_batch([4, 1, 7, 2])
    effect = effects.sentence_effects(han, sentence_vectors(han, batch), batch.review_lengths)
    expected = []
    for review, label in zip(sentences_of(batch), effect.labels.tolist(), strict=True):
        assert label == int(logits_of(han, review).argmax())
        for place in range(len(review)):
            rest = review[:place] + review[place + 1 :]
            expected.append(evidence_of(han, review, label) - evidence_of(han, rest, label) if rest else np.nan)
    np.testing.assert_allclose(effect.effects.numpy(), expected, atol=ROUNDING)


def test_evidence_is_the_empty_review_plus_effects_plus_interaction() -> None:
    han, batch = network(num_classes=3), random_batch([4, 1, 7])
    effect = effects.sentence_effects(han, sentence_vectors(han, batch), batch.review_lengths)
    torch.testing.assert_close(effect.sums[0], effect.effects[:4].sum())
    total = effect.nothing + effect.sums + effect.interaction
    torch.testing.assert_close(total[[0, 2]], effect.evidence[[0, 2]])
    assert effect.sums[1].isnan()
    assert effect.interaction[1].isnan()


def test_effects_of_a_review_do_not_depend_on_the_other_reviews() -> None:
    han, batch = network(), random_batch([3, 40, 5])
    vectors = sentence_vectors(han, batch)
    beside = effects.sentence_effects(han, vectors, batch.review_lengths).effects[-5:]
    alone = effects.sentence_effects(han, vectors[-5:], batch.review_lengths[-1:]).effects
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-12)


def test_effects_of_a_very_long_review_are_nearly_exact() -> None:
    han, batch = network(), random_batch([90])
    vectors = sentence_vectors(han, batch)
    exact = effects.sentence_effects(han, vectors, batch.review_lengths).effects
    errors = []
    for reach in (0, 4, 30):
        bounded = effects.sentence_effects(han, vectors, batch.review_lengths, reach=reach).effects
        errors.append(float((bounded - exact).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < errors[0] / 100


@pytest.mark.parametrize("with_ngrams", [False, True])
@pytest.mark.parametrize("config", [SMALL, WITHOUT_SENTENCE_GRU])
def test_the_effect_of_a_word_equals_scoring_the_review_without_it(config: ModelConfig, with_ngrams: bool) -> None:
    batch = random_batch([4, 1, 3], longest=6)
    han = network(config, ngrams=table_of(batch) if with_ngrams else None)
    assert 1 in batch.sentence_lengths  # a sentence that its only word takes along
    expected = []
    for review in sentences_of(batch):
        label = int(logits_of(han, review).argmax())
        for sentence, place in [(number, place) for number, words in enumerate(review) for place in range(len(words))]:
            rest = [words[:place] + words[place + 1 :] if number == sentence else words for number, words in enumerate(review)]
            expected.append(evidence_of(han, review, label) - evidence_of(han, rest, label) if any(rest) else np.nan)
    np.testing.assert_allclose(effects.word_effects(han, batch).numpy(), expected, atol=ROUNDING)


def test_the_only_word_of_a_review_has_no_effect() -> None:
    han = network()
    assert effects.word_effects(han, flat_batch(np.array([3]), np.array([1]), np.array([1]))).isnan().all()


def test_gradient_times_input_and_integrated_gradients_agree_with_finite_differences() -> None:
    han, batch = network(), random_batch([4])
    label = int(han(batch).logits.argmax())

    def at(scale: Tensor) -> float:
        with torch.no_grad():
            sentences, _ = han.words(han.embedding(batch.token_ids) * scale[:, None], batch.sentence_lengths)
            logits = han.read_out(han.sentences(sentences, batch.review_lengths)[0])
        return float(effects.evidence(logits, torch.tensor([label])))

    ones, moved = torch.ones(len(batch.token_ids), dtype=torch.float64), 1e-3
    estimated = effects.word_effects(han, batch, method="gradient_input")
    for word in range(len(ones)):
        step = torch.zeros_like(ones)
        step[word] = moved
        assert float(estimated[word]) == pytest.approx((at(ones + step) - at(ones - step)) / (2 * moved), abs=5e-4)
    middle, halves = effects.word_effects(han, batch, method="midpoint_gradient"), ones / 2
    for word in range(len(ones)):
        step = torch.zeros_like(ones)
        step[word] = moved
        assert float(middle[word]) == pytest.approx((at(halves + step) - at(halves - step)) / (2 * moved), abs=5e-4)
    integrated = effects.word_effects(han, batch, method="integrated_gradients", steps=200)
    assert float(integrated.sum()) == pytest.approx(at(ones) - at(0 * ones), abs=1e-3)


def test_the_smallest_set_of_flipping_sentences_is_the_smallest() -> None:
    sizes = set()
    for seed in range(12):
        han, batch = network(seed=seed), random_batch([6], seed=seed)
        (review,) = sentences_of(batch)
        flip = effects.flipping_sentences(han, sentence_vectors(han, batch))
        label = int(logits_of(han, review).argmax())
        flips = [
            taken
            for size in range(1, 6)
            for taken in combinations(range(6), size)
            if int(logits_of(han, [sentence for place, sentence in enumerate(review) if place not in taken]).argmax()) != label
        ]
        assert (flip is None) == (not flips)
        if flip is not None:
            assert flip.exact
            assert flip.parts in flips
            assert len(flip.parts) == len(flips[0])
            sizes.add(len(flip.parts))
    assert len(sizes) > 1


def test_a_greedy_set_of_sentences_flips_the_label_and_is_marked() -> None:
    flips = []
    for seed in range(12):
        han, batch = network(seed=seed), random_batch([6], seed=seed)
        (review,) = sentences_of(batch)
        flip = effects.flipping_sentences(han, sentence_vectors(han, batch), subsets=0)
        if flip is not None:
            rest = [sentence for place, sentence in enumerate(review) if place not in flip.parts]
            assert int(logits_of(han, rest).argmax()) == flip.label != int(logits_of(han, review).argmax())
            assert not flip.exact
            flips.append(flip)
    assert flips


@pytest.mark.parametrize("with_ngrams", [False, True])
def test_flipping_spans_are_all_spans_of_the_shortest_length_that_flip(with_ngrams: bool) -> None:
    sizes = set()
    for seed in range(8):
        batch = random_batch([3], seed=seed, longest=8)
        han = network(seed=seed, ngrams=table_of(batch) if with_ngrams else None)
        (review,) = sentences_of(batch)
        label = int(logits_of(han, review).argmax())
        expected: set[tuple[int, ...]] = set()
        for size in range(1, effects.LARGEST_SPAN + 1):
            first = 0
            for number, words in enumerate(review):
                for place in range(len(words) - size + 1 if len(words) > size else 0):
                    rest = [w[:place] + w[place + size :] if number == other else w for other, w in enumerate(review)]
                    if int(logits_of(han, rest).argmax()) != label:
                        expected.add(tuple(range(first + place, first + place + size)))
                first += len(words)
            if expected:
                sizes.add(size)
                break
        assert {flip.parts for flip in effects.flipping_spans(han, batch)} == expected
    assert sizes


def learnt(folder: Path, *, num_reviews: int, epochs: int) -> tuple[Encoder, HAN]:
    """A small network trained on planted evidence from reviews of three labels (see `planted.write_jsonl`)."""
    planted.write_jsonl(folder / "reviews.jsonl", num_reviews, seed=1, num_neutral=num_reviews // 4)
    reviews = [json.loads(line) for line in (folder / "reviews.jsonl").read_text().splitlines()]
    words = sorted(set(re.findall(r"\w+|[^\w\s]+", " ".join(review["text"] for review in reviews).lower())))
    encoder = Encoder(TextConfig(), None, Vocab(("<unk>", *words)))
    encodings = [encoder.encode(review["text"]) for review in reviews]
    encodings = [encoded for encoded in encodings if isinstance(encoded, Encoded)]
    labels = torch.tensor([("negative", "neutral", "positive").index(review["label"]) for review in reviews])
    torch.manual_seed(0)
    han = HAN(
        ModelConfig(word_hidden=16, word_attention=16, sentence_hidden=16, sentence_attention=16),
        num_words=len(words) + 1,
        embedding_size=24,
        num_classes=3,
    )
    config = TrainConfig(epochs=epochs, learning_rate=1e-2)
    learner = Learner(han, config, num_reviews=len(reviews), device=torch.device("cpu"))
    for epoch in range(epochs):
        order = np.random.default_rng(epoch)
        batches = token_batches(np.array([len(encoded.token_ids) for encoded in encodings]), max_tokens=2_500)
        learner.train_epoch(
            (
                LabelledBatch(reviews=collate([encodings[row] for row in batches[place]]), labels=labels[batches[place]])
                for place in order.permutation(len(batches))
            ),
            seed=epoch,
        )
    return encoder, han.eval()


def test_planted_evidence_has_the_largest_effects(tmp_path: Path) -> None:
    encoder, han = learnt(tmp_path, num_reviews=1_600, epochs=7)
    reviews = list(planted.generate(200, seed=2))
    encoded = encoder.encode_batch([review.text for review in reviews])
    batch = flat_batch(encoded.token_ids, encoded.sentence_lengths, encoded.review_lengths)
    effect = effects.sentence_effects(han, sentence_vectors(han, batch), batch.review_lengths)
    assert np.mean(effect.labels.numpy() == [{"negative": 0, "positive": 2}[review.label] for review in reviews]) >= 0.98
    best = first_of_each(effect.effects, encoded.review_lengths)
    starts = encoded.spans[(np.cumsum(encoded.sentence_lengths) - encoded.sentence_lengths)[best], 0].tolist()
    assert np.mean([start == review.sentence_start for start, review in zip(starts, reviews, strict=True)]) >= 0.98
    words = encoded.spans[first_of_each(effects.word_effects(han, batch), encoded.num_tokens)].tolist()
    assert np.mean([tuple(span) in review.words for span, review in zip(words, reviews, strict=True)]) >= 0.95


def first_of_each(values: Tensor, lengths: Int32s) -> list[int]:
    """The index of the largest value of each row."""
    ends = np.cumsum(lengths)
    return [int(end - length + part.argmax()) for end, length, part in zip(ends, lengths, values.split(lengths.tolist()), strict=True)]
