"""Metrics of a model on labelled reviews: `han evaluate --model run --data reviews/test.parquet --out evaluation`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from han.config import ColumnsConfig, ScoreConfig
from han.types import UserError
from jobs import cli

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

EXAMPLES = (
    "--model run --data test.csv --out evaluation --columns.text body --columns.label stars",
    "--model imdb --data imdb --out evaluation",
    "--model imdb --rationales movies/val.jsonl --out plausibility",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Compare a model's predictions with labels. Only this job opens a test split. If the data has a test split, only that is used."""

    out: str
    """folder for evaluation.html, metrics.json and predictions.parquet: new, or from the same command"""
    data: str | None = None
    """labelled reviews: a file, a glob or a folder of Parquet, CSV, JSONL (.gz, .zst), an aclImdb folder or archive, `sample` or `imdb`"""
    model: str = "imdb"
    """folder of a run, a sweep or an artifact; models/best after `promote`; or imdb, the shipped model"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    num_actors: int | None = None
    """scoring processes; the default uses one for each CPU"""
    gpu: bool = False
    """use one GPU for each process"""
    faithfulness: bool = False
    """also measure whether attention and effects rank first the parts that the answer depends on"""
    faithfulness_reviews: int = 1_000
    """number of random reviews in the faithfulness report"""
    faithfulness_words: int = 200
    """for this many of them, words are measured too (about 1 s a review on one CPU)"""
    rationales: str | None = None
    """a split in the ERASER layout, such as movies/val.jsonl: measure whether attention and effects rank first the evidence that people
    marked"""


def main(job: Evaluate) -> None:
    out = cli.local(job.out, "--out")
    if job.data is None and job.rationales is None:
        raise UserError("give --data (labelled reviews), --rationales (marked evidence), or both")
    if job.rationales is not None:
        _measure_rationales(Path(cli.path(job.rationales, "--rationales")), out, job)
    if job.data is not None:
        _evaluate(job.data, out, job)


def _absolute(job: Evaluate, out: Path) -> Evaluate:
    """The job with absolute paths, and with the version that models/best names now."""
    from han.model import artifact

    data = job.data if job.data in (None, "imdb", "sample") else cli.path(job.data, "--data")
    rationales = job.rationales and cli.path(job.rationales, "--rationales")
    return replace(job, out=str(out), data=data, model=artifact.resolve(cli.model(job.model)), rationales=rationales)


def _evaluate(given: str, out: Path, job: Evaluate) -> None:
    from jobs.fetch import fetch

    data = str(fetch("imdb")) if given == "imdb" else given if given == "sample" else cli.path(given, "--data")
    model = cli.model(job.model)
    cli.show(f"evaluate {model} on {data}", job)
    _check(data, model, out, job)
    cli.connect()
    from rich.console import Console

    from han.evaluate import registry
    from han.evaluate.evaluation import evaluate
    from han.evaluate.evaluation_page import PAGE, PREDICTIONS
    from han.model import artifact, metrics
    from jobs.progress import Rows

    config = ScoreConfig(num_actors=job.num_actors, gpu=job.gpu)
    with cli.repeatable(_absolute(job, out), out):
        figures = evaluate(data, out, model=model, columns=job.columns, config=config, report=Rows())
    registry.keep_test(artifact.find(model), figures)
    console = Console()
    for table in (_summary(figures), _confusion(figures), *_slices(figures)):
        console.print(table)
    if job.faithfulness:
        _measure_faithfulness(data, out, model, job, console)
    split = " (test split)" if figures["test_split"] else ""
    print(
        f"model {figures['model']} on {cli.plural(figures['num_reviews'], 'labelled review')} of {data}{split}; "
        f"{figures['rows_in']:,} read, {figures['unlabelled']:,} without a label, {figures['quarantined']:,} that cannot be scored"
    )
    print(
        f"accuracy {figures['accuracy']:.2%}; page in {out / PAGE}, all metrics in {out / 'metrics.json'}, answers in {out / PREDICTIONS}"
    )
    for doubt in metrics.doubts(figures):
        print(f"warning: {doubt}")
    page = cli.unused(out.parent / "attention.html")
    print(f"next: {cli.command('explain')} --model {model} --input {data}{cli.columns_flags(job.columns)} --out {page}")


def _measure_faithfulness(data: str, out: Path, model: str, job: Evaluate, console: Console) -> None:
    from han.evaluate.evaluation import faithful
    from jobs.progress import Rows

    figures = faithful(
        data,
        out,
        model=model,
        columns=job.columns,
        num_reviews=job.faithfulness_reviews,
        num_for_words=job.faithfulness_words,
        report=Rows(),
    )
    for parts in ("sentences", "words"):
        if parts in figures:
            console.print(_faithfulness(parts, figures[parts]))
    for problem in figures["failed_checks"]:
        print(f"note: a sanity check does not hold: {problem}")
    print(f"losses are of the calibrated probability; all figures in {out / 'faithfulness.json'}, a plot in {out / 'faithfulness.svg'}")


def _measure_rationales(split: Path, out: Path, job: Evaluate) -> None:
    from rich.console import Console
    from rich.table import Table

    from han.evaluate import rationales
    from han.evaluate.evaluation_page import RATIONALES, check_out
    from han.score import load
    from han.storage import write_json
    from jobs.progress import Rows

    check_out(out)
    model = cli.model(job.model)
    documents = rationales.read(split)
    rows = Rows()
    with cli.repeatable(_absolute(job, out), out):
        figures = rationales.measure(load(model), documents, report=lambda done, total: rows("documents measured", done, total))
    write_json(out / RATIONALES, {**figures, "model": model, "rationales": str(split)})
    for parts in ("tokens", "sentences"):
        table = Table(
            parts,
            *(key.removeprefix("precision_").replace("_", " ") for key in next(iter(figures[parts].values()))),
            title=f"plausibility of {parts}{' (precision)' * (parts == 'sentences')}, {figures['num_documents']:,} documents",
        )
        for name, of_method in figures[parts].items():
            table.add_row(
                name.replace("_", " "),
                *("{:.3f} ({:.3f} to {:.3f})".format(each["mean"], *each["interval"]) for each in of_method.values()),
            )
        Console().print(table)
    print(
        f"{figures['evidence']:.1%} of the tokens are marked; {figures['refused']:,} documents refused; all figures in {out / RATIONALES}"
    )


def _faithfulness(parts: str, figures: dict[str, Any]) -> Table:
    from rich.table import Table

    columns = ("comprehensiveness", "of best", "sufficiency", "wrong signs", "tau")
    table = Table(parts, *columns, title=f"faithfulness of {parts}, {figures['num_reviews']:,} reviews (tau: with leave-one-out)")
    for name, method in figures["methods"].items():
        low, high = method["comprehensiveness_interval"]
        tau = figures["kendall"].get("leave_one_out", {}).get(name)
        table.add_row(
            name.replace("_", " "),
            f"{method['comprehensiveness']:.3f} ({low:.3f} to {high:.3f})",
            _known(method.get("comprehensiveness_normalised"), ".0%"),
            f"{method['sufficiency']:.3f}",
            _known(method.get("wrong_signs"), ".1%"),
            _known(tau, ".2f"),
        )
    return table


def _known(value: float | None, pattern: str) -> str:
    return "" if value is None else format(value, pattern)


def _check(data: str, model: str, out: Path, job: Evaluate) -> None:
    """Find errors in --out, in the model's path and in the data before Ray starts."""
    from han.data import sources
    from han.evaluate.evaluation_page import check_out
    from han.model import artifact

    check_out(out)
    labels = artifact.read_labels(artifact.find(model))
    sources.find_shards(data, replace(job.columns, label_names=job.columns.label_names or labels), labelled=True)


def _summary(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("metric", "value", title=f"{figures['num_reviews']:,} reviews")
    table.add_row("accuracy", f"{figures['accuracy']:.2%} {_interval(figures)}")
    table.add_row(f"majority class ({figures['majority']['label']})", f"{figures['majority']['accuracy']:.2%}")
    for name in ("f1", "auc", "log_loss", "brier", "expected_calibration_error"):
        table.add_row(name.replace("_", " "), "-" if figures[name] is None else f"{figures[name]:.4f}")
    return table


def _confusion(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("label \\ prediction", *figures["confusion"], title="reviews by label and prediction")
    for label, answers in figures["confusion"].items():
        table.add_row(label, *(f"{number:,}" for number in answers.values()))
    return table


def _slices(figures: dict[str, Any]) -> list[Table]:
    from rich.table import Table

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


def run() -> None:
    cli.run(Evaluate, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
