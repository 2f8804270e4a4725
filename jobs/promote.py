"""A finished run becomes the best model: `python -m jobs.promote run`; `--model models/best` is it from then on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from han.model import artifact, registry
from han.types import Mistake
from jobs import cli


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Copy a model into a folder of models as a version that never changes, and point models/best.json at it."""

    run: Annotated[str | None, tyro.conf.Positional] = None
    """the folder of a run, a sweep or an artifact"""
    models: str = "models"
    """the folder of models: new, or what this job made"""
    rollback: cli.Verb = False
    """in place of a run: go back to the version that was the best before"""
    list: cli.Verb = False
    """in place of a run: say what versions there are"""


def main(job: Promote, *, failpoint: str | None = None) -> None:
    """failpoint: where this process is to die (see `Failpoint`)."""
    if (job.run is not None) + job.rollback + job.list != 1:
        raise Mistake("give one of: the folder of a run, --rollback, --list")
    folder = cli.local(job.models, "--models")
    if job.list:
        for version in registry.versions(folder):
            print(f"{'best ' if version.is_best else '     '} {version.folder.name}  {_told(version.metrics)}")
    elif job.rollback:
        pointer = registry.roll_back(folder)
        print(f"{folder / artifact.BEST} is {pointer['version']} again, of {pointer['date']}: {_told(pointer['metrics'])}")
        _next(folder, pointer)
    else:
        source = artifact.find(job.run if job.run == "imdb" else cli.path(str(job.run), "RUN"))
        pointer, moved = registry.promote(source, folder, failpoint=failpoint)
        since = "" if moved else f" already, since {pointer['date']}; nothing was done"
        print(f"{folder / artifact.BEST} is {pointer['version']}{since}: {_told(pointer['metrics'])}")
        if moved and pointer["previous"]:
            print(f"before: {pointer['previous']['version']}: {_told(pointer['previous']['metrics'])}; --rollback goes back to it")
        _next(folder, pointer)


def _told(metrics: dict[str, Any]) -> str:
    return ", ".join(f"{split} accuracy {figures['accuracy']:.2%}" for split, figures in metrics.items()) or "not measured"


def _next(folder: Any, pointer: dict[str, Any]) -> None:
    print(f"next: python -m jobs.score --model {folder / artifact.BEST} --input <reviews> --out scores")
    print(f"a service that runs goes on as it is: deploy it again with model: {folder / pointer['version']}")


if __name__ == "__main__":
    cli.run(Promote, functools.partial(main, failpoint=cli.hidden("--failpoint")))
