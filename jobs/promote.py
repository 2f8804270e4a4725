"""Make a model the best of a folder of models, so that `--model models/best` names it: `han promote run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from han.types import UserError
from jobs import cli

EXAMPLES = ("run", "--list", "--rollback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Copy a model into a folder of models as an immutable version, and point models/best.json at it."""

    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """folder of a run, a sweep or an artifact"""
    models: str = "models"
    """the folder of models: new, or from this command"""
    rollback: bool = False
    """instead of a run: make the previous best version the best again"""
    list: bool = False
    """instead of a run: list all versions, the newest first"""
    force: bool = False
    """promote a model whose development accuracy is lower than that of the best model on the same data"""


def main(job: Promote, *, failpoint: str | None = None) -> None:
    """failpoint: where this process is to die (see `Failpoint`)."""
    if (job.run is not None) + job.rollback + job.list != 1:
        raise UserError("give one of: the folder of a run, --rollback, --list")
    from han.evaluate import registry
    from han.model import artifact

    folder = cli.local(job.models, "--models")
    if job.list:
        for version in registry.versions(folder):
            best, run = "best " if version.is_best else "     ", version.run or "-"
            print(f"{best} {version.folder.name}  {version.date}  run {run}  {_accuracy(version.metrics)}")
    elif job.rollback:
        pointer = registry.roll_back(folder)
        print(f"{folder / artifact.BEST} is {pointer['version']} again, of {pointer['date']}: {_accuracy(pointer['metrics'])}")
        _print_next(folder, pointer)
    else:
        source = artifact.find(job.run if job.run == "imdb" else cli.path(str(job.run), "RUN"))
        pointer, moved = registry.promote(source, folder, force=job.force, failpoint=failpoint)
        since = "" if moved else f" already, since {pointer['date']}; nothing was done"
        print(f"{folder / artifact.BEST} is {pointer['version']}{since}: {_accuracy(pointer['metrics'])}")
        if moved and pointer["previous"]:
            previous = pointer["previous"]
            print(f"before: {previous['version']}: {_accuracy(previous['metrics'])}; --rollback makes it the best again")
        _print_next(folder, pointer)


def _accuracy(metrics: dict[str, Any]) -> str:
    measured = {split: figures["accuracy"] for split, figures in metrics.items() if "accuracy" in figures}
    return ", ".join(f"{split} accuracy {accuracy:.2%}" for split, accuracy in measured.items()) or "not measured"


def _print_next(folder: Any, pointer: dict[str, Any]) -> None:
    from han.model import artifact

    print(f"next: {cli.command('score')} --model {folder / artifact.BEST} --input <reviews> --out scores")
    print(f"a running service keeps its model: deploy it again with model: {folder / pointer['version']}")


def run() -> None:
    cli.run(Promote, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
