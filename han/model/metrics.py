"""Metrics from probabilities and labels, for two or more classes.

Metrics of parts are merged by sums (`Sums`), never by averaging averages. AUC and calibration need the order of all reviews, so they are
computed once from all probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64s: TypeAlias = NDArray[np.float64]
Int64s: TypeAlias = NDArray[np.int64]

CALIBRATION_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4
LENGTH_SLICES = 10
COVERAGE_STEPS = 20
FEW_REVIEWS = 200  # with fewer, the 95% interval of an accuracy of 90% is wider than 85% to 93%
_Z_95 = 1.959963984540054  # standard normal, two-sided 95%
_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)  # a float32 softmax may round to 0; its logarithm stays finite
_BETA_BOUNDS = (0.01, 100.0)  # of 1 / temperature


def measure(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    label_names: Sequence[str],
    num_tokens: ArrayLike | None = None,
    ratings: ArrayLike | None = None,
) -> dict[str, Any]:
    """Every figure, ready for JSON, of `probabilities` float [R, C] against `labels` int [R], R >= 1.

    `majority` is the accuracy of always answering the most frequent label. `f1` is the macro mean over the classes that occur, for two
    classes as well; `f1_by_label`, `precision_by_label` and `recall_by_label` have the values of each class. `log_loss` is in
    nats, `brier` is the squared error summed over classes (0 to 2), `expected_calibration_error` is of the answer's probability.
    `num_tokens` int [R] adds accuracy by tenths of the length, `ratings` float [R] (NaN is unknown) adds accuracy by stars.
    """
    shares = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.int64)
    correct = shares.argmax(axis=1) == truth
    sums = count(shares, truth)
    figures: dict[str, Any] = {
        "num_reviews": sums.num_reviews,
        "accuracy": sums.accuracy,
        "accuracy_interval": list(wilson(sums.num_correct, sums.num_reviews)),
        "majority": _majority(sums, label_names),
        "f1": sums.macro_f1,
        **{
            f"{name}_by_label": {label: value for label, value in zip(label_names, values, strict=True) if value is not None}
            for name, values in (("f1", sums.f1), ("precision", sums.precision), ("recall", sums.recall))
        },
        "auc": auc(shares, truth),
        "log_loss": sums.log_loss / sums.num_reviews,
        "brier": sums.squared_error / sums.num_reviews,
        "expected_calibration_error": calibration_error(shares.max(axis=1), correct),
        "confusion": {
            true_name: dict(zip(label_names, row.tolist(), strict=True)) for true_name, row in zip(label_names, sums.confusion, strict=True)
        },
    }
    if num_tokens is not None:
        figures["accuracy_by_length"] = accuracy_by_length(correct, np.asarray(num_tokens, dtype=np.int64))
    if ratings is not None:
        figures["accuracy_by_rating"] = accuracy_by_rating(correct, np.asarray(ratings, dtype=np.float64))
    return figures


def best_epoch(history: Sequence[dict[str, Any]]) -> int:
    """Index of the epoch with the lowest development log loss, then the highest accuracy, then the first. Accuracy is a coarser measure."""
    return min(range(len(history)), key=lambda index: (history[index]["log_loss"], -history[index]["accuracy"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Sums over a part of a data set. Add the parts, then read the figures."""

    confusion: Int64s  # [C, C], reviews; a row is a true label, a column an answer
    log_loss: float  # nats, over all reviews
    squared_error: float  # over all reviews and classes

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            confusion=self.confusion + other.confusion,
            log_loss=self.log_loss + other.log_loss,
            squared_error=self.squared_error + other.squared_error,
        )

    @property
    def num_reviews(self) -> int:
        return int(self.confusion.sum())

    @property
    def num_correct(self) -> int:
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_reviews

    @property
    def f1(self) -> list[float | None]:
        """One for each class: 2 TP / (2 TP + FP + FN); None for a class that is neither a truth nor an answer."""
        numerators = 2 * np.diagonal(self.confusion)
        denominators = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return [float(above / below) if below else None for above, below in zip(numerators, denominators, strict=True)]

    @property
    def precision(self) -> list[float | None]:
        """One for each class: TP / (TP + FP); None for a class that is never the answer."""
        return _shares(np.diagonal(self.confusion), self.confusion.sum(axis=0))

    @property
    def recall(self) -> list[float | None]:
        """One for each class: TP / (TP + FN); None for a class that no review has."""
        return _shares(np.diagonal(self.confusion), self.confusion.sum(axis=1))

    @property
    def macro_f1(self) -> float:
        return float(np.mean([value for value in self.f1 if value is not None]))


def doubts(figures: dict[str, Any]) -> list[str]:
    """Reasons, as sentences, why figures of `measure` say little: few reviews, or an accuracy that does not beat the majority class."""
    texts = []
    low, high = figures["accuracy_interval"]
    if figures["num_reviews"] < FEW_REVIEWS:
        texts.append(f"{figures['num_reviews']:,} labelled reviews are few: the 95% interval of the accuracy is {low:.1%} to {high:.1%}.")
    majority = figures["majority"]
    if low <= majority["accuracy"]:
        clearly = "clearly " if figures["accuracy"] > majority["accuracy"] else ""
        texts.append(
            f"The accuracy of {figures['accuracy']:.2%} does not {clearly}beat the majority class: "
            f"always answering {majority['label']} is right in {majority['accuracy']:.2%}."
        )
    return texts


def count(probabilities: Float64s, labels: Int64s) -> Sums:
    """The sums of one part: `probabilities` [R, C], `labels` [R], R may be 0."""
    num_classes = probabilities.shape[1]
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    truth = np.eye(num_classes)[labels]
    return Sums(
        confusion=confusion,
        log_loss=float(-np.log(np.maximum(own, _LEAST_PROBABILITY)).sum()),
        squared_error=float(((probabilities - truth) ** 2).sum()),
    )


def softmax(logits: ArrayLike) -> Float64s:
    """`logits` [R, C] as probabilities, in double precision so that close calls stay apart."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)


def wilson(num_correct: int, num_reviews: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927): it stays within 0 and 1 and needs no large sample."""
    share, spread = num_correct / num_reviews, _Z_95**2 / num_reviews
    centre = (share + spread / 2) / (1 + spread)
    half = _Z_95 * np.sqrt(share * (1 - share) / num_reviews + spread / (4 * num_reviews)) / (1 + spread)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def auc(probabilities: Float64s, labels: Int64s) -> float | None:
    """Area under the ROC curve, exact, a tie counts one half: of the second class for two classes, else the mean of each class
    against the rest. A class that all or none of the reviews have is left out; None where no class is left.
    """
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [_area(probabilities[:, each], labels == each) for each in classes]
    defined = [area for area in areas if area is not None]
    return float(np.mean(defined)) if defined else None


def _area(scores: Float64s, positive: NDArray[np.bool_]) -> float | None:
    """Mann and Whitney's statistic over all pairs, from the mean ranks of tied scores."""
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return None
    _, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(sizes) - (sizes - 1) / 2  # from 1
    wins = mean_ranks[place][positive].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * num_negative))


def calibration_error(confidence: Float64s, correct: NDArray[np.bool_]) -> float:
    """Expected calibration error: |share correct - mean confidence| over bins of equally many reviews, weighted by their size.

    Bins of equal mass, because most answers are near certain and bins of equal width would leave most of them empty. Equal confidences
    fall into one bin, so the order of the reviews does not matter.
    """
    gaps = np.bincount(_equal_bins(confidence), weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration_curve(confidence: Float64s, correct: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """The bins of `calibration_error`, the least confident first: reviews, mean confidence, accuracy and its 95% interval."""
    bins = _equal_bins(confidence)
    return [{"confidence": float(confidence[bins == each].mean()), **_slice(correct[bins == each])} for each in np.unique(bins)]


def accuracy_at_coverage(confidence: Float64s, correct: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Accuracy of the most confident 5, 10, ... 100% of the reviews, and the lowest confidence among them."""
    order = np.argsort(-confidence, kind="stable")
    rows = []
    for step in range(1, COVERAGE_STEPS + 1):
        kept = order[: max(1, round(len(order) * step / COVERAGE_STEPS))]
        rows.append({"coverage": step / COVERAGE_STEPS, "least_confidence": float(confidence[kept[-1]]), **_slice(correct[kept])})
    return rows


def _equal_bins(confidence: Float64s) -> NDArray[np.int64]:
    """The bin of each review [R], of equally many reviews."""
    edges = np.unique(np.quantile(confidence, np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS))
    return np.searchsorted(edges, confidence, side="left")


def _majority(sums: Sums, label_names: Sequence[str]) -> dict[str, Any]:
    of_labels = sums.confusion.sum(axis=1)
    return {"label": label_names[int(of_labels.argmax())], "accuracy": float(of_labels.max() / sums.num_reviews)}


def _shares(above: Int64s, below: Int64s) -> list[float | None]:
    return [float(one / other) if other else None for one, other in zip(above, below, strict=True)]


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature, > 0, by which `logits` [R, C] are divided so that their probabilities fit `labels` int [R] best.

    Log loss is convex in 1 / temperature, so Newton's steps, held within a shrinking bracket, find its one minimum. Targets are Platt's
    (1999): a class of N reviews is worth (N + 1) / (N + C), not 1, without which logits that make no mistake would want temperature 0.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    num_classes = values.shape[1]
    sizes = np.bincount(truth, minlength=num_classes)[truth][:, None]
    targets = (np.eye(num_classes)[truth] * sizes + 1) / (sizes + num_classes)
    (low, high), beta = _BETA_BOUNDS, 1.0
    for _ in range(100):  # Newton needs about 6; a bisection alone would need 50
        probabilities = softmax(values * beta)
        mean = (probabilities * values).sum(axis=1, keepdims=True)
        slope = float((mean[:, 0] - (targets * values).sum(axis=1)).sum())
        curvature = float((probabilities * (values - mean) ** 2).sum())
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curvature if curvature > 0 else beta
        following = step if low <= step <= high else (low + high) / 2
        if abs(following - beta) <= 1e-12 * beta:
            break
        beta = following
    return 1 / beta


def accuracy_by_length(correct: NDArray[np.bool_], num_tokens: Int64s) -> list[dict[str, Any]]:
    """Accuracy by tenths of the length in tokens; reviews of one length stay together, so slices may differ in size."""
    edges = np.unique(np.quantile(num_tokens, np.arange(1, LENGTH_SLICES) / LENGTH_SLICES))
    slices = np.searchsorted(edges, num_tokens, side="left")
    return [
        {"tokens": [int(num_tokens[chosen].min()), int(num_tokens[chosen].max())], **_slice(correct[chosen])}
        for chosen in (slices == each for each in np.unique(slices))
    ]


def accuracy_by_rating(correct: NDArray[np.bool_], ratings: Float64s) -> list[dict[str, Any]]:
    """Accuracy for each rating that occurs, lowest first; reviews without one (NaN) are left out."""
    return [{"rating": float(each), **_slice(correct[ratings == each])} for each in np.unique(ratings[~np.isnan(ratings)])]


def _slice(correct: NDArray[np.bool_]) -> dict[str, Any]:
    num_correct, num_reviews = int(correct.sum()), len(correct)
    return {
        "num_reviews": num_reviews,
        "accuracy": num_correct / num_reviews,
        "accuracy_interval": list(wilson(num_correct, num_reviews)),
    }
