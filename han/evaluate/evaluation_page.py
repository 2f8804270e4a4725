"""The folder of an evaluation, and its page: one self-contained HTML file: no script, no second file, no other host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from han.config import without_settings
from han.explain import charts
from han.explain.charts import Frame, Scale, safe
from han.explain.html import articles, document, stylesheet
from han.model.metrics import doubts
from han.types import Score, UserError

METRICS, PREDICTIONS, PAGE = "metrics.json", "predictions.parquet", "evaluation.html"
FAITHFULNESS, FAITHFULNESS_PLOT, RATIONALES = "faithfulness.json", "faithfulness.svg", "rationales.json"
_FILES = {METRICS, PREDICTIONS, PAGE, FAITHFULNESS, FAITHFULNESS_PLOT, RATIONALES}
_WIDTH, _HEIGHT = 430, 320  # of a chart, in its own units
_FIGURES = {
    "f1": "macro F1",
    "auc": "AUC",
    "log_loss": "log loss (nats)",
    "brier": "Brier score",
    "expected_calibration_error": "expected calibration error",
}


def check_out(out: Path) -> None:
    """`UserError` if the folder exists and holds anything but an evaluation."""
    if out.exists() and (not out.is_dir() or set(without_settings(path.name for path in out.iterdir())) - _FILES):
        raise UserError(f"--out {out} holds something else: give a new folder")


def page(figures: dict[str, Any], mistakes: Sequence[tuple[str, str, Score]]) -> str:
    """The page of `evaluate`'s metrics. mistakes: caption, text and Score of the worst wrong answers, the worst first."""
    sections = [
        _section("Reviews by label and prediction", _confusion(figures["confusion"])),
        _section("Precision and recall by label", _by_label(figures)),
        _section("Calibration", _calibration(figures["calibration"])),
        _section("Accuracy at coverage", _coverage(figures["accuracy_at_coverage"])),
        _section("Accuracy by length", _slices(figures.get("accuracy_by_length", ()), "tokens")),
        _section("Accuracy by rating", _slices(figures.get("accuracy_by_rating", ()), "rating")),
    ]
    body = f"""<main class="evaluation"><div class="han">
{_head(figures)}
{"".join(sections)}</div>
{_mistakes(mistakes)}</main>"""
    style = stylesheet() + files("han.evaluate").joinpath("evaluation.css").read_text(encoding="utf-8")
    return document(body, title="Evaluation", style=style)


def _head(figures: dict[str, Any]) -> str:
    low, high = figures["accuracy_interval"]
    split = "the test split" if figures["test_split"] else "all labelled reviews"
    counts = f"{figures['rows_in']:,} read, {figures['unlabelled']:,} without a label, {figures['quarantined']:,} that cannot be scored"
    warnings = "".join(f'<p class="warning">{safe(doubt)}</p>' for doubt in doubts(figures))
    majority = figures["majority"]
    rows = [
        ("majority class", f"{majority['accuracy']:.2%} with {safe(majority['label'])} for all reviews"),
        *((name, "-" if figures[key] is None else f"{figures[key]:.4f}") for key, name in _FIGURES.items()),
        ("unfamiliar texts", f"{figures['num_unfamiliar']:,}"),
        ("uncertain answers", f"{figures['num_uncertain']:,}"),
    ]
    values = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return f"""<h1>Evaluation</h1>
<p class="facts">{figures["num_reviews"]:,} reviews, {split} of <bdi>{safe(figures["data"])}</bdi> ·
model <code>{safe(figures["model"])}</code><br>{counts}</p>
<p class="verdict">accuracy {figures["accuracy"]:.2%} <span class="number">95% interval {low:.2%} to {high:.2%}</span></p>
{warnings}<dl>{values}</dl>"""


def _section(title: str, drawn: str) -> str:
    return f"<section><h2>{title}</h2>{drawn}</section>\n" if drawn else ""


def _confusion(confusion: dict[str, dict[str, int]]) -> str:
    rows = []
    for label, answers in confusion.items():
        total = sum(answers.values())
        cells = [
            f'<td class="number {"right" if answer == label else "wrong"}">{number:,}<small>{_share(number, total)}</small></td>'
            for answer, number in answers.items()
        ]
        rows.append([f'<th scope="row"><bdi>{safe(label)}</bdi></th>', *cells])
    return _note("A row is a label, a column a prediction. Percentages are of the row.") + _table(["label", *confusion], rows)


def _share(number: int, total: int) -> str:
    return f"{number / total:.1%}" if total else "-"


def _by_label(figures: dict[str, Any]) -> str:
    kinds = ("precision", "recall", "f1")
    rows = [
        [
            f'<th scope="row"><bdi>{safe(label)}</bdi></th>',
            *(_cell(_percent(figures[f"{kind}_by_label"].get(label))) for kind in kinds),
            _cell(f"{sum(answers.values()):,}"),
        ]
        for label, answers in figures["confusion"].items()
    ]
    note = _note("Precision: how many of these predictions are right. Recall: how many reviews with this label are found.")
    return note + _table(["label", "precision", "recall", "F1", "reviews"], rows)


def _calibration(bins: Sequence[dict[str, Any]]) -> str:
    """Accuracy by mean confidence. A point on the diagonal is calibrated."""
    lowest = min(min(each["confidence"], each["accuracy_interval"][0]) for each in bins)
    axis = Scale(low=max(0.0, lowest - 0.03), high=1.0, percent=True)
    frame = Frame(x=axis, y=axis, width=_WIDTH, height=_HEIGHT)
    drawn = [frame.axes("mean probability of the prediction", "accuracy", x_ticks=6)]
    drawn.append(charts.line([frame.at(axis.low, axis.low), frame.at(1.0, 1.0)], "dotted"))
    for each in bins:
        low, high = each["accuracy_interval"]
        drawn.append(charts.line([frame.at(each["confidence"], low), frame.at(each["confidence"], high)], "interval"))
    drawn.append(charts.line([frame.at(each["confidence"], each["accuracy"]) for each in bins], "best"))
    drawn += [charts.dot(frame.at(each["confidence"], each["accuracy"]), "best", 3) for each in bins]
    rows = [
        [_cell(f"{each['confidence']:.1%}"), _cell(_percent(each["accuracy"])), _cell(_interval(each)), _cell(f"{each['num_reviews']:,}")]
        for each in bins
    ]
    note = "Each dot is a bin of equally many reviews, with the 95% interval of its accuracy. On the dotted line the probability is right."
    table = _table(["probability", "accuracy", "95% interval", "reviews"], rows)
    return _note(note) + _chart(charts.svg(_WIDTH, _HEIGHT, drawn)) + _details(table)


def _coverage(steps: Sequence[dict[str, Any]]) -> str:
    """Accuracy of the most confident reviews, by their share of all reviews."""
    x = Scale(low=0.0, high=1.0, percent=True)
    y = charts.scale([bound for each in steps for bound in each["accuracy_interval"]], percent=True)
    y = Scale(low=max(0.0, y.low), high=1.0, percent=True)
    frame = Frame(x=x, y=y, width=_WIDTH, height=_HEIGHT)
    drawn = [frame.axes("share of the reviews that are answered", "accuracy", x_ticks=6)]
    for bound in (0, 1):
        drawn.append(charts.line([frame.at(each["coverage"], each["accuracy_interval"][bound]) for each in steps], "interval"))
    drawn.append(charts.line([frame.at(each["coverage"], each["accuracy"]) for each in steps], "best"))
    rows = [
        [
            _cell(f"{each['coverage']:.0%}"),
            _cell(f"{each['least_confidence']:.3f}"),
            _cell(_percent(each["accuracy"])),
            _cell(_interval(each)),
            _cell(f"{each['num_reviews']:,}"),
        ]
        for each in steps
    ]
    note = "Accuracy if only the most confident predictions are used and people read the rest. The thin lines are the 95% interval."
    table = _table(["answered", "lowest probability", "accuracy", "95% interval", "reviews"], rows)
    return _note(note) + _chart(charts.svg(_WIDTH, _HEIGHT, drawn)) + _details(table)


def _slices(slices: Iterable[dict[str, Any]], key: str) -> str:
    rows = []
    for each in slices:
        name = "{:,} to {:,}".format(*each["tokens"]) if key == "tokens" else f"{each['rating']:g}"
        cells = [_percent(each["accuracy"]), _interval(each), f"{each['num_reviews']:,}"]
        rows.append([f'<th scope="row">{name}</th>', *(_cell(cell) for cell in cells)])
    return _table([key, "accuracy", "95% interval", "reviews"], rows) if rows else ""


def _mistakes(mistakes: Sequence[tuple[str, str, Score]]) -> str:
    if not mistakes:
        return ""
    count = f"{len(mistakes)} wrong answer{'s' * (len(mistakes) != 1)}"
    note = _note(f"The {count} with the highest probability, with the attention of the network.")
    return f'<div class="han"><section><h2>Worst mistakes</h2>{note}</section></div>{articles(mistakes)}'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    first, *others = heads
    head = f'<th scope="col">{safe(first)}</th>' + "".join(f'<th scope="col" class="number">{safe(name)}</th>' for name in others)
    body = "".join(f"<tr>{''.join(row)}</tr>\n" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str) -> str:
    return f'<td class="number">{safe(value)}</td>'


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _interval(row: dict[str, Any]) -> str:
    low, high = row["accuracy_interval"]
    return f"{low:.2%} to {high:.2%}"


def _note(words: str) -> str:
    return f'<p class="note">{words}</p>'


def _chart(drawn: str) -> str:
    return f'<div class="chart">{drawn}</div>'


def _details(table: str) -> str:
    return f"<details><summary>The same as a table</summary>{table}</details>"
