"""Runs side by side: `python -m jobs.compare out/one out/other --out compare.html`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from han.evaluate import compare
from han.types import Mistake
from jobs import cli


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Show in which settings runs differ, and what came of it."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """folders of jobs.train, finished or not, or of a sweep, which is all its trials"""
    out: str | None = None
    """a page with the curves too, e.g. compare.html; a file that is there is not written over"""


def main(job: Compare) -> None:
    runs = compare.read([cli.local(run, "RUN") for run in job.runs])
    console = Console(markup=False, highlight=False)
    about = [("state", [run.state for run in runs]), ("data", [run.data or "unknown" for run in runs])]
    console.print(_table("settings that differ", runs, compare.differing(runs)))
    console.print(_table("best epoch, on the development split", runs, about + compare.measured(runs)))
    console.print(_table("development accuracy by epoch", runs, _by_epoch(runs)))
    for warning in compare.warnings(runs):
        print(f"note: {warning}")
    if job.out is not None:
        path = Path(cli.path(job.out, "--out"))
        if path.exists():
            raise Mistake(f"--out {path} exists already: give a new name")
        path.write_text(compare.page(runs, title=f"{len(runs)} runs compared"), encoding="utf-8")
        print(f"with curves: {os.path.relpath(path)}")


def _by_epoch(runs: Sequence[compare.Compared]) -> list[tuple[str, list[str]]]:
    last = max((len(run.history) for run in runs), default=0)
    return [
        (str(epoch + 1), [f"{run.history[epoch]['accuracy']:.2%}" if epoch < len(run.history) else "" for run in runs])
        for epoch in range(last)
    ]


def _table(title: str, runs: Sequence[compare.Compared], rows: Sequence[tuple[str, Sequence[str]]]) -> Table:
    table = Table("", *(run.name for run in runs), title=title, title_justify="left")
    for name, values in rows:
        table.add_row(name, *values)
    return table


if __name__ == "__main__":
    cli.run(Compare, main)
