"""The doctor's checks on recorded facts, without Ray."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from han.cluster.doctor import Cluster, Finding, Node, Place, findings
from han.config import TrainConfig
from jobs.doctor import Doctor, Serving, needs

VERSIONS = {"python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0", "han": "0.1.0"}
IN = Place(flag="--data", path="/shared/data", problem=None, content="12 entries", free_mb=None)
OUT = Place(flag="--out", path="/shared/run", problem=None, content="", free_mb=50_000.0)
NODE = Node(
    name="head",
    resources={"CPU": 4.0, "object_store_memory": 200e6},
    versions=VERSIONS,
    places=(IN, OUT),
    temp="/var/ray",
    temp_free_mb=50_000.0,
    temp_used=0.4,
    memory_mb=1_000.0,
    skew_within_s=0.01,
)
GOOD = Cluster(nodes=(NODE, replace(NODE, name="node1")), dashboard="127.0.0.1:8265", status=401)


def red(cluster: Cluster, job: Doctor | None = None) -> list[Finding]:
    job = job or Doctor()
    wanted = [needs(job)[name] for name in job.jobs]
    return [finding for finding in findings(cluster, wanted) if finding.remedy]


def with_node(**facts: Any) -> Cluster:
    return replace(GOOD, nodes=(NODE, replace(NODE, name="node1", **facts)))


def test_a_sound_cluster_passes_all_checks() -> None:
    assert red(GOOD) == []
    said = " ".join(finding.seen for finding in findings(GOOD, list(needs(Doctor()).values())))
    assert "2 up, with 8 CPUs" in said
    assert "ray 2.60.0" in said


BROKEN: list[tuple[str, Cluster, Doctor, str, str]] = [
    (
        "no GPU",
        GOOD,
        Doctor(jobs=("train",), train=TrainConfig(num_workers=2, gpu=True)),
        "needs 2 GPUs, the cluster has 0 GPUs",
        "drop --train.gpu",
    ),
    (
        "too few CPUs",
        GOOD,
        Doctor(jobs=("train",), train=TrainConfig(num_workers=9)),
        "needs 9 CPUs, the cluster has 8 CPUs",
        "lower --train.num-workers",
    ),
    (
        "versions differ",
        with_node(versions=VERSIONS | {"torch": "2.12.1"}),
        Doctor(),
        "torch 2.13.0 on head; torch 2.12.1 on node1",
        "install the same torch everywhere",
    ),
    (
        "a path is not there",
        with_node(places=(replace(IN, problem="there is no such file or folder"), OUT)),
        Doctor(),
        "/shared/data on node1: there is no such file or folder",
        "storage that every node has mounted",
    ),
    ("no auth", replace(GOOD, status=200), Doctor(), "answers 200 without a token", "RAY_AUTH_MODE=token"),
    (
        "a full disk",
        with_node(temp_free_mb=120.0, temp_used=0.99),
        Doctor(),
        "node1 has 120 MB left for /var/ray, 99% is used",
        "free some space: Ray writes",
    ),
    ("a full output", with_node(places=(IN, replace(OUT, free_mb=12.0))), Doctor(), "/shared/run has 12 MB left", "free some space there"),
    (
        "other content",
        with_node(places=(replace(IN, content="3 entries"), OUT)),
        Doctor(),
        "12 entries on head; 3 entries on node1",
        "shared storage",
    ),
    ("a clock", with_node(skew_s=-61.0), Doctor(), "node1 is 61 s behind", "NTP"),
    ("little shared memory", with_node(memory_mb=64.0), Doctor(), "64 MB of shared memory for 200 MB", "--shm-size"),
    ("a dashboard for all", replace(GOOD, dashboard="10.0.0.3:8265"), Doctor(), "listens on 10.0.0.3:8265", "--dashboard-host=127.0.0.1"),
    ("a silent node", with_node(problem="no answer in 120 s"), Doctor(), "node1 does not answer: no answer in 120 s", "logs of node1"),
]


@pytest.mark.parametrize(("cluster", "job", "seen", "remedy"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_problem_is_one_line_with_a_remedy(cluster: Cluster, job: Doctor, seen: str, remedy: str) -> None:
    findings = [finding for finding in red(cluster, job) if seen in finding.seen]
    assert len(findings) == 1, red(cluster, job)
    assert remedy in (findings[0].remedy or "")
    assert {finding.about for finding in red(cluster, job)} in ({findings[0].about},), "nothing else is wrong"


def test_a_worker_larger_than_every_node_does_not_fit() -> None:
    many = replace(GOOD, nodes=tuple(replace(NODE, name=f"node{number}") for number in range(8)))
    (finding,) = red(many, Doctor(train=TrainConfig(cpus_per_worker=6)))[:1]
    assert "needs 6 CPUs on one node" in finding.seen
    assert "the largest has 4 CPUs" in finding.seen


def test_workers_are_placed_so_that_larger_ones_still_fit() -> None:
    uneven = replace(GOOD, nodes=(NODE, replace(NODE, name="node1", resources={"CPU": 2.0})))
    job = Doctor(jobs=("tune",), train=TrainConfig(cpus_per_worker=4))
    assert [finding.about for finding in red(uneven, job)] == []


def test_replicas_and_trials_are_counted_as_configured() -> None:
    about = [finding.about for finding in red(GOOD, Doctor(concurrent=3, serve=Serving(num_replicas=9)))]
    assert about == ["tune", "serve"]


def test_a_slow_reply_is_not_reported_as_a_wrong_clock() -> None:
    assert red(with_node(skew_s=6.0, skew_within_s=2.0)) == []
