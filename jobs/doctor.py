"""Check whether jobs fit the cluster: `han doctor --data data --out run --train.num-workers 8`."""

from __future__ import annotations

import glob
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from han.config import ScoreConfig, TrainConfig
from han.types import UserError
from jobs import cli

if TYPE_CHECKING:
    from han.cluster.doctor import Need

EXAMPLES = ("--jobs train --data data --out run --train.num-workers 8", "--jobs score --input 'dump/*.parquet' --out scores")
Job = Literal["train", "tune", "score", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Resources of the service, as in serve/config.yaml."""

    num_replicas: int = 1
    """processes that score"""
    cpus: float = 1.0
    """CPUs of each"""
    gpu: bool = False
    """use one GPU for each"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """Check the cluster before a job starts. Pass the flags of the jobs you plan to run; each finding says what to do.

    Exit codes: 0 all checks are green; 2 a check is red, or user error in the flags.
    """

    jobs: tuple[Job, ...] = ("train", "tune", "score", "serve")
    """jobs that must fit, one at a time"""
    data: str | None = None
    """an encoded folder that every node must read"""
    model: str | None = None
    """a run or an artifact that every node must read"""
    input: str | None = None
    """reviews that every node must read"""
    out: str | None = None
    """folder that every node must be able to write to"""
    concurrent: int = 1
    """number of trials at once (tune)"""
    train: TrainConfig = field(default_factory=TrainConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    serve: Serving = field(default_factory=Serving)


def main(job: Doctor) -> None:
    places = {"data": job.data, "model": job.model, "input": job.input, "out": job.out}
    if not os.environ.get("RAY_ADDRESS"):  # this machine is the only node
        for name, value in places.items():
            if value and name != "out" and "://" not in value and value not in ("imdb", "sample") and not glob.glob(value):
                raise UserError(f"--{name} {value} is missing on this machine: give an existing path")
    from han.cluster import doctor, nodes

    requested = [
        nodes.JobPath(flag=f"--{name}", path=cli.path(path, f"--{name}"), written=name == "out")
        for name, path in places.items()
        if path and (name, path) not in (("model", "imdb"), ("input", "sample"))
    ]
    needed = [needs(job)[name] for name in job.jobs]
    # Without a cluster each job starts its own Ray with as many logical CPUs as it needs; so does the doctor.
    cli.connect(max((math.ceil(sum(bundle["CPU"] for bundle in need.bundles)) for need in needed), default=1))
    findings = doctor.findings(nodes.examine(requested), needed)
    for finding in findings:
        print(f"{'RED  ' if finding.remedy else 'green'}  {finding.about:<10} {finding.seen}")
        if finding.remedy:
            print(f"       {'':<10} -> {finding.remedy}")
    red = [finding for finding in findings if finding.remedy]
    if red:
        raise UserError(f"{len(red)} of {len(findings)} checks are red: {', '.join(dict.fromkeys(finding.about for finding in red))}")
    print(f"all {len(findings)} checks are green; next: make submit JOB=train ARGS='--data … --out …'")


def needs(job: Doctor) -> dict[Job, Need]:
    """Resources that each job holds at once, one bundle for each process; processes that request no CPU are left out."""
    from han.cluster.doctor import Need

    train, score, serve = job.train, job.score, job.serve
    worker = {"CPU": float(train.cpus_per_worker)} | ({"GPU": 1.0} if train.gpu else {})
    actor = {"CPU": 1.0} | ({"GPU": 1.0} if score.gpu else {})
    replica = {"CPU": serve.cpus} | ({"GPU": 1.0} if serve.gpu else {})
    trial = [worker] * train.num_workers + [{"CPU": 1.0}] * 2  # its driver, and the tasks that read its data
    fewer = "lower --train.num-workers or --train.cpus-per-worker" + (", or drop --train.gpu" if train.gpu else "")
    return {
        "train": Need(job="train", bundles=(worker,) * train.num_workers, lower=fewer),
        "tune": Need(job="tune", bundles=tuple(trial * job.concurrent), lower=f"{fewer}, or --concurrent"),
        "score": Need(job="score", bundles=(actor,) * (score.num_actors or 1), lower="lower --score.num-actors"),
        "serve": Need(job="serve", bundles=(replica,) * serve.num_replicas, lower="lower --serve.num-replicas or --serve.cpus"),
    }


def run() -> None:
    cli.run(Doctor, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
