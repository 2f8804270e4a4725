"""An encoded folder to a model: `han train --data data --out run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

import tyro

from han.config import ModelConfig, SemiSupervisedConfig, TrackConfig, TrainConfig, as_json, differences, read_json
from han.types import UserError
from jobs import cli

EXAMPLES = (
    "--data data --out run --train.num-workers 2",
    "--data data --out run --train.gpu --train.precision bfloat16 --train.num-workers 4",
    "--data data --from sweep --out run --train.epochs 8",
    "--data data --out run --train.semi-supervised",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train a HAN with Ray Train. If it is interrupted, the same command resumes from the last epoch."""

    data: str
    """an encoded folder, from `prepare`"""
    out: str
    """the folder of the run: new, or from the same command"""
    sweep: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """a finished sweep, from `tune`: its best data and settings become the defaults of all other flags"""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    semi_supervised: SemiSupervisedConfig = field(default_factory=SemiSupervisedConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


def main(job: Train) -> None:
    data, out = cli.encoded(job.data), cli.local(job.out, "--out")
    job = _absolute(job, data, out)
    cli.check_out(out, "config.json", ".config.json.")
    _check_same_run(data, out, job)
    cli.show(f"train {data} -> {out}", job)
    cli.connect(job.train.num_workers * job.train.cpus_per_worker + 1)
    from han.train.trainer import fit

    with cli.repeatable(replace(job, sweep=None), out):  # what the sweep gave is among the settings
        run = fit(data, out, job.model, job.train, track=job.track, recipe=job.semi_supervised)
    best = run.best
    print(
        f"best of {cli.plural(len(run.history), 'epoch')}: {best['epoch']}, development accuracy {best['accuracy']:.2%}, "
        f"log loss {best['log_loss']:.4f} on {best['num_reviews']:,} reviews; model in {run.artifact}"
    )
    from han.model import metrics

    for doubt in metrics.doubts(best):
        print(f"warning, on the development split: {doubt}")
    evaluation = cli.unused(out.parent / "evaluation")
    print(f"next: {cli.command('evaluate')} --model {out} --data <labelled test reviews> --out {evaluation}")


def _absolute(job: Train, data: Path, out: Path) -> Train:
    """The job with absolute paths."""
    soft_labels = job.train.soft_labels and str(cli.local(job.train.soft_labels, "--train.soft-labels"))
    stages = job.semi_supervised.stages and str(cli.local(job.semi_supervised.stages, "--semi-supervised.stages"))
    train, recipe = replace(job.train, soft_labels=soft_labels), replace(job.semi_supervised, stages=stages)
    return replace(job, data=str(data), out=str(out), train=train, semi_supervised=recipe)


def _check_same_run(data: Path, out: Path, job: Train) -> None:
    """Find other settings in the folder of a run before Ray starts; `fit` checks all of them again."""
    if not (out / "config.json").is_file():
        return
    theirs = read_json(out / "config.json")
    ours = {"data": str(data), "model": as_json(job.model), "train": as_json(job.train)}
    changed = differences(ours, {name: theirs.get(name) for name in ours})
    if changed:
        raise UserError(f"{out} holds a run with other settings ({'; '.join(changed[:3])}): give another --out, or the same settings")


def defaults(arguments: Sequence[str], values: dict[str, Any]) -> Train | None:
    """Values that neither a flag nor the settings file gives, under --from. --from is read before all other flags."""
    source = cli.value_of(arguments, "--from") or values.get("sweep")
    if source is None:
        return None
    from han.tune import search_space
    from han.tune.sweep import read_best

    best = read_best(cli.local(source, "--from"))
    model, train = search_space.override(ModelConfig(), TrainConfig(), best["overrides"])
    return Train(data=best["data"], out=cast(str, tyro.MISSING), sweep=source, model=model, train=train)


def run() -> None:
    cli.run(Train, main, defaults=defaults, examples=EXAMPLES)


if __name__ == "__main__":
    run()
