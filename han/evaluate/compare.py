"""Runs side by side: settings that differ, metrics of the best epochs, and curves. Read from the run folders, in any state, without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from han.config import read_json
from han.explain.html import document, stylesheet
from han.model.metrics import best_epoch
from han.train.track import flatten
from han.types import UserError

FIGURES = ("accuracy", "f1", "auc", "log_loss", "brier", "expected_calibration_error", "temperature", "reviews_per_s")
LOWER_IS_BETTER = ("log_loss", "brier", "expected_calibration_error")
NOT_RANKED = ("temperature",)
CURVES = {"accuracy": "development accuracy", "log_loss": "development log loss", "train_loss": "training loss"}
NUM_HUES = 6  # classes h0 to h5 of the style; a seventh run starts again, dashed
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 520, 220, 52, 24  # of a chart, in its own units


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A run, read from its folder."""

    name: str  # unique among the compared runs
    state: str  # finished, or its progress
    settings: dict[str, Any]  # flat
    data: str | None  # fingerprint of the encoded reviews; None in runs of an older version
    encoding: str  # fingerprint of the encoder
    history: tuple[dict[str, Any], ...]

    @property
    def best(self) -> dict[str, Any] | None:
        """The best epoch's line, or None before the first epoch."""
        return self.history[best_epoch(self.history)] if self.history else None


def read(folders: Sequence[Path]) -> list[Compared]:
    """The runs in these folders; for a sweep, the runs of its trials. A folder without a run, or fewer than two runs, is a `UserError`."""
    run_folders = [run for folder in folders for run in _runs_of(folder)]
    if len(set(run_folders)) < 2:
        raise UserError(f"{len(set(run_folders))} run to compare: give the folders of two or more runs, or of a sweep")
    return [_read(folder, name) for folder, name in zip(run_folders, _names(run_folders), strict=True)]


def differing(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Settings that differ between runs, with the value of every run."""
    rows = []
    for name in sorted({name for run in runs for name in run.settings}):
        values = [json.dumps(run.settings[name], ensure_ascii=False).strip('"') if name in run.settings else "-" for run in runs]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows


def measured(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Metrics of every run's best epoch on its development split; accuracy with its 95% interval."""
    rows = [("best epoch", [f"{run.best['epoch']} of {len(run.history)}" if run.best else "-" for run in runs])]
    rows.append(("development reviews", [f"{run.best['num_reviews']:,}" if run.best else "-" for run in runs]))
    return rows + [(name.replace("_", " "), [_figure(run.best, name) for run in runs]) for name in FIGURES]


def best_of(runs: Sequence[Compared], row: str) -> list[bool]:
    """For a row of `measured`, whether each run has its best value. No run has it if runs tie, or if their data differ or are unknown."""
    figure = row.replace(" ", "_")
    values = [run.best.get(figure) if run.best else None for run in runs]
    known = [value for value in values if value is not None]
    if figure not in FIGURES or figure in NOT_RANKED or len(set(known)) < 2 or not _same_data(runs):
        return [False] * len(runs)
    best = (min if figure in LOWER_IS_BETTER else max)(known)
    return [value == best for value in values]


def verdict(runs: Sequence[Compared]) -> str | None:
    """Which run has the highest development accuracy, and which others may be as good: their 95% intervals overlap. None if unknown."""
    known = sorted((run for run in runs if run.best), key=lambda run: -float((run.best or {})["accuracy"]))
    if len(known) < 2 or not _same_data(runs):
        return None
    first, *others = known
    close = [run.name for run in others if (run.best or {})["accuracy_interval"][1] >= (first.best or {})["accuracy_interval"][0]]
    lead = f"{first.name} has the highest development accuracy"
    if not close:
        return f"{lead}; the 95% intervals of all others are below its own"
    return f"{lead}; the 95% intervals of {', '.join(close)} overlap with its own, so this difference may be chance"


def _same_data(runs: Sequence[Compared]) -> bool:
    data = {run.data for run in runs}
    return len(data) == 1 and None not in data


def warnings(runs: Sequence[Compared]) -> list[str]:
    """Reasons why the metrics may not be comparable."""
    reasons = []
    data = {run.data for run in runs}
    if None in data:
        reasons.append(f"{', '.join(run.name for run in runs if run.data is None)}: prepared by an older version, so its data is not known")
    if len(data - {None}) > 1:
        reasons.append("the runs learnt from different data, so their figures may be of different development reviews")
    if len({run.encoding for run in runs}) > 1:
        reasons.append("the runs read text differently (vocabulary, Punkt or text settings)")
    unfinished = [run.name for run in runs if run.state != "finished"]
    if unfinished:
        reasons.append(f"not finished: {', '.join(unfinished)}")
    return reasons


def page(runs: Sequence[Compared], *, title: str) -> str:
    """All of it as one self-contained HTML page: no script, no second file, no other host."""
    style = stylesheet() + files("han.evaluate").joinpath("compare.css").read_text(encoding="utf-8")
    names = "".join(f'<th scope="col"><i class="{_hue(index)}"></i>{escape(run.name)}</th>' for index, run in enumerate(runs))
    about = [("state", [run.state for run in runs]), ("data", [run.data or "unknown" for run in runs])]
    notes = "".join(f"<li>{escape(note)}</li>" for note in warnings(runs))
    tables = "".join(
        f'<h2>{caption}</h2><div class="wide" tabindex="0" role="group" aria-label="{caption}"><table class="runs"><thead><tr><td></td>'
        f"{names}</tr></thead><tbody>{_rows(runs, rows)}</tbody></table></div>"
        for caption, rows in (("Figures of the best epoch", about + measured(runs)), ("Settings that differ", differing(runs)))
        if rows
    )
    charts = "".join(_chart(runs, name, caption) for name, caption in CURVES.items())
    body = f"""<main class="han compared"><h1>{escape(title)}</h1>
{f'<p class="verdict-line">{escape(sentence)}.</p>' if (sentence := verdict(runs)) else ""}
{f'<ul class="notes">{notes}</ul>' if notes else ""}
{tables}
<h2>Curves by epoch</h2>
<div class="charts">{charts}</div>
</main>"""
    return document(body, title=escape(title), style=style)


def _runs_of(folder: Path) -> list[Path]:
    if (folder / "config.json").is_file() and "train" in read_json(folder / "config.json"):
        return [folder]
    trials = sorted(path.parent for path in folder.glob("trials/*/config.json"))
    if not trials:
        raise UserError(f"{folder} holds no run (no config.json of a training) and no sweep (no trials/): give folders that `train` wrote")
    return trials


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that distinguish all of them."""
    whole = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(set(whole)):
            break
    return names


def _read(folder: Path, name: str) -> Compared:
    config = read_json(folder / "config.json")
    lines = (folder / "history.jsonl").read_text().splitlines() if (folder / "history.jsonl").exists() else []
    epochs = config["train"]["epochs"]
    return Compared(
        name=name,
        state="finished" if (folder / "artifact").exists() else f"{len(lines)} of at most {epochs} epochs",
        settings=flatten({part: config[part] for part in ("model", "train")}),
        data=config.get("data_fingerprint"),
        encoding=config["encoding"],
        history=tuple(json.loads(line) for line in lines),
    )


def _figure(line: dict[str, Any] | None, name: str) -> str:
    if line is None or line.get(name) is None:
        return "-"
    if name == "accuracy":
        low, high = line["accuracy_interval"]
        return f"{line[name]:.2%} ({low:.2%} to {high:.2%})"
    return f"{line[name]:,.0f}" if name == "reviews_per_s" else f"{line[name]:.4f}"


def _rows(runs: Sequence[Compared], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    drawn = []
    for name, values in rows:
        cells = "".join(
            f'<td class="best">{escape(value)} <b>best</b></td>' if best else f"<td>{escape(value)}</td>"
            for value, best in zip(values, best_of(runs, name), strict=True)
        )
        drawn.append(f'<tr><th scope="row">{escape(name).replace("_", "_<wbr>")}</th>{cells}</tr>\n')
    return "".join(drawn)


def _hue(index: int) -> str:
    return f"h{index % NUM_HUES}" + (" again" if index >= NUM_HUES else "")


def _chart(runs: Sequence[Compared], name: str, caption: str) -> str:
    """One metric by epoch, one line for each run, scaled from the smallest to the largest value."""
    values = [line[name] for run in runs for line in run.history if line.get(name) is not None]
    if not values:
        return ""
    low, high, last = min(values), max(values), max(line["epoch"] for run in runs for line in run.history)
    high = high if high > low else low + 1e-6

    def place(epoch: int, value: float) -> tuple[float, float]:
        across = (epoch - 1) / max(1, last - 1)
        return _LEFT + across * (_WIDTH - _LEFT - 8), 8 + (high - value) / (high - low) * (_HEIGHT - _BOTTOM - 8)

    drawn = []
    for index, run in enumerate(runs):
        points = [place(line["epoch"], line[name]) for line in run.history if line.get(name) is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points)
        drawn.append(f'<g class="{_hue(index)}"><title>{escape(run.name)}</title><polyline points="{path}"/>{dots}</g>')
    ticks = "".join(
        f'<text x="{_LEFT - 8}" y="{place(1, value)[1] + 4:.1f}" class="end">{value:.4g}</text>'
        f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{place(1, value)[1]:.1f}" y2="{place(1, value)[1]:.1f}"/>'
        for value in (low, (low + high) / 2, high)
    )
    ticks += "".join(
        f'<text x="{place(epoch, low)[0]:.1f}" y="{_HEIGHT - 4}" class="middle">{epoch}</text>'
        for epoch in sorted({1, (1 + last) // 2, last})
    )
    label = f"{caption} by epoch, from {low:.4g} to {high:.4g}"
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{ticks}{''.join(drawn)}</svg></figure>"
    )
