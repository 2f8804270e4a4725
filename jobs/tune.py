"""Hyperparameter search: `han tune --data data --out sweep --trials 16`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from han.config import ModelConfig, SweepConfig, TrackConfig, TrainConfig
from jobs import cli

EXAMPLES = (
    "--data data --out sweep --trials 16 --retrain 3",
    "--data data --out sweep --trials 16 --vary 'train.learning_rate={low=1e-4,high=1e-2,log=true}' model.dropout=false",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """Search settings with Ray Tune and Optuna. A trial is a training as `train` runs it. The same command resumes a killed sweep."""

    data: tuple[str, ...]
    """encoded folders, from `prepare`; with several folders of the same development reviews, the sweep also chooses the folder"""
    out: str
    """the folder of the sweep: new, or from the same command"""
    sweep: Annotated[SweepConfig, tyro.conf.OmitArgPrefixes]
    space: str | None = None
    """a TOML file that changes the search space (see han/tune/search_space.py)"""
    vary: tuple[str, ...] = ()
    """changes of the search space: 'train.learning_rate={low=1e-4,high=1e-2,log=true}' 'model.word_hidden=[25,50]' model.dropout=false"""
    concurrent: int | None = None
    """maximum number of trials at once; the default uses what fits the CPUs and GPUs"""
    retrain: int = 0
    """train the best settings again with this many other seeds, because the figure of the best of many trials is optimistic"""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


def main(job: Tune, *, fit: Callable[..., Any] | None = None) -> None:
    """fit: what a trial runs; None is `trainer.fit`."""
    data, out = [cli.encoded(folder) for folder in job.data], cli.local(job.out, "--out")
    job = _absolute(job, data, out)
    cli.check_out(out, "sweep.json", ".")
    from han.tune import search_space, sweep

    varied = search_space.read_space(Path(job.space) if job.space else None, job.vary, [str(folder) for folder in data])
    search_space.check(varied, job.model, job.train)
    sweep.check(out, sweep.request_of(data, varied, model=job.model, train=job.train, config=job.sweep))
    cli.show(f"tune {' '.join(map(str, data))} -> {out}", job)
    for name, value in search_space.as_json(varied).items():
        print(f"  varies {name:<25} {value}")
    cpus = job.train.num_workers * job.train.cpus_per_worker
    at_once = job.concurrent or max(1, cli.num_cpus() // cpus)
    os.environ |= {f"TUNE_{name}": "1" for name in ("DISABLE_AUTO_CALLBACK_LOGGERS", "DISABLE_SIGINT_HANDLER")}
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_PRINT_ALL_TRIAL_ERRORS": "0"}  # the table has a line for each trial
    cli.connect(at_once * (cpus + 2), workers_print=False)
    from han.train import trainer
    from han.tune import search
    from jobs.trials import Trials

    request = search.SweepJob(
        data=data,
        out=out,
        space=varied,
        model=job.model,
        train=job.train,
        config=job.sweep,
        concurrent=job.concurrent,
        retrain=job.retrain,
        track=job.track,
    )
    with cli.repeatable(job, out):
        result = search.sweep(request, watch=Trials(total=job.sweep.trials), fit=fit or trainer.fit)
    _print_result(result, out, full=job.sweep.trials * job.train.epochs)


def _absolute(job: Tune, data: Sequence[Path], out: Path) -> Tune:
    """The job with absolute paths."""
    space = job.space and str(cli.local(job.space, "--space"))
    soft_labels = job.train.soft_labels and str(cli.local(job.train.soft_labels, "--train.soft-labels"))
    warm_start = job.sweep.warm_start and str(cli.local(job.sweep.warm_start, "--warm-start"))
    sweep, train = replace(job.sweep, warm_start=warm_start), replace(job.train, soft_labels=soft_labels)
    return replace(job, data=tuple(map(str, data)), out=str(out), space=space, sweep=sweep, train=train)


def _print_result(result: Any, out: Path, *, full: int) -> None:
    """full: epochs without early stopping."""
    from han.tune.sweep import counts

    ran, best = counts(result.study), result.best
    print(
        f"{cli.plural(ran['done'], 'trial')} done, {ran['stopped']} stopped early, {ran['failed']} failed: {ran['epochs']} of {full} epochs"
    )
    print(f"best: trial {best['trial']}, development accuracy {best['development']['accuracy']:.2%}; model in {out / 'artifact'}")
    if "retrained" in best:
        again = best["retrained"]
        seeds = cli.plural(len(again["seeds"]), "other seed")
        print(f"over {seeds}: {again['mean']:.2%}, standard deviation {again['standard_deviation']:.2%}")
    print(f"next: open {out / 'report.html'}; for a longer training:")
    print(f"  {cli.command('train')} --from {out} --out {cli.unused(out.parent / 'run')}")
    print(f"  {cli.command('evaluate')} --model {out} --data <labelled test reviews> --out {cli.unused(out.parent / 'evaluation')}")


def run() -> None:
    cli.run(Tune, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
