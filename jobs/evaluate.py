"""How good a model is: `python -m jobs.evaluate --model run --data reviews/test.parquet --out evaluation`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from han.config import ColumnsConfig, ScoreConfig, as_json
from han.evaluate.evaluation import evaluate
from jobs import cli
from jobs.fetch import fetch
from jobs.progress import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Compare a model's answers with labels. The only job that opens a test split; data that has one is judged by it alone."""

    data: str
    """labelled reviews: a file, a glob or a folder of Parquet, CSV or JSONL (.gz, .zst), an aclImdb folder or archive,
    `sample`, or `imdb`"""
    out: str
    """the folder for metrics.json: new, or what the same command left"""
    model: str = "imdb"
    """the folder of a run, a sweep or an artifact, models/best once one is promoted, or imdb, the shipped model"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    num_actors: int | None = None
    """scoring processes; None is one a CPU"""
    gpu: bool = False
    """one GPU an actor"""


def main(job: Evaluate) -> None:
    out = cli.local(job.out, "--out")
    data = str(fetch("imdb")) if job.data == "imdb" else job.data if job.data == "sample" else cli.path(job.data, "--data")
    model = job.model if job.model == "imdb" else cli.path(job.model, "--model")
    cli.show(f"evaluate {model} on {data}", as_json(job))
    cli.connect()
    config = ScoreConfig(num_actors=job.num_actors, gpu=job.gpu)
    figures = evaluate(data, out, model=model, columns=job.columns, config=config, report=Rows())
    console = Console()
    for table in (_summary(figures), _confusion(figures), *_slices(figures)):
        console.print(table)
    split = " (test split)" if figures["test_split"] else ""
    print(
        f"model {figures['model']} on {figures['num_reviews']:,} labelled reviews of {data}{split}; "
        f"{figures['rows_in']:,} read, {figures['unlabelled']:,} without a label, {figures['quarantined']:,} that cannot be scored"
    )
    print(f"accuracy {figures['accuracy']:.2%}; all figures in {out / 'metrics.json'}")
    print(f"next: python -m jobs.explain --model {model} --input {data} --out attention.html")


def _summary(figures: dict[str, Any]) -> Table:
    table = Table("figure", "value", title=f"{figures['num_reviews']:,} reviews")
    table.add_row("accuracy", f"{figures['accuracy']:.2%} {_interval(figures)}")
    for name in ("f1", "auc", "log_loss", "brier", "expected_calibration_error"):
        table.add_row(name.replace("_", " "), "-" if figures[name] is None else f"{figures[name]:.4f}")
    return table


def _confusion(figures: dict[str, Any]) -> Table:
    table = Table("label \\ answer", *figures["confusion"], title="reviews by label and answer")
    for label, answers in figures["confusion"].items():
        table.add_row(label, *(f"{number:,}" for number in answers.values()))
    return table


def _slices(figures: dict[str, Any]) -> list[Table]:
    tables = []
    for key, name, title in (("accuracy_by_length", "tokens", "by length"), ("accuracy_by_rating", "rating", "by rating")):
        table = Table(name, "reviews", "accuracy", title=f"accuracy {title}")
        for row in figures.get(key, ()):
            value = "{:,} to {:,}".format(*row["tokens"]) if name == "tokens" else f"{row['rating']:g}"
            table.add_row(value, f"{row['num_reviews']:,}", f"{row['accuracy']:.2%} {_interval(row)}")
        tables += [table] if table.row_count else []
    return tables


def _interval(row: dict[str, Any]) -> str:
    low, high = row["accuracy_interval"]
    return f"({low:.2%} to {high:.2%})"


if __name__ == "__main__":
    cli.run(Evaluate, main)
