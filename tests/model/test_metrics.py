import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from han.model import metrics

RANDOM = np.random.default_rng(7)
NAMES = ("negative", "positive")


def two(positive: list[float]) -> np.ndarray:
    """Probabilities of both classes from those of the second."""
    return np.array([[1 - each, each] for each in positive])


def test_figures_of_a_small_example_equal_those_counted_by_hand() -> None:
    figures = metrics.measure(two([0.9, 0.8, 0.4, 0.3]), [1, 0, 1, 0], label_names=NAMES)
    assert figures["accuracy"] == 0.5
    assert figures["auc"] == 0.75
    assert figures["f1"] == 0.5
    assert figures["f1_by_label"] == {"negative": 0.5, "positive": 0.5}
    assert figures["confusion"] == {"negative": {"negative": 1, "positive": 1}, "positive": {"negative": 1, "positive": 1}}
    assert figures["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.2) + math.log(0.4) + math.log(0.7)) / 4)
    assert figures["brier"] == pytest.approx(2 * (0.01 + 0.64 + 0.36 + 0.09) / 4)


def test_figures_survive_json_and_cover_every_slice() -> None:
    figures = metrics.measure(two([0.9, 0.1, 0.6]), [1, 0, 0], label_names=NAMES, num_tokens=[10, 20, 30], ratings=[9.0, 1.0, float("nan")])
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert [each["tokens"] for each in figures["accuracy_by_length"]] == [[10, 10], [20, 20], [30, 30]]
    assert [(each["rating"], each["accuracy"]) for each in figures["accuracy_by_rating"]] == [(1.0, 1.0), (9.0, 1.0)]


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_sums_over_parts_equal_the_sums_over_the_whole(num_classes: int) -> None:
    probabilities, labels = metrics.softmax(RANDOM.normal(size=(50, num_classes))), RANDOM.integers(num_classes, size=50)
    merged = metrics.count(probabilities[:13], labels[:13]) + metrics.count(probabilities[13:], labels[13:])
    whole = metrics.count(probabilities, labels)
    np.testing.assert_array_equal(merged.confusion, whole.confusion)
    assert (merged.log_loss, merged.squared_error) == pytest.approx((whole.log_loss, whole.squared_error))


def test_f1_and_auc_leave_out_a_class_that_never_occurs() -> None:
    figures = metrics.measure([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], [0, 1], label_names=("a", "b", "c"))
    assert figures["f1_by_label"] == {"a": 1.0, "b": 1.0}
    assert (figures["f1"], figures["auc"]) == (1.0, 1.0)


def test_auc_is_undefined_when_all_reviews_are_of_one_class() -> None:
    assert metrics.measure(two([0.9, 0.2]), [1, 1], label_names=NAMES)["auc"] is None


@given(
    st.integers(2, 30).flatmap(
        lambda size: st.tuples(
            arrays.arrays(np.float64, size, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
            arrays.arrays(np.int64, size, elements=st.integers(0, 1)),
        )
    )
)
def test_auc_equals_the_share_of_pairs_in_the_right_order(case: tuple[np.ndarray, np.ndarray]) -> None:
    positive, labels = case
    pairs = [(one > other) + (one == other) / 2 for one in positive[labels == 1] for other in positive[labels == 0]]
    assert metrics.auc(two(positive.tolist()), labels) == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_the_interval_equals_the_textbook_formula() -> None:
    # Agresti and Coull 1998, Wilson's interval: 0 of 10 ends at z^2 / (n + z^2)
    assert metrics.wilson(0, 10) == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.2775, abs=1e-4))
    assert metrics.wilson(9123, 10000) == (pytest.approx(0.9066, abs=1e-4), pytest.approx(0.9177, abs=1e-4))


@pytest.mark.parametrize(("right", "total"), [(1, 1), (5, 5), (3, 7)])
def test_the_interval_contains_the_share_and_stays_between_0_and_1(right: int, total: int) -> None:
    low, high = metrics.wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1


def test_a_calibrated_model_has_no_calibration_error() -> None:
    assert metrics.calibration_error(np.full(10, 0.8), np.arange(10) < 8) == pytest.approx(0.0, abs=1e-12)


def test_calibration_error_is_the_gap_of_an_overconfident_model() -> None:
    assert metrics.calibration_error(np.full(10, 0.9), np.arange(10) < 5) == pytest.approx(0.4)


def test_calibration_error_does_not_depend_on_the_order_of_reviews() -> None:
    confidence, correct = RANDOM.choice([0.5, 0.6, 0.9, 0.99], size=200), RANDOM.random(200) < 0.8
    order = RANDOM.permutation(200)
    assert metrics.calibration_error(confidence[order], correct[order]) == pytest.approx(metrics.calibration_error(confidence, correct))


@pytest.mark.parametrize("stretch", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_fitted_temperature_recovers_the_scale_of_the_logits(stretch: float, num_classes: int) -> None:
    logits = RANDOM.normal(size=(20_000, num_classes))
    labels = (metrics.softmax(logits).cumsum(axis=1) < RANDOM.random(len(logits))[:, None]).sum(axis=1)
    assert metrics.fit_temperature(logits * stretch, labels) == pytest.approx(stretch, rel=0.05)


def test_no_other_temperature_has_a_lower_log_loss() -> None:
    logits = RANDOM.normal(size=(4_000, 2)) * 3
    labels = (RANDOM.random(4_000) < metrics.softmax(logits / 2)[:, 1]).astype(int)
    best = metrics.fit_temperature(logits, labels)
    losses = {each: metrics.count(metrics.softmax(logits / (best * each)), labels).log_loss for each in (0.97, 1.0, 1.03)}
    assert min(losses, key=losses.__getitem__) == 1.0


def test_logits_without_an_error_keep_a_temperature_above_0() -> None:
    logits = np.array([[3.0, -3.0], [-2.0, 2.0]] * 20)
    assert 0.2 < metrics.fit_temperature(logits, [0, 1] * 20) < 2


def test_uninformative_logits_have_temperature_1() -> None:
    assert metrics.fit_temperature(np.zeros((6, 3)), [0, 1, 2] * 2) == 1.0


def test_precision_recall_and_majority_equal_those_counted_by_hand() -> None:
    figures = metrics.measure(two([0.9, 0.8, 0.4]), [1, 0, 1], label_names=NAMES)
    assert figures["precision_by_label"] == {"negative": 0.0, "positive": 0.5}
    assert figures["recall_by_label"] == {"negative": 0.0, "positive": 0.5}
    assert figures["majority"] == {"label": "positive", "accuracy": pytest.approx(2 / 3)}


def test_the_calibration_curve_holds_every_review_once_and_gives_the_calibration_error() -> None:
    confidence, correct = RANDOM.uniform(0.5, 1, size=1_000), RANDOM.random(1_000) < 0.8
    bins = metrics.calibration_curve(confidence, correct)
    assert sum(each["num_reviews"] for each in bins) == 1_000
    error = sum(abs(each["accuracy"] - each["confidence"]) * each["num_reviews"] for each in bins) / 1_000
    assert error == pytest.approx(metrics.calibration_error(confidence, correct))


def test_accuracy_at_coverage_is_that_of_the_most_confident_reviews() -> None:
    confidence = np.array([0.6, 0.9, 0.8, 0.7])
    steps = {each["coverage"]: each for each in metrics.accuracy_at_coverage(confidence, np.array([False, True, True, False]))}
    assert (steps[0.5]["accuracy"], steps[0.5]["least_confidence"], steps[0.5]["num_reviews"]) == (1.0, 0.8, 2)
    assert (steps[1.0]["accuracy"], steps[1.0]["num_reviews"]) == (0.5, 4)


@pytest.mark.parametrize(
    ("num_right", "num_reviews", "reasons"),
    [(900, 1_000, 0), (505, 1_000, 1), (490, 1_000, 1), (95, 100, 1), (55, 100, 2)],
)
def test_few_reviews_and_an_accuracy_near_the_majority_class_cause_warnings(num_right: int, num_reviews: int, reasons: int) -> None:
    labels = [0, 1] * (num_reviews // 2)
    positive = [abs(label - (0.1 if row < num_right else 0.9)) for row, label in enumerate(labels)]
    assert len(metrics.doubts(metrics.measure(two(positive), labels, label_names=NAMES))) == reasons


def test_the_best_epoch_has_the_lowest_log_loss_then_the_highest_accuracy() -> None:
    figures = [(0.9, 0.3), (0.95, 0.28), (0.94, 0.2), (0.945, 0.2)]
    assert metrics.best_epoch([{"accuracy": accuracy, "log_loss": log_loss} for accuracy, log_loss in figures]) == 3
