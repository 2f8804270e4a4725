"""What this cluster has, and what does not fit it: `python -m jobs.doctor --data data --out run --train.num-workers 8`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from han.cluster import doctor, nodes
from han.cluster.doctor import Need
from han.cluster.nodes import Asked
from han.config import ScoreConfig, TrainConfig
from han.types import Mistake
from jobs import cli

Job = Literal["train", "tune", "score", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """As in serve/config.yaml."""

    num_replicas: int = 1
    """processes that score"""
    cpus: float = 1.0
    """CPUs of each"""
    gpu: bool = False
    """one GPU for each"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """Look at the cluster before it costs an hour. Give the flags of the jobs that are to run; each finding says what to do.

    Exit codes: 0 all is well; 2 something is not, or a mistake in the flags.
    """

    jobs: tuple[Job, ...] = ("train", "tune", "score", "serve")
    """which must fit, each on a cluster of its own"""
    data: str | None = None
    """an encoded folder, to be read on every node"""
    model: str | None = None
    """a run or an artifact"""
    input: str | None = None
    """reviews"""
    out: str | None = None
    """where a job is to write, from every node"""
    concurrent: int = 1
    """trials at once (tune)"""
    train: TrainConfig = field(default_factory=TrainConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    serve: Serving = field(default_factory=Serving)


def main(job: Doctor) -> None:
    places = {"data": job.data, "model": job.model, "input": job.input, "out": job.out}
    asked = [
        Asked(flag=f"--{name}", path=cli.path(path, f"--{name}"), written=name == "out")
        for name, path in places.items()
        if path and (name, path) not in (("model", "imdb"), ("input", "sample"))
    ]
    cli.connect()
    findings = doctor.findings(nodes.examine(asked), [needs(job)[name] for name in job.jobs])
    for finding in findings:
        print(f"{'RED  ' if finding.mend else 'green'}  {finding.about:<10} {finding.seen}")
        if finding.mend:
            print(f"       {'':<10} -> {finding.mend}")
    red = [finding for finding in findings if finding.mend]
    if red:
        raise Mistake(f"{len(red)} of {len(findings)} checks are red: {', '.join(dict.fromkeys(finding.about for finding in red))}")
    print(f"all {len(findings)} checks are green; next: make submit JOB=train ARGS='--data … --out …'")


def needs(job: Doctor) -> dict[Job, Need]:
    """What each job holds at once, a bundle a process; what asks for no CPU is left out."""
    train, score, serve = job.train, job.score, job.serve
    worker = {"CPU": float(train.cpus_per_worker)} | ({"GPU": 1.0} if train.gpu else {})
    actor = {"CPU": 1.0} | ({"GPU": 1.0} if score.gpu else {})
    replica = {"CPU": serve.cpus} | ({"GPU": 1.0} if serve.gpu else {})
    trial = [worker] * train.num_workers + [{"CPU": 1.0}] * 2  # its driver, and who reads its data
    fewer = "lower --train.num-workers or --train.cpus-per-worker" + (", or give --train.gpu False" if train.gpu else "")
    return {
        "train": Need(job="train", bundles=(worker,) * train.num_workers, lower=fewer),
        "tune": Need(job="tune", bundles=tuple(trial * job.concurrent), lower=f"{fewer}, or --concurrent"),
        "score": Need(job="score", bundles=(actor,) * (score.num_actors or 1), lower="lower --score.num-actors"),
        "serve": Need(job="serve", bundles=(replica,) * serve.num_replicas, lower="lower --serve.num-replicas or --serve.cpus"),
    }


if __name__ == "__main__":
    cli.run(Doctor, main)
