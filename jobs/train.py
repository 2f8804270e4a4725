"""An encoded folder to a model: `python -m jobs.train --data data --out run`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated, cast

import tyro

from han.config import ModelConfig, TrackConfig, TrainConfig, as_json
from han.train.trainer import fit
from han.tune import search_space
from han.tune.sweep import read_best
from jobs import cli


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train a HAN with Ray Train. The same command goes on where a killed one stopped."""

    data: str
    """an encoded folder, from jobs.prepare"""
    out: str
    """the run's folder: new, or what the same command left"""
    sweep: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """a finished sweep (jobs.tune): its best data and settings are the defaults of all other flags"""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


def main(job: Train) -> None:
    data, out = cli.local(job.data, "--data"), cli.local(job.out, "--out")
    cli.show(f"train {data} -> {out}", {"model": as_json(job.model), "train": as_json(job.train), "track": as_json(job.track)})
    cli.connect(job.train.num_workers * job.train.cpus_per_worker + 1)
    run = fit(data, out, job.model, job.train, track=job.track)
    best = run.best
    print(
        f"best of {len(run.history)} epochs: {best['epoch']}, development accuracy {best['accuracy']:.2%}, "
        f"log loss {best['log_loss']:.4f} on {best['num_reviews']:,} reviews; model in {run.artifact}"
    )
    print(f"next: python -m jobs.evaluate --model {out} --data <labelled test reviews> --out {out.parent / 'evaluation'}")


def defaults() -> Train | None:
    """What flags that are not given mean under --from, which is read before all others."""
    given = next((later for flag, later in zip(sys.argv, sys.argv[1:], strict=False) if flag == "--from"), None)
    given = next((flag.partition("=")[2] for flag in sys.argv if flag.startswith("--from=")), given)
    if given is None:
        return None
    best = read_best(cli.local(given, "--from"))
    model, train = search_space.override(ModelConfig(), TrainConfig(), best["overrides"])
    return Train(data=best["data"], out=cast(str, tyro.MISSING), sweep=given, model=model, train=train)


if __name__ == "__main__":
    cli.run(Train, main, defaults=defaults)
