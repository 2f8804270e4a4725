"""A small model of the cost of N reviews, fitted to some measured runs and checked against others. It uses neither Ray nor a clock.

Scoring takes  start + (reviews * review_s + shards * shard_s) / speed(processes)  seconds. speed is 1 for one process and `two` for two
processes on two cores; it is limited by the number of cores. An epoch of training takes
tokens * token_s / min(workers, cores) + steps * (step_s + exchange)  seconds, where a ring of w workers exchanges 2 (w - 1) / w of the
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

ROWS_PER_SHARD = 5_000  # size of a shard of a large Parquet file
BATCH_TOKENS = 16_384  # tokens in a step over all workers, the default of `TrainConfig`
SIZES = (10**6, 10**9, 10**11)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRun:
    """One measured run of scoring, start-up included."""

    actors: int
    reviews: int
    shards: int
    seconds: float
    held_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRun:
    """The second epoch of one measured run of training."""

    workers: int
    batch_tokens: int
    reviews: int
    tokens: int
    seconds: float
    held_out: bool

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / self.batch_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFit:
    start_s: float
    review_s: float
    shard_s: float
    two: float  # speed of two processes divided by the speed of one
    cores: int  # of the measured machine

    def speed(self, actors: int, cores: int) -> float:
        """Speed of `actors` processes on `cores` cores, in units of one process on an idle core."""
        busy = min(actors, cores)
        return busy * (1.0 if busy == 1 else self.two / 2)

    def seconds(self, actors: int, reviews: int, shards: int, cores: int) -> float:
        return self.start_s + (reviews * self.review_s + shards * self.shard_s) / self.speed(min(actors, shards), cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFit:
    token_s: float
    step_s: float
    exchange_s: float  # exchange of gradients in a step of two workers
    cores: int

    def exchange(self, workers: int) -> float:
        return self.exchange_s * 2 * (workers - 1) / workers

    def seconds(self, workers: int, tokens: int, steps: int, cores: int) -> float:
        return tokens * self.token_s / min(workers, cores) + steps * (self.step_s + self.exchange(workers))


def fit_scoring(runs: Sequence[ScoreRun], cores: int) -> ScoreFit:
    """Least squares on the runs of one process, then `two` from the runs of two. Held-out runs are not used."""
    used = [run for run in runs if not run.held_out]
    alone = [run for run in used if run.actors == 1]
    rows = np.array([[1.0, run.reviews, run.shards] for run in alone])
    # relative errors, so that a short run counts as much as a long one
    seconds = np.array([run.seconds for run in alone])
    start_s, review_s, shard_s = np.linalg.lstsq(rows / seconds[:, None], np.ones(len(alone)), rcond=None)[0].tolist()
    pairs = [run for run in used if run.actors == 2]
    two = np.mean([(run.reviews * review_s + run.shards * shard_s) / (run.seconds - start_s) for run in pairs])
    return ScoreFit(start_s=start_s, review_s=review_s, shard_s=shard_s, two=float(two), cores=cores)


def fit_training(runs: Sequence[TrainRun], cores: int) -> TrainFit:
    """Costs of tokens and steps from the runs of one worker, of the exchange from the runs of two. Held-out runs are not used."""
    used = [run for run in runs if not run.held_out]
    alone = [run for run in used if run.workers == 1]
    rows = np.array([[run.tokens, run.steps] for run in alone], dtype=float)
    token_s, step_s = np.linalg.lstsq(rows, np.array([run.seconds for run in alone]), rcond=None)[0].tolist()
    pairs = [run for run in used if run.workers == 2]
    exchange_s = np.mean([(run.seconds - run.tokens * token_s / min(2, cores)) / run.steps - step_s for run in pairs])
    return TrainFit(token_s=token_s, step_s=step_s, exchange_s=float(exchange_s), cores=cores)


def score_errors(fit: ScoreFit, runs: Sequence[ScoreRun]) -> list[tuple[ScoreRun, float, float]]:
    """Each run with its predicted seconds and the relative error of the prediction."""
    predictions = [(run, fit.seconds(run.actors, run.reviews, run.shards, fit.cores)) for run in runs]
    return [(run, predicted, predicted / run.seconds - 1) for run, predicted in predictions]


def train_errors(fit: TrainFit, runs: Sequence[TrainRun]) -> list[tuple[TrainRun, float, float]]:
    """The same for training."""
    predictions = [(run, fit.seconds(run.workers, run.tokens, run.steps, fit.cores)) for run in runs]
    return [(run, predicted, predicted / run.seconds - 1) for run, predicted in predictions]


def worst(errors: Sequence[tuple[ScoreRun, float, float]] | Sequence[tuple[TrainRun, float, float]]) -> float:
    """The largest relative error of a held-out run."""
    return max(abs(error) for run, _, error in errors if run.held_out)


def limits(driver: Mapping[str, float], memory_gb: float) -> list[dict[str, Any]]:
    """Costs that grow with the shards: the cost of a shard, its limit, and the reviews that reach it. The lowest limit comes first."""
    costs = [
        ("the list of shards, copied to every process", "items_bytes", "bytes", 1e9, "1 GB a process"),
        (
            "the driver's memory: shards, records, and the manifest as objects and text",
            "driver_bytes",
            "bytes",
            memory_gb * 1e9 / 2,
            "half a node",
        ),
        ("the manifest, one JSON file", "manifest_bytes", "bytes", 1e9, "1 GB"),
        ("listing the input, one file at a time", "plan_s", "s", 3600.0, "an hour"),
        ("dispatching shards: CPU time of the busiest process of the head", "dispatch_s", "s", 24 * 3600.0, "a day"),
        ("publishing: check, rename and record each part", "publish_s", "s", 3600.0, "an hour"),
    ]
    rows = [
        {"what": what, "per_shard": driver[key], "unit": unit, "limit": limit_text, "reviews": limit / driver[key] * ROWS_PER_SHARD}
        for what, key, unit, limit, limit_text in costs
    ]
    return sorted(rows, key=lambda row: row["reviews"])


def cost(reviews: int, fit: ScoreFit, measured: Mapping[str, Any], prices: Mapping[str, Any]) -> dict[str, Any]:
    """The cost of scoring `reviews` reviews with the current code. Amounts of money are None if a price is unknown."""
    node, driver = prices["node"], measured["driver"]
    shards = math.ceil(reviews / ROWS_PER_SHARD)
    speed = prices["core_speed"]["value"] or 1.0
    core_s = (reviews * fit.review_s + shards * fit.shard_s) / (fit.two / 2) / speed
    nodes = max(1, math.ceil(core_s / (prices["target_hours"]["value"] * 3600 * node["cores"])))
    pool_s = fit.start_s + core_s / min(nodes * node["cores"], shards)
    serial_s = {"plan_s": shards * driver["plan_s"], "dispatch_s": shards * driver["dispatch_s"], "publish_s": shards * driver["publish_s"]}
    seconds = serial_s["plan_s"] + max(pool_s, serial_s["dispatch_s"]) + serial_s["publish_s"]
    node_hours = nodes * seconds / 3600
    output_gb = reviews * measured["output_bytes"]["words"] / 1e9
    storage = prices["storage_usd_per_gb_month"]["value"]
    return {
        "reviews": reviews,
        "shards": shards,
        "core_s": core_s,
        "nodes": nodes,
        "pool_s": pool_s,
        **serial_s,
        "seconds": seconds,
        "node_hours": node_hours,
        "input_gb": reviews * measured["input_bytes"] / 1e9,
        "output_gb": output_gb,
        "items_gb": shards * driver["items_bytes"] / 1e9,
        "manifest_gb": shards * driver["manifest_bytes"] / 1e9,
        "driver_gb": shards * driver["driver_bytes"] / 1e9,
        "usd": None if node["usd_per_hour"] is None else node_hours * node["usd_per_hour"],
        "storage_usd": None if storage is None else output_gb * storage,
    }


def epoch(reviews: int, fit: TrainFit, tokens_per_review: float, workers: int, batch_tokens: int = BATCH_TOKENS) -> float:
    """Seconds of one pass over `reviews` reviews, with one worker on each core."""
    tokens = reviews * tokens_per_review
    return fit.seconds(workers, round(tokens), math.ceil(tokens / batch_tokens), workers)


def as_measured(measured: Mapping[str, Any]) -> tuple[ScoreFit, list[ScoreRun], TrainFit, list[TrainRun]]:
    """The runs of a JSON document, and the models fitted to them."""
    scoring = [ScoreRun(**run) for run in measured["scoring"]]
    training = [TrainRun(**run) for run in measured["training"]]
    cores = measured["cores"]
    return fit_scoring(scoring, cores), scoring, fit_training(training, cores), training


def as_json(runs: Sequence[ScoreRun] | Sequence[TrainRun]) -> list[dict[str, Any]]:
    return [asdict(run) for run in runs]
