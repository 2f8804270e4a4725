"""Render docs/scale.md: benchmarks/scale.template.md filled with the measurements (scaling.json) and the prices (prices.json)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plan
from benchmarks.plan import ROWS_PER_SHARD, SIZES, ScoreFit, ScoreRun, TrainFit, TrainRun

TEMPLATE = Path(__file__).with_name("scale.template.md")
WORD2VEC_TOKENS_PER_S = 326_000  # docs/log.md: gensim on two shared cores
WORD2VEC_PASSES = 5  # `VectorsConfig.epochs`


def render(measured: Mapping[str, Any], prices: Mapping[str, Any]) -> str:
    """The whole page."""
    scoring, runs, training, epochs = plan.as_measured(measured)
    parts = _measured(measured, scoring, runs, training, epochs) | _planned(measured, scoring, prices) | _trained(training, epochs)
    return TEMPLATE.read_text(encoding="utf-8").format_map(parts)


def _measured(
    measured: Mapping[str, Any], scoring: ScoreFit, runs: Sequence[ScoreRun], training: TrainFit, epochs: Sequence[TrainRun]
) -> dict[str, str]:
    scoring_rows = [
        f"| {run.actors} | {run.reviews:,} | {run.shards} | {run.seconds:.1f} | {predicted:.1f} | {_error(run, error)} |"
        for run, predicted, error in plan.score_errors(scoring, runs)
    ]
    training_rows = [
        f"| {run.workers} | {run.batch_tokens:,} | {run.steps} | {run.reviews / run.seconds:.0f} | {run.seconds:.1f} | {predicted:.1f} "
        f"| {_error(run, error)} |"
        for run, predicted, error in plan.train_errors(training, epochs)
    ]
    return {
        **{name: str(measured[name]) for name in ("cores", "date", "commit", "command", "data", "busiest")},
        "took": _time(measured["took_s"]),
        "load": f"{measured['load_before']:.1f}",
        **{f"rate_{actors}": f"{_rate(scoring, runs, actors):,.0f}" for actors in (1, 2, 4)},
        "start": f"{scoring.start_s:.2f}",
        "review_ms": f"{scoring.review_s * 1e3:.3f}",
        "shard_ms": f"{scoring.shard_s * 1e3:.1f}",
        "two": f"{scoring.two:.2f}",
        "scoring_rows": "\n".join(scoring_rows),
        "scoring_worst": f"{plan.worst(plan.score_errors(scoring, runs)):.0%}",
        "train_reviews": f"{epochs[0].reviews:,}",
        "train_tokens": f"{epochs[0].tokens:,}",
        "token_us": f"{training.token_s * 1e6:.2f}",
        "step_ms": f"{training.step_s * 1e3:.1f}",
        "exchange_ms": f"{training.exchange_s * 1e3:.1f}",
        "training_rows": "\n".join(training_rows),
        "training_worst": f"{plan.worst(plan.train_errors(training, epochs)):.0%}",
    }


def _planned(measured: Mapping[str, Any], fit: ScoreFit, prices: Mapping[str, Any]) -> dict[str, str]:
    node, limits = prices["node"], plan.limits(measured["driver"], prices["node"]["memory_gb"])
    rows = [
        f"| {row['what']} | {_per_shard(row)} | {row['limit']} | {row['reviews'] / ROWS_PER_SHARD:,.0f} | {row['reviews']:.1e} |"
        for row in limits
    ]
    unknown = [name for name, entry in prices.items() if entry.get("value", 0) is None]
    unknown += ["node.usd_per_hour"] if node["usd_per_hour"] is None else []
    return {
        "node": node["name"],
        "price": "an unknown price" if node["usd_per_hour"] is None else f"${node['usd_per_hour']:g}",
        "price_source": node["source"],
        "core_speed": _known(prices["core_speed"]["value"]),
        "copy": _known(prices["bucket_copy_s"]["value"]),
        "rows_per_shard": f"{ROWS_PER_SHARD:,}",
        "size_names": " | ".join(f"{size:,} reviews" for size in SIZES),
        "size_dashes": "---|" * len(SIZES),
        "plan_rows": "\n".join(_plan_rows(measured, fit, prices)),
        "input_bytes": f"{measured['input_bytes']:,.0f}",
        **{f"{detail}_bytes": f"{size:,.0f}" for detail, size in measured["output_bytes"].items()},
        "micro_shards": str(measured["driver"]["shards"]),
        "limit_rows": "\n".join(rows),
        "first": limits[0]["what"],
        "first_reviews": f"{limits[0]['reviews']:.0e}",
        "shard_work": _time(ROWS_PER_SHARD * fit.review_s),
        "record_bytes": f"{measured['driver']['record_bytes']:,.0f}",
        "unknown": ", ".join(unknown) or "nothing",
    }


def _plan_rows(measured: Mapping[str, Any], fit: ScoreFit, prices: Mapping[str, Any]) -> list[str]:
    costs = [plan.cost(size, fit, measured, prices) for size in SIZES]
    price, hours = prices["node"]["usd_per_hour"], prices["target_hours"]["value"]
    lines: list[tuple[str, list[str]]] = [
        ("processor time", [_time(each["core_s"]) for each in costs]),
        (f"nodes for scoring in at most {hours:g} h", [f"{each['nodes']:,}" for each in costs]),
        ("listing the input, if each file is a shard", [_time(each["plan_s"]) for each in costs]),
        ("scoring", [_time(each["pool_s"]) for each in costs]),
        ("dispatching shards, at the same time", [_time(each["dispatch_s"]) for each in costs]),
        ("publishing on a disk", [_time(each["publish_s"]) for each in costs]),
        ("**total time with the current code**", [f"**{_time(each['seconds'])}**" for each in costs]),
        ("node-hours", [f"{each['node_hours']:,.2f}" if each["node_hours"] < 10 else f"{each['node_hours']:,.0f}" for each in costs]),
        (f"money, at {'an unknown price' if price is None else f'${price:g}'} a node-hour", [_money(each["usd"]) for each in costs]),
        ("input", [_size(each["input_gb"]) for each in costs]),
        ("output, with word attention", [_size(each["output_gb"]) for each in costs]),
        ("storage of the output, a month", [_money(each["storage_usd"], f"{each['output_gb']:,.0f} GB x unknown") for each in costs]),
        ("shards, and files written", [f"{each['shards']:,}" for each in costs]),
        ("list of shards, a copy in every process", [_size(each["items_gb"]) for each in costs]),
        ("memory of the driver for the shards", [_size(each["driver_gb"]) for each in costs]),
        ("manifest", [_size(each["manifest_gb"]) for each in costs]),
    ]
    return [f"| {name} | {' | '.join(values)} |" for name, values in lines]


def _trained(fit: TrainFit, runs: Sequence[TrainRun]) -> dict[str, str]:
    per_review = runs[0].tokens / runs[0].reviews
    rows = []
    for size in SIZES[:2]:
        times = [plan.epoch(size, fit, per_review, workers) for workers in (1, 8, 64)]
        times += [
            plan.epoch(size, fit, per_review, 64, 64 * plan.BATCH_TOKENS),
            size * per_review * WORD2VEC_PASSES / WORD2VEC_TOKENS_PER_S,
        ]
        rows.append(f"| {size:,} | {' | '.join(map(_time, times))} |")
    return {
        "passes": str(WORD2VEC_PASSES),
        "word2vec": f"{WORD2VEC_TOKENS_PER_S:,}",
        "batch_tokens": f"{plan.BATCH_TOKENS:,}",
        "least_ms": f"{(fit.step_s + fit.exchange(10**6)) * 1e3:.0f}",
        "epoch_rows": "\n".join(rows),
    }


def _rate(fit: ScoreFit, runs: Sequence[ScoreRun], actors: int) -> float:
    """Reviews a second after start-up, in the run of `actors` processes with the most reviews in a shard."""
    run = max((run for run in runs if run.actors == actors), key=lambda run: run.reviews / run.shards)
    return run.reviews / (run.seconds - fit.start_s)


def _error(run: ScoreRun | TrainRun, error: float) -> str:
    return f"held out, {error:+.0%}" if run.held_out else ""


def _known(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


def _per_shard(row: Mapping[str, Any]) -> str:
    return f"{row['per_shard']:,.0f} bytes" if row["unit"] == "bytes" else f"{row['per_shard'] * 1e3:.2f} ms"


def _time(seconds: float) -> str:
    for limit, size, unit in ((120, 1, "s"), (7_200, 60, "min"), (48 * 3_600, 3_600, "h"), (730 * 86_400, 86_400, "days")):
        if seconds < limit:
            return f"{seconds / size:,.1f} {unit}" if seconds / size < 10 else f"{seconds / size:,.0f} {unit}"
    return f"{seconds / (365.25 * 86_400):,.1f} years"


def _size(gb: float) -> str:
    for limit, size, unit in ((0.001, 1e-6, "kB"), (1, 1e-3, "MB"), (1_000, 1, "GB"), (1e6, 1_000, "TB")):
        if gb < limit:
            return f"{gb / size:,.1f} {unit}" if gb / size < 10 else f"{gb / size:,.0f} {unit}"
    return f"{gb / 1e6:,.1f} PB"


def _money(usd: float | None, formula: str = "unknown") -> str:
    if usd is None:
        return formula
    return f"${usd:,.2f}" if usd < 100 else f"${usd:,.0f}"
