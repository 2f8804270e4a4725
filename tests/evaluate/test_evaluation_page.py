"""The page of an evaluation shows all figures, warns about weak ones, and escapes the text of reviews."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from han.evaluate.evaluation_page import page
from han.model import metrics
from tests.helpers.scores import REVIEW, read

NAMES = ("negative", "positive")


def figures(num_reviews: int, share_right: float) -> dict[str, Any]:
    random = np.random.default_rng(1)
    labels = np.arange(num_reviews) % 2
    right = np.arange(num_reviews) < share_right * num_reviews
    confidence = random.uniform(0.5, 1, size=num_reviews)
    positive = np.where(right == (labels == 1), confidence, 1 - confidence)
    measured = metrics.measure(np.stack([1 - positive, positive], axis=1), labels, label_names=NAMES, num_tokens=labels + 5)
    measured["calibration"] = metrics.calibration_curve(confidence, right)
    measured["accuracy_at_coverage"] = metrics.accuracy_at_coverage(confidence, right)
    counts = {"rows_in": num_reviews, "unlabelled": 0, "quarantined": 0, "num_unfamiliar": 3, "num_uncertain": 0}
    return measured | counts | {"model": "3fa9", "data": "<b>test</b>.csv", "test_split": True}


def test_the_page_has_every_part_and_runs_nothing() -> None:
    drawn = page(figures(1_000, 0.9), [("id <i>7</i>, labelled negative", REVIEW, read(REVIEW))])
    for part in (
        "label and prediction",
        "Precision and recall",
        "Calibration",
        "coverage",
        "by length",
        "Worst mistakes",
        "majority class",
    ):
        assert part in drawn
    assert drawn.count("<svg viewBox") == 2
    assert "<script" not in drawn
    assert "<b>test" not in drawn
    assert "<i>7" not in drawn
    assert 'class="warning"' not in drawn


def test_the_page_warns_of_few_reviews_and_of_an_accuracy_like_that_of_the_majority_class() -> None:
    drawn = page(figures(100, 0.5), [])
    assert "labelled reviews are few" in drawn
    assert "does not beat the majority class" in drawn
    assert "Worst mistakes" not in drawn


def test_a_mistake_that_the_model_cannot_read_has_its_warning() -> None:
    drawn = page(figures(1_000, 0.9), [("7", REVIEW, replace(read(REVIEW), unfamiliar=True))])
    assert "Do not trust this answer" in drawn
