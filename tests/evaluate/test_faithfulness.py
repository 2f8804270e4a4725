"""Losses and rankings against loops over single reviews."""

import json

import numpy as np
import pytest
import torch

from han.evaluate import faithfulness
from han.model import effects
from han.model.ragged import flat_batch
from han.types import RaggedBatch
from tests.conftest import WORDS, tiny_network

BATCH = flat_batch(np.random.default_rng(0).integers(0, len(WORDS), 60), np.array([7, 1, 12, 10, 5, 5, 20]), np.array([3, 1, 3]))


def probability(ids: list[int], sentence_lengths: list[int], label: int) -> float:
    network = tiny_network()
    with torch.no_grad():
        if not ids:
            return float(network.read_out.bias.softmax(0)[label])
        logits = network(flat_batch(np.array(ids), np.array(sentence_lengths), np.array([len(sentence_lengths)]))).logits
    return float(logits.softmax(1)[0, label])


def losses_of(parts: faithfulness.Parts, values: np.ndarray) -> faithfulness.Losses:
    network = tiny_network()
    empty = network.read_out.bias.detach().double().numpy()
    return faithfulness.losses(network, BATCH, values, parts=parts, empty_logits=empty)


@pytest.mark.parametrize("parts", ["sentences", "words"])
def test_losses_are_those_of_reviews_scored_alone_without_the_first_parts(parts: faithfulness.Parts) -> None:
    number = len(BATCH.sentence_lengths) if parts == "sentences" else len(BATCH.token_ids)
    values = np.random.default_rng(1).random(number)
    losses = losses_of(parts, values)
    ids, lengths = BATCH.token_ids.tolist(), BATCH.sentence_lengths.tolist()
    sentence = token = 0
    for review, num_sentences in enumerate(BATCH.review_lengths.tolist()):
        own = lengths[sentence : sentence + num_sentences]
        sentence_of = np.repeat(np.arange(num_sentences), own)
        own_ids = ids[token : token + sum(own)]
        part_of = sentence_of if parts == "sentences" else np.arange(sum(own))
        own_values = values[sentence : sentence + num_sentences] if parts == "sentences" else values[token : token + sum(own)]
        with torch.no_grad():
            label = int(tiny_network()(BATCH).logits[review].argmax())
        whole = probability(own_ids, own, label)
        for column, share in enumerate(faithfulness.SHARES):
            first = set(np.argsort(-own_values)[: int(np.ceil(share * len(own_values) - 1e-9))].tolist())
            for keep, found in ((False, losses.removed), (True, losses.kept)):
                places = [place for place in range(sum(own)) if (part_of[place] in first) == keep]
                counts = [count for count in np.bincount(sentence_of[places], minlength=num_sentences).tolist() if count]
                rest = probability([own_ids[place] for place in places], counts, label)
                assert found[review, column] == pytest.approx(whole - rest, abs=1e-5)
        sentence, token = sentence + num_sentences, token + sum(own)


def test_ranks_start_anew_in_each_row() -> None:
    ranks, sizes = faithfulness.ranks_in_rows(np.array([1.0, 3.0, 2.0, 5.0, 9.0]), np.array([0, 0, 0, 1, 1]))
    assert ranks.tolist() == [2, 0, 1, 1, 0]
    assert sizes.tolist() == [3, 2]


def test_kendall_is_one_for_equal_orders_and_minus_one_for_opposite_ones() -> None:
    values = np.array([0.3, 0.1, 0.7, 0.2])
    assert faithfulness.kendall(values, values**3) == pytest.approx(1)
    assert faithfulness.kendall(values, -values) == pytest.approx(-1)
    assert np.isnan(faithfulness.kendall(values, np.zeros(4)))


def test_the_share_of_wrong_signs_counts_the_first_parts_that_contradict_the_answer() -> None:
    rows = np.zeros(4, dtype=np.int64)
    effect = np.array([-1.0, 1.0, 1.0, -1.0])
    assert faithfulness.wrong_signs(np.array([4.0, 3.0, 2.0, 1.0]), effect, rows, share=0.5) == 0.5
    assert faithfulness.wrong_signs(effect, effect, rows, share=0.5) == 0


def test_a_bootstrap_interval_holds_the_mean_and_is_repeatable() -> None:
    values = np.random.default_rng(3).normal(2, 1, 400)
    low, high = faithfulness.bootstrap(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert (low, high) == faithfulness.bootstrap(values)


def test_the_permuted_attention_is_the_attention_in_another_order_within_each_review() -> None:
    rankings = faithfulness.sentence_rankings(tiny_network(), BATCH)
    bounds = np.cumsum(BATCH.review_lengths.numpy())[:-1]
    for one, other in zip(np.split(rankings["attention"], bounds), np.split(rankings["permuted_attention"], bounds), strict=True):
        assert sorted(one) == sorted(other)


def test_the_report_is_json_with_every_method_at_both_levels() -> None:
    report = json.loads(json.dumps(faithfulness.report(tiny_network(), reviews_of_several_sentences())))
    controls = {"permuted_attention", "random"}
    assert set(report["sentences"]["methods"]) == {"leave_one_out", "attention"} | controls
    assert set(report["words"]["methods"]) == {*effects.WordMethod.__args__, "random_weights"} | controls
    low, high = report["words"]["methods"]["leave_one_out"]["comprehensiveness_interval"]
    assert low <= report["words"]["methods"]["leave_one_out"]["comprehensiveness"] <= high


def reviews_of_several_sentences() -> RaggedBatch:
    return flat_batch(np.random.default_rng(0).integers(0, len(WORDS), 40), np.array([7, 3, 10, 10, 5, 5]), np.array([3, 3]))
