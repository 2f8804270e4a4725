"""The choice and order of the reviews on a page."""

import dataclasses

from han.explain.gallery import choose
from han.explain.html import page
from han.types import Score, Sentence
from tests.helpers.scores import REVIEW, read


def score(probability: float, effect: float = 0.0) -> Score:
    sentence = Sentence(start=0, end=1, attention=1.0, words=None, effect=effect)
    return dataclasses.replace(read(REVIEW), probability=probability, sentences=(sentence,))


SCORES = [score(0.6, 1.0), score(0.9, -3.0), score(0.7, 2.0), score(0.8)]
LABELS = ["positive", "negative", "negative", None]


def test_the_most_and_the_least_confident_predictions_come_first() -> None:
    assert choose(SCORES, LABELS, order="surest", number=2) == [1, 3]
    assert choose(SCORES, LABELS, order="least_sure", number=2) == [0, 2]


def test_wrong_predictions_come_first_by_confidence() -> None:
    assert choose(SCORES, LABELS, order="wrong", number=9) == [1, 2]


def test_the_review_with_the_largest_sentence_effect_comes_first() -> None:
    assert choose(SCORES, LABELS, order="most_changed", number=9) == [1, 2, 0, 3]


def test_a_random_order_is_a_permutation_that_depends_on_the_seed() -> None:
    orders = [choose(SCORES * 5, LABELS * 5, order="random", number=20, seed=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(20))


def test_wrong_predictions_are_marked_and_a_switch_hides_the_others() -> None:
    drawn = page([("a", REVIEW, read(REVIEW)), ("b", REVIEW, read(REVIEW))], title="Two", labels=["negative", "positive"])
    assert drawn.count('<span class="wrong">labelled <bdi>negative</bdi></span>') == 2  # in the index and at the review
    assert "Show only the 1 wrong of 2 labelled answers." in drawn
    assert drawn.count('<article class="han right"') == 1


def test_no_prediction_is_marked_without_labels() -> None:
    drawn = page([("a", REVIEW, read(REVIEW))], title="One")
    assert 'class="wrong"' not in drawn
    assert 'class="errors"' not in drawn


def test_markup_in_a_label_stays_text() -> None:
    drawn = page([("a", REVIEW, read(REVIEW))], title="One", labels=["<script>alert(1)</script>"])
    assert "<script" not in drawn
