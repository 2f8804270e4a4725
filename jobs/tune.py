"""Many settings of one training, and the best of them: `python -m jobs.tune --data data --out sweep --trials 16`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from han.config import ModelConfig, TrackConfig, TrainConfig, as_json
from han.train import trainer
from han.tune import search, search_space
from han.tune.sweep import SweepConfig, counts
from jobs import cli
from jobs.trials import Trials


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """Search settings with Ray Tune and Optuna; a trial is what jobs.train runs. The same command goes on where a killed one stopped."""

    data: tuple[str, ...]
    """encoded folders, from jobs.prepare; several, with the same development reviews and other vectors, make the folder one more choice"""
    out: str
    """the sweep's folder: new, or what the same command left"""
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")]
    space: str | None = None
    """a TOML file that changes what is varied (see han/tune/search_space.py)"""
    vary: tuple[str, ...] = ()
    """the same on the command line: 'train.learning_rate={low=1e-4,high=1e-2,log=true}' 'model.word_hidden=[25,50]' model.dropout=false"""
    concurrent: int | None = None
    """trials at once at most; None is what fits: on a cluster its CPUs and GPUs, else the CPUs of this machine"""
    retrain: int = 0
    """train the best settings again over so many seeds: the best of many trials is an optimist"""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


def main(job: Tune, *, fit: Callable[..., Any] = trainer.fit) -> None:
    """fit: what a trial runs, as `trainer.fit`."""
    data, out = [cli.local(folder, "--data") for folder in job.data], cli.local(job.out, "--out")
    varied = search_space.read_space(cli.local(job.space, "--space") if job.space else None, job.vary, [str(folder) for folder in data])
    settings = {
        "sweep": as_json(job.sweep),
        "space": search_space.as_json(varied),
        "model": as_json(job.model),
        "train": as_json(job.train),
    }
    cli.show(f"tune {' '.join(map(str, data))} -> {out}", settings)
    cpus = job.train.num_workers * job.train.cpus_per_worker
    at_once = job.concurrent or max(1, cli.num_cpus() // cpus)
    os.environ |= {f"TUNE_{name}": "1" for name in ("DISABLE_AUTO_CALLBACK_LOGGERS", "DISABLE_SIGINT_HANDLER")}
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_PRINT_ALL_TRIAL_ERRORS": "0"}  # the table has a line for each trial
    cli.connect(at_once * (cpus + 2), workers_print=False)
    found = search.sweep(
        search.SweepJob(
            data=data,
            out=out,
            space=varied,
            model=job.model,
            train=job.train,
            config=job.sweep,
            concurrent=job.concurrent,
            retrain=job.retrain,
            track=job.track,
        ),
        watch=Trials(total=job.sweep.trials),
        fit=fit,
    )
    _told(found, out, full=job.sweep.trials * job.train.epochs)


def _told(found: search.Sweep, out: Path, *, full: int) -> None:
    """full: epochs that would have run had no trial been stopped."""
    ran, best = counts(found.study), found.best
    print(f"{ran['done']} trials done, {ran['stopped']} stopped early, {ran['failed']} failed: {ran['epochs']} of {full} epochs")
    print(f"best: trial {best['trial']}, development accuracy {best['development']['accuracy']:.2%}; model in {out / 'artifact'}")
    if "retrained" in best:
        again = best["retrained"]
        print(f"over {len(again['seeds'])} other seeds: {again['mean']:.2%}, standard deviation {again['standard_deviation']:.2%}")
    print(f"next: open {out / 'report.html'}; then python -m jobs.train --from {out} --out {out.parent / 'run'} for a longer training,")
    print(f"or python -m jobs.evaluate --model {out} --data <labelled test reviews> --out {out.parent / 'evaluation'}")


if __name__ == "__main__":
    cli.run(Tune, main)
