"""The cost model of docs/scale.md recovers known parameters and ignores held-out runs, and the page shows the measurements."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plan
from benchmarks.plan import ScoreFit, ScoreRun, TrainFit, TrainRun
from benchmarks.scale_page import render

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "scaling.json"
PRICES: dict[str, Any] = json.loads((ROOT / "benchmarks" / "prices.json").read_text(encoding="utf-8"))
SCORE = ScoreFit(start_s=6.0, review_s=0.003, shard_s=0.03, two=1.8, cores=2)
TRAIN = TrainFit(token_s=2e-5, step_s=0.02, exchange_s=0.03, cores=2)


def score_run(actors: int, reviews: int, shards: int, *, held_out: bool = False, off: float = 1.0) -> ScoreRun:
    seconds = SCORE.seconds(actors, reviews, shards, SCORE.cores) * off
    return ScoreRun(actors=actors, reviews=reviews, shards=shards, seconds=seconds, held_out=held_out)


def train_run(workers: int, batch_tokens: int, *, held_out: bool = False, off: float = 1.0) -> TrainRun:
    run = TrainRun(workers=workers, batch_tokens=batch_tokens, reviews=2_000, tokens=500_000, seconds=0.0, held_out=held_out)
    seconds = TRAIN.seconds(workers, run.tokens, run.steps, TRAIN.cores) * off
    return TrainRun(workers=workers, batch_tokens=batch_tokens, reviews=2_000, tokens=500_000, seconds=seconds, held_out=held_out)


SCORED = [score_run(1, 1_500, 4), score_run(1, 4_500, 4), score_run(1, 200, 200), score_run(2, 6_000, 8)]
TRAINED = [train_run(1, 16_384), train_run(1, 4_096), train_run(2, 16_384)]
MEASURED: dict[str, Any] = {
    "data": "made up",
    "command": "none",
    "cores": 2,
    "load_before": 0.0,
    "took_s": 1.0,
    "date": "today",
    "commit": "none",
    "scoring": plan.as_json([*SCORED, score_run(4, 6_000, 8, held_out=True, off=1.1)]),
    "training": plan.as_json([*TRAINED, train_run(4, 16_384, held_out=True, off=0.8)]),
    "driver": {
        "shards": 300,
        "record_bytes": 500.0,
        "items_bytes": 200.0,
        "manifest_bytes": 700.0,
        "driver_bytes": 5_000.0,
        "plan_s": 0.001,
        "publish_s": 0.002,
        "dispatch_s": 0.01,
    },
    "busiest": "driver",
    "input_bytes": 800.0,
    "output_bytes": {"words": 2_000.0, "sentences": 1_000.0, "none": 850.0},
}
is_measured = pytest.mark.skipif(not RESULTS.exists(), reason="not measured yet: make bench-scaling")


def test_the_fit_of_scoring_recovers_the_parameters_of_simulated_runs() -> None:
    fit = plan.fit_scoring(SCORED, 2)
    assert (fit.start_s, fit.review_s, fit.shard_s, fit.two) == pytest.approx((6.0, 0.003, 0.03, 1.8))


def test_the_fit_of_training_recovers_the_parameters_of_simulated_runs() -> None:
    fit = plan.fit_training(TRAINED, 2)
    assert (fit.token_s, fit.step_s, fit.exchange_s) == pytest.approx((2e-5, 0.02, 0.03))


def test_held_out_runs_do_not_change_the_fit_and_show_their_error() -> None:
    scored = [*SCORED, score_run(4, 6_000, 8, held_out=True, off=2.0)]
    trained = [*TRAINED, train_run(4, 16_384, held_out=True, off=2.0)]
    assert plan.fit_scoring(scored, 2) == plan.fit_scoring(SCORED, 2)
    assert plan.fit_training(trained, 2) == plan.fit_training(TRAINED, 2)
    assert plan.worst(plan.score_errors(plan.fit_scoring(scored, 2), scored)) == pytest.approx(0.5)
    assert plan.worst(plan.train_errors(plan.fit_training(trained, 2), trained)) == pytest.approx(0.5)


def test_cores_and_shards_limit_the_predicted_speed() -> None:
    assert SCORE.seconds(4, 6_000, 8, 2) == SCORE.seconds(2, 6_000, 8, 2)
    assert SCORE.seconds(2, 6_000, 1, 2) == SCORE.seconds(1, 6_000, 1, 2)


def test_ten_times_the_reviews_need_ten_times_the_processor_time_and_storage() -> None:
    small, large = (plan.cost(size, SCORE, MEASURED, PRICES) for size in (10**9, 10**10))
    assert [large[key] / small[key] for key in ("core_s", "input_gb", "output_gb", "manifest_gb")] == pytest.approx([10] * 4)


def test_the_planned_nodes_score_within_the_target_hours() -> None:
    for size in plan.SIZES:
        assert plan.cost(size, SCORE, MEASURED, PRICES)["pool_s"] <= PRICES["target_hours"]["value"] * 3600 + SCORE.start_s


def test_limits_are_sorted_by_the_number_of_reviews() -> None:
    driver = {**MEASURED["driver"], "manifest_bytes": 1e9}
    assert plan.limits(driver, 16)[0]["what"] == "the manifest, one JSON file"
    assert plan.limits(driver, 16)[0]["reviews"] == plan.ROWS_PER_SHARD


def test_the_page_shows_a_formula_for_an_unknown_price_and_money_for_a_known_one() -> None:
    unknown, known = copy.deepcopy(PRICES), copy.deepcopy(PRICES)
    unknown["node"]["usd_per_hour"] = None
    known["storage_usd_per_gb_month"]["value"] = 0.02
    assert "money, at an unknown price a node-hour | unknown" in render(MEASURED, unknown)
    assert "node.usd_per_hour" in render(MEASURED, unknown)
    assert "GB x unknown" in render(MEASURED, unknown)
    assert "GB x unknown" not in render(MEASURED, known)
    assert plan.cost(10**9, SCORE, MEASURED, known)["storage_usd"] == pytest.approx(10**9 * MEASURED["output_bytes"]["words"] / 1e9 * 0.02)


def test_every_price_has_a_source_and_a_date() -> None:
    assert [name for name, entry in PRICES.items() if not (entry["source"] and entry["date"])] == []


def test_the_page_shows_the_errors_of_held_out_runs() -> None:
    page = render(MEASURED, PRICES)
    assert "held out, -9% |" in page
    assert "held out, +25% |" in page
    assert "**The largest error of a held-out row is 25%.**" in page


def test_the_page_has_the_plan_for_every_size() -> None:
    page = render(MEASURED, PRICES)
    for size in plan.SIZES:
        assert f"{plan.cost(size, plan.fit_scoring(SCORED, 2), MEASURED, PRICES)['shards']:,}" in page
        assert f"{size:,} reviews" in page


@is_measured
@pytest.mark.parametrize(("kind", "processes"), [("scoring", "actors"), ("training", "workers")])
def test_each_model_was_checked_on_at_least_three_held_out_runs(kind: str, processes: str) -> None:
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))[kind]
    assert sum(run["held_out"] for run in runs) >= 3
    assert {run[processes] for run in runs} == {1, 2, 4}


@is_measured
def test_the_page_is_rendered_from_the_measurements() -> None:
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "scale.md").read_text(encoding="utf-8") == render(measured, PRICES)
