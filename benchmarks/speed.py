"""How fast is it? `python -m benchmarks.speed --data FILE` (make bench, about 10 minutes, on a machine without other work).

Every comparison alternates its candidates in one run and prints medians and ratios: text, the forward pass, training, cost per token, one
review, the first answer, and raw text to Parquet beside an earlier commit and beside a straightforward pipeline. `--record` writes the
figures into docs/numbers and the picture docs/speed.svg.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq
import torch

import han
from benchmarks import end_to_end, network, text
from benchmarks.numbers import Number, record
from han.explain import charts
from han.model import artifact
from han.model.network import HAN
from han.score.scorer import Scorer

ROOT = Path(__file__).parents[1]
COMMAND = "make bench DATA=imdb/test.parquet"
HELP_JOBS = ("score", "train", "tune", "serve", "evaluate", "explain")
BEFORE = "575541b"
PAGE_FAULTS = "processor time; page faults of torch's backward pass over packed rows are most of the baseline's time"
STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#57606a}.ours{fill:#0072b2}.other{fill:#b8c0c8}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}.other{fill:#5b6570}}</style>"
)

Bars = tuple[str, dict[str, float]]  # a title, and reviews/s by candidate


def number(name: str, what: str, value: str, note: str = "") -> Number:
    return Number(name=name, what=what, value=value, command=COMMAND, note=note)


def texts(data: Path, bars: list[Bars]) -> list[Number]:
    """Text to ids and spans, beside NLTK's loops."""
    comparison = text.compare([data], every=False)
    ratio = median(comparison.ratios)
    print(f"text to ids and spans: {comparison.ours_ms:.3f} ms a review, NLTK's loops {comparison.nltk_ms:.3f} ms")
    print(f"  {comparison.different} of {comparison.count:,} reviews differ")
    print(f"  {ratio:.1f} times as fast as NLTK's loops (median of {len(comparison.ratios)} blocks)", flush=True)
    bars.append(("Text to ids and spans", {network.OURS: 1e3 / comparison.ours_ms, "NLTK": 1e3 / comparison.nltk_ms}))
    what = f"text to ids and spans, sentences included, one core, {comparison.count:,} IMDB reviews: times NLTK's own loops"
    return [number("90-text", what, f"{ratio:.1f} times", f"{comparison.ours_ms:.3f} ms a review; {comparison.different} reviews differ")]


def networks(data: Path, bars: list[Bars], repeats: int) -> list[Number]:
    """Forward and training beside the baselines, and the cost per token."""
    lengths = network.read_lengths(data)
    forward, share = network.forward(lengths, repeats)
    forward.show()
    print(f"  {share:.0%} of the floor that the GEMM rate of this run gives")
    training = network.training(lengths, repeats)
    training.show()
    bars += [("Forward pass", forward.reviews_per_s), ("Training", training.reviews_per_s)]
    print("cost per token")
    costs = network.costs(lengths)
    for name, (without, with_gradients) in costs.items():
        print(f"  {name:<16}  forward {without:6.2f} us   training {with_gradients:6.2f} us", flush=True)
    steps = [costs[f"{size} reviews"][1] for size in (32, 64, 128, 256, 512)]
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in forward.reviews_per_s.items())
    ahead = "forward pass, one core: times "
    step = "training at 64 random reviews a step, one core: times "
    numbers = [
        number("91-forward-packed", f"{ahead}packed `nn.GRU`", times(forward, network.PACKED), f"reviews/s: {rates}"),
        number("91-forward-floor", "forward pass, one core: share of the floor that this run's GEMM rate gives", f"{share:.0%}"),
        number("92-training-padded", f"{step}a textbook padded HAN", times(training, network.PADDED)),
        number("92-training-packed", f"{step}packed `nn.GRU`", times(training, network.PACKED), PAGE_FAULTS),
        number(
            "92-training-cost", "training: highest over lowest cost per token, 32 to 512 reviews a step", f"{max(steps) / min(steps):.2f}"
        ),
    ]
    if network.ONNX in forward.reviews_per_s:
        numbers.append(number("91-forward-onnx", f"{ahead}ONNX Runtime's GRU of the word level alone", times(forward, network.ONNX)))
    return numbers


def times(comparison: network.Comparison, other: str) -> str:
    return f"{comparison.times(other):.1f} times"


def single(data: Path) -> list[Number]:
    """One review in process, from text to attention."""
    torch.set_num_threads(1)
    scorer = han.load("imdb")
    reviews = pq.read_table(data, columns=["text"]).slice(0, 500)["text"].to_pylist()
    scorer.score(reviews[:8])
    taken = []
    for review in reviews:
        began = time.perf_counter()
        scorer.score([review])
        taken.append(1e3 * (time.perf_counter() - began))
    p50, p95 = f"{median(taken):.2f} ms", f"{sorted(taken)[int(0.95 * len(taken))]:.2f} ms"
    print(f"one review, text to attention: p50 {p50}, p95 {p95}", flush=True)
    return [number("93-one-review", "one IMDB review in process, text to attention, one core: p50", p50, f"p95 {p95}")]


def recipe(data: Path, repeats: int) -> list[Number]:
    """Scoring by the shipped model beside the same HAN without n-grams: what the semi-supervised recipe costs."""
    torch.set_num_threads(1)
    shipped = artifact.load(artifact.find("imdb"))
    words, size = shipped.network.embedding.weight.shape
    plain = dataclasses.replace(
        shipped, network=HAN(shipped.network.config, num_words=words, embedding_size=size, num_classes=len(shipped.labels))
    )
    reviews = pq.read_table(data, columns=["text"]).slice(0, 2_000)["text"].to_pylist()
    scorers = {name: Scorer(model) for name, model in (("shipped", shipped), ("plain", plain))}
    runs = {name: functools.partial(scorer.score_flat, reviews) for name, scorer in scorers.items()}
    seconds = network.medians(runs, repeats)
    share = seconds["plain"] / seconds["shipped"]
    sizes = f"{size}/{plain.network.config.word_hidden}/{plain.network.config.word_attention}"
    rates = ", ".join(f"{name} {len(reviews) / taken:,.0f} reviews/s" for name, taken in seconds.items())
    print(f"scoring by the shipped model: {share:.2f} times a plain HAN {sizes} ({rates})", flush=True)
    what = f"scoring by the shipped model, one core, processor time: times a plain HAN {sizes}, text to attention"
    return [number("23-plain-han", what, f"{share:.2f} times", f"aim 0.6; {rates}")]


def first_answers(folder: Path, rounds: int) -> list[Number]:
    """Seconds from command to prompt: help, one text, the bundled reviews."""

    def seconds(command: Sequence[str]) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - began

    helps = {job: median(seconds([f"jobs.{job}", "--help"]) for _ in range(rounds)) for job in HELP_JOBS}
    worst = max(helps, key=lambda job: helps[job])
    one = median(seconds(["han", "I loved it. Not dull for a minute!"]) for _ in range(rounds))
    sample = median(seconds(["jobs.score", "--input", "sample", "--out", str(folder / f"sample-{turn}")]) for turn in range(rounds))
    print(f"--help of {worst}, the slowest: {helps[worst]:.2f} s; one text: {one:.2f} s; the bundled reviews: {sample:.2f} s", flush=True)
    return [
        number("94-help", f"`--help` of the slowest of {len(HELP_JOBS)} jobs", f"{helps[worst]:.2f} s", worst),
        number("94-first-text", '`python -m han "text"`, from command to prompt', f"{one:.2f} s"),
        number("94-first-scores", "`jobs.score` over the 320 bundled reviews, from command to prompt", f"{sample:.2f} s"),
    ]


def pipelines(data: Path, folder: Path, bars: list[Bars], *, before: str, rounds: int, limit: int) -> list[Number]:
    """Raw text to Parquet with word attention."""
    results = end_to_end.measure(data, folder, before=before, rounds=rounds, limit=limit)
    print(f"{limit:,} reviews to Parquet with word attention")
    for result in results:
        result.show()
    ours, with_effects, *others = results
    rates = {network.OURS: ours.reviews_per_s, **{other.name: other.reviews_per_s for other in others}}
    bars.append(("Raw text to Parquet, 2 cores", rates))
    ratios = ", ".join(f"{ours.reviews_per_s / other.reviews_per_s:.1f} times {other.name}" for other in others)
    memory = ", ".join(f"{result.name} {result.peak_mb:,.0f} MB" for result in results)
    job, rate = f"`jobs.score` over {limit:,} IMDB reviews with word attention", f"{ours.reviews_per_s:,.0f} reviews/s"
    effects = with_effects.reviews_per_s / ours.reviews_per_s
    return [
        number("29-effects-speed", f"{job}: reviews/s with the effects of sentences, times without", f"{effects:.2f} times", "aim 0.75"),
        number("95-end-to-end", f"{job}, raw text to Parquet on 2 cores, once started", rate, ratios),
        number("95-end-to-end-start", f"{job}: seconds beyond the scoring itself", f"{ours.start_s:.1f} s"),
        number("95-end-to-end-memory", f"{job}: peak memory of all processes", f"{ours.peak_mb:,.0f} MB", memory),
    ]


def picture(bars: Sequence[Bars]) -> str:
    """Reviews/s of every candidate as bars; each comparison has its own scale."""
    drawn, y = [STYLE], 8.0
    for title, rates in bars:
        drawn.append(charts.text(8, y + 12, f"{title}: reviews/s", "title"))
        y += 20
        for name, rate in rates.items():
            length = 420 * rate / max(rates.values())
            drawn += [charts.text(8, y + 13, name, "name"), charts.bar(190, y, length, 17, "ours" if name == network.OURS else "other")]
            drawn.append(charts.text(196 + length, y + 13, f"{rate:,.0f}", "value"))
            y += 21
        y += 12
    return charts.svg(700, round(y), drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Parquet with a column text, such as IMDB's test split")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the comparisons of networks")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of the pipelines")
    parser.add_argument("--limit", type=int, default=25_000, help="reviews of the pipelines")
    parser.add_argument("--before", default=BEFORE, help="earlier commit to compare with; empty leaves it out")
    parser.add_argument(
        "--only", choices=("text", "network", "one", "recipe", "first", "pipelines"), nargs="*", help="sections; all without it"
    )
    parser.add_argument("--record", action="store_true", help="write docs/numbers and docs/speed.svg")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bars: list[Bars] = []
    with tempfile.TemporaryDirectory(prefix="han-bench-") as name:
        folder, data = Path(name), arguments.data
        sections: dict[str, Callable[[], list[Number]]] = {
            "first": lambda: first_answers(folder, 3),
            "text": lambda: texts(data, bars),
            "one": lambda: single(data),
            "recipe": lambda: recipe(data, arguments.repeats),
            "network": lambda: networks(data, bars, arguments.repeats),
            "pipelines": lambda: pipelines(data, folder, bars, before=arguments.before, rounds=arguments.rounds, limit=arguments.limit),
        }
        results = [each for name, run in sections.items() if not arguments.only or name in arguments.only for each in run()]
    if arguments.record:
        for each in results:
            record(each)
        if not arguments.only:
            (ROOT / "docs" / "speed.svg").write_text(picture(bars), encoding="utf-8")


if __name__ == "__main__":
    main()
