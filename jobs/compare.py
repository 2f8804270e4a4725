"""Runs side by side: `han compare out/one out/other --out compare.html`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from han.types import UserError
from jobs import cli

if TYPE_CHECKING:
    from rich.table import Table

    from han.evaluate.compare import Compared

EXAMPLES = ("out/one out/other", "out/sweep --out compare.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Show the settings in which runs differ, and their metrics."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """folders of runs, finished or not; a folder of a sweep means all its trials"""
    out: str | None = None
    """also write a page with the curves, e.g. compare.html; an existing file is not replaced"""


def main(job: Compare) -> None:
    out = None if job.out is None else cli.local(job.out, "--out")
    folders = [cli.local(run, "RUN") for run in job.runs]
    if out is not None and out.exists():
        raise UserError(f"--out {out} exists already: give a new name")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it, or give another name")
    from rich.console import Console

    from han.evaluate import compare

    runs = compare.read(folders)
    console = Console(markup=False, highlight=False)
    about = [("state", [run.state for run in runs]), ("data", [run.data or "unknown" for run in runs])]
    measured = [
        (name, [f"{value} (best)" if best else value for value, best in zip(values, compare.best_of(runs, name), strict=True)])
        for name, values in compare.measured(runs)
    ]
    console.print(_table("settings that differ", runs, compare.differing(runs)))
    console.print(_table("best epoch, on the development split", runs, about + measured))
    console.print(_table("development accuracy by epoch", runs, _by_epoch(runs)))
    if verdict := compare.verdict(runs):
        print(verdict)
    for warning in compare.warnings(runs):
        print(f"note: {warning}")
    if out is not None:
        out.write_text(compare.page(runs, title=f"{len(runs)} runs compared"), encoding="utf-8")
        print(f"with curves: {os.path.relpath(out)}")


def _by_epoch(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    last = max((len(run.history) for run in runs), default=0)
    return [
        (str(epoch + 1), [f"{run.history[epoch]['accuracy']:.2%}" if epoch < len(run.history) else "" for run in runs])
        for epoch in range(last)
    ]


def _table(title: str, runs: Sequence[Compared], rows: Sequence[tuple[str, Sequence[str]]]) -> Table:
    from rich.table import Table

    table = Table("", *(run.name for run in runs), title=title, title_justify="left")
    for name, values in rows:
        table.add_row(name, *values)
    return table


def run() -> None:
    cli.run(Compare, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
