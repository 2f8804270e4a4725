"""The versions in a folder of models: `han models`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from han.types import UserError
from jobs import cli

if TYPE_CHECKING:
    from han.evaluate.registry import Version

EXAMPLES = ("", "--by development", "--models shared/models --by test")
_ORDERS = {
    "date": "the newest first, by the date of promotion",
    "development": "the highest development accuracy first",
    "test": "the highest test accuracy first",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """List the promoted models with date, run, development and test accuracy. `best` marks the version that models/best names."""

    models: str = "models"
    """the folder of models, from `promote`"""
    by: Literal["date", "development", "test"] = "date"
    """order of the list; versions without this accuracy are last"""


def main(job: Models) -> None:
    folder = cli.local(job.models, "--models")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: make it with {cli.command('promote')} RUN --models {folder}")
    from han.evaluate import registry

    versions = registry.versions(folder)
    if job.by != "date":
        versions.sort(key=lambda version: version.metrics.get(job.by, {}).get("accuracy", -1.0), reverse=True)
    print(f"{cli.plural(len(versions), 'version')} in {folder}, {_ORDERS[job.by]}")
    if not versions:
        return
    highest = max((_accuracy_of(version, "development") for version in versions), default=-1.0)
    rows = [("", "version", "promoted (UTC)", "run", "development", "test", "test data"), *(_row(version, highest) for version in versions)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if any(row[4].endswith("*") for row in rows):
        print("* the highest development accuracy; compare it only between models of the same data")
    if not any("test" in version.metrics for version in versions):
        print(f"next: {cli.command('evaluate')} --model {folder / 'best'} --data <labelled test reviews> --out evaluation")


def _row(version: Version, highest: float) -> tuple[str, ...]:
    test = version.metrics.get("test", {})
    development = _accuracy_of(version, "development")
    return (
        "best" if version.is_best else "",
        version.folder.name,
        version.date[:16].replace("T", " "),
        version.run or "-",
        _percent(development) + ("*" if development == highest >= 0 else ""),
        _percent(_accuracy_of(version, "test")),
        str(test.get("data", "")),
    )


def _accuracy_of(version: Version, split: str) -> float:
    """The accuracy, or -1 if it is not known."""
    return float(version.metrics.get(split, {}).get("accuracy", -1.0))


def _percent(accuracy: float) -> str:
    return f"{accuracy:.2%}" if accuracy >= 0 else "-"


def run() -> None:
    cli.run(Models, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
