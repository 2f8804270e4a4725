"""Losses and rankings equal loops over single reviews."""

import json

import numpy as np
import pytest
import torch

from han.evaluate import faithfulness
from han.model import effects
from han.model.network import HAN
from han.model.ngrams import NgramTable, ngram_hashes
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
def test_losses_equal_those_of_reviews_scored_alone_without_their_first_parts(parts: faithfulness.Parts) -> None:
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


def test_ranks_start_again_in_each_row() -> None:
    ranks, sizes = faithfulness.ranks_in_rows(np.array([1.0, 3.0, 2.0, 5.0, 9.0]), np.array([0, 0, 0, 1, 1]))
    assert ranks.tolist() == [2, 0, 1, 1, 0]
    assert sizes.tolist() == [3, 2]


def test_kendall_is_one_for_equal_orders_and_minus_one_for_opposite_ones() -> None:
    values = np.array([0.3, 0.1, 0.7, 0.2])
    assert faithfulness.kendall(values, values**3) == pytest.approx(1)
    assert faithfulness.kendall(values, -values) == pytest.approx(-1)
    assert np.isnan(faithfulness.kendall(values, np.zeros(4)))


def test_the_share_of_wrong_signs_counts_first_parts_that_contradict_the_prediction() -> None:
    rows = np.zeros(4, dtype=np.int64)
    effect = np.array([-1.0, 1.0, 1.0, -1.0])
    assert faithfulness.wrong_signs(np.array([4.0, 3.0, 2.0, 1.0]), effect, rows, share=0.5) == 0.5
    assert faithfulness.wrong_signs(effect, effect, rows, share=0.5) == 0


def test_a_bootstrap_interval_contains_the_mean_and_is_repeatable() -> None:
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
    controls = {"permuted_attention", "random_weights", "random"}
    bounds = {"best_order", "worst_order"}
    assert set(report["sentences"]["methods"]) == {"leave_one_out", "attention"} | controls | bounds
    assert set(report["words"]["methods"]) == {*effects.WordMethod.__args__} | controls
    normalised = {name for figures in report["sentences"]["methods"].values() for name in figures if "normalised" in name}
    assert normalised == {"comprehensiveness_normalised"}
    low, high = report["words"]["methods"]["leave_one_out"]["comprehensiveness_interval"]
    assert low <= report["words"]["methods"]["leave_one_out"]["comprehensiveness"] <= high


def reviews_of_several_sentences() -> RaggedBatch:
    return flat_batch(np.random.default_rng(0).integers(0, len(WORDS), 40), np.array([7, 3, 10, 10, 5, 5]), np.array([3, 3]))


def test_separate_batches_give_the_same_report_as_one_batch() -> None:
    network, batch = tiny_network(), reviews_of_several_sentences()
    whole = faithfulness.report(network, batch, words=False)
    halves = []
    for first, last in ((0, batch.num_reviews // 2), (batch.num_reviews // 2, batch.num_reviews)):
        sentences = slice(int(batch.review_lengths[:first].sum()), int(batch.review_lengths[:last].sum()))
        tokens = slice(int(batch.sentence_lengths[: sentences.start].sum()), int(batch.sentence_lengths[: sentences.stop].sum()))
        part = RaggedBatch(
            token_ids=batch.token_ids[tokens],
            sentence_lengths=batch.sentence_lengths[sentences],
            review_lengths=batch.review_lengths[first:last],
        )
        halves.append(faithfulness.measure(network, part, words=False))
    joined = faithfulness.summarise(halves)
    assert joined["num_reviews"] == whole["num_reviews"]
    for method in ("leave_one_out", "attention", "best_order", "worst_order"):
        for name in ("comprehensiveness", "sufficiency", "comprehensiveness_interval"):
            found, expected = (each["sentences"]["methods"][method][name] for each in (joined, whole))
            np.testing.assert_allclose(found, expected, atol=1e-6)
    assert joined["sentences"]["kendall"]["attention"]["leave_one_out"] == pytest.approx(
        whole["sentences"]["kendall"]["attention"]["leave_one_out"]
    )


def test_the_best_order_takes_out_the_largest_effect_first_and_the_worst_the_smallest() -> None:
    network, batch = tiny_network(), reviews_of_several_sentences()
    leave_one_out = faithfulness.sentence_rankings(network, batch)["leave_one_out"]
    ends = np.cumsum(batch.review_lengths.numpy())[:-1]
    for strongest_first, pick in ((True, np.argmax), (False, np.argmin)):
        values = faithfulness.greedy_order(network, batch, strongest_first=strongest_first)
        for order, effect in zip(np.split(values, ends), np.split(leave_one_out, ends), strict=True):
            assert order.argmax() == pick(effect)
    methods = faithfulness.report(network, batch, words=False)["sentences"]["methods"]
    assert methods["best_order"]["comprehensiveness"] >= methods["leave_one_out"]["comprehensiveness"] - 1e-9
    assert methods["worst_order"]["comprehensiveness_normalised"] == 0


def test_the_best_order_knows_the_ngrams_of_the_network() -> None:
    plain, batch = tiny_network(), reviews_of_several_sentences()
    words = np.arange(1, len(WORDS), dtype=np.uint32)
    hashes = np.unique(ngram_hashes(np.array(words), np.ones(len(words), np.int64))[:, 0])
    hashes = hashes[hashes > 0]
    table = NgramTable.of(hashes, np.random.default_rng(0).normal(0, 3, (len(hashes), 1)).astype(np.float32))
    network = HAN(plain.config, num_words=len(WORDS), embedding_size=7, num_classes=2, ngrams=table).eval()
    torch.manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    leave_one_out = faithfulness.sentence_rankings(network, batch)["leave_one_out"]
    values = faithfulness.greedy_order(network, batch, strongest_first=True)
    ends = np.cumsum(batch.review_lengths.numpy())[:-1]
    for order, effect in zip(np.split(values, ends), np.split(leave_one_out, ends), strict=True):
        assert order.argmax() == effect.argmax()


def test_the_plot_is_one_svg_that_names_every_method() -> None:
    results = faithfulness.report(tiny_network(), reviews_of_several_sentences(), words=False)
    drawn = faithfulness.plot(results)
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert all(method.replace("_", " ") in drawn for method in results["sentences"]["methods"])


def test_the_effects_of_random_weights_do_not_rank_sentences_like_those_of_the_network() -> None:
    network = tiny_network()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    rankings = faithfulness.sentence_rankings(network, BATCH)
    assert not np.allclose(rankings["random_weights"], rankings["leave_one_out"])
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    again = faithfulness.sentence_rankings(network, BATCH)["random_weights"]
    np.testing.assert_array_equal(rankings["random_weights"], again)


def test_the_controls_fail_where_a_few_sentences_decide() -> None:
    """Sentences of one word: two words decide, and the others say nothing."""
    network = tiny_network()
    generator = np.random.default_rng(0)
    with torch.no_grad():
        network.embedding.weight[3:] = 0
    ids = generator.integers(3, len(WORDS), 40 * 12)
    for review in range(40):
        ids[12 * review + generator.integers(12)] = 1 + review % 2
    batch = flat_batch(ids, np.ones(len(ids), dtype=np.int32), np.full(40, 12))
    results = faithfulness.report(network, batch, words=False)
    assert faithfulness.failures(results) == []


def test_a_control_that_does_not_fail_is_named() -> None:
    methods = {"leave_one_out": {"comprehensiveness": 0.2, "comprehensiveness_interval": [0.1, 0.3]}, "random": {"comprehensiveness": 0.15}}
    assert faithfulness.failures({"sentences": {"methods": methods}}) == ["sentences: random is as comprehensive as leave_one_out"]
