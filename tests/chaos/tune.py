"""Test the guarantees of sweeps: `python -m tests.chaos.tune [--seed N] [--only kills faults nodes]`, one line for each.

One Ray is started. Every sweep is a separate driver that joins it, or a job that is submitted to it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from ray.util.state import list_actors

from han.config import PrepareConfig, VectorsConfig, VocabConfig
from han.data.samples import planted
from han.model import artifact
from han.train.prepare import prepare
from han.tune import sweep
from tests.chaos.repeated import Repeated, until
from tests.chaos.report import close, reliability
from tests.helpers.cluster import RAY, Cluster, head

TRIALS, KILLS, BOUND, CPUS = 7, 3, 2, 3  # a node with 3 CPUs holds one trial: its driver, its worker, and a CPU for reading
DEADLINE_S = 420
ROOT = Path(__file__).parents[2]
SETTINGS = [
    "--train.epochs=3",
    "--train.learning-rate=0.005",
    "--train.batch-tokens=8192",
    "--train.max-failures=0",
    "--model.word-hidden=16",
]
SPACE = ["--vary", "model.word_hidden=[8,16,24]", "model.sentence_hidden=false", "train.batch_tokens=[4096,8192]"]


class Driver:
    """The driver of a sweep on the cluster."""

    def __init__(self, cluster: Cluster, data: Path, out: Path, *flags: str, through: tuple[str, ...] = ("jobs.tune",)) -> None:
        self.log = out.parent / f".{out.name}.{secrets.token_hex(4)}.log"
        command = [sys.executable, "-m", *through, *flags_of(data, out), *flags]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=log, stderr=log)

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -1
        if code:
            print(self.log.read_text()[-3_000:])
        return code

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def flags_of(data: Path, out: Path) -> list[str]:
    return ["--data", str(data), "--out", str(out), *SETTINGS, *SPACE]


class Watched(Repeated):
    """The number of trials that run at once, and their nodes, from Ray's list of actors of all jobs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.most, self.polls, self.nodes = 0, 0, set[str]()

    def look(self) -> None:
        alive = list_actors(address=self._cluster.dashboard, filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
        self.most = max(self.most, sum(actor.class_name == "ImplicitFunc" for actor in alive))
        self.nodes |= {actor.node_id for actor in alive if actor.class_name in ("ImplicitFunc", "RayTrainWorker")}
        self.polls += 1


def trials_of(out: Path) -> list[FrozenTrial]:
    return sweep.read_study(out).get_trials() if (out / "trials").exists() else []


def finished_trials(out: Path) -> dict[int, str]:
    """The finished trials by number, as text that must never change."""
    return {
        trial.number: json.dumps(
            [trial.state.name, trial.params, trial.values, trial.intermediate_values, trial.user_attrs], sort_keys=True
        )
        for trial in trials_of(out)
        if trial.state in sweep.DONE
    }


def lost(out: Path) -> int:
    """The number of complete trials without a model and of stopped trials without a history."""
    num_lost = 0
    for trial in trials_of(out):
        folder = out / sweep.folder_of(trial.number)
        if trial.state == TrialState.COMPLETE:
            num_lost += artifact.load(folder / "artifact").metrics["development"]["accuracy"] != trial.values[0]
        elif trial.state == TrialState.PRUNED:
            num_lost += not (folder / "history.jsonl").exists()
    return num_lost


def killed(cluster: Cluster, data: Path, out: Path, chance: random.Random) -> tuple[dict[int, str], list[float]]:
    """Kill the driver of a sweep KILLS times: first before a trial has finished, then a random time after one of its trials has.

    Returns the trials that had finished before each kill, and the waiting times in seconds.
    """
    known: dict[int, str] = {}
    waits = []
    for kill in range(KILLS):
        before = len(finished_trials(out))
        driver = Driver(cluster, data, out, f"--trials={TRIALS}")
        if kill:
            assert until(lambda before=before: len(finished_trials(out)) > before, 240), driver.log.read_text()  # type: ignore[misc]
        else:
            assert until(lambda: any(trial.state == TrialState.RUNNING for trial in trials_of(out)), 120), driver.log.read_text()
        waits.append(chance.uniform(0, 20))
        time.sleep(waits[-1])
        driver.kill()
        known |= {number: trial for number, trial in finished_trials(out).items() if number not in known}
    return known, waits


def kills(cluster: Cluster, data: Path, folder: Path, chance: random.Random) -> None:
    """Kill the driver at random times. The number of trials is right, finished ones do not change, none is lost, the limit holds."""
    out = folder / "killed"
    with Watched(cluster) as watched:
        known, waits = killed(cluster, data, out, chance)
        code = Driver(cluster, data, out, f"--trials={TRIALS}").wait()
    after = finished_trials(out)
    unchanged = sum(after.get(number) == trial for number, trial in known.items())
    params = {json.dumps(trial.params, sort_keys=True) for trial in trials_of(out)}
    ok = code == 0 and sorted(after) == list(range(TRIALS)) and len(params) == TRIALS
    after_s = " ".join(f"{wait:.0f}" for wait in waits)
    reliability("tune-kills", ok=ok, killed=KILLS, after_s=after_s, trials=len(after), unique=len(params), requested=TRIALS)
    reliability("tune-finished-unchanged", ok=unchanged == len(known) > 0, unchanged=unchanged, of=len(known))
    reliability("tune-none-lost", ok=lost(out) == 0, lost=lost(out))
    reliability("tune-concurrency", ok=0 < watched.most <= BOUND, most=watched.most, bound=BOUND, polls=watched.polls)
    again = Driver(cluster, data, out, f"--trials={TRIALS}")
    reliability("tune-finished-is-finished", ok=again.wait() == 0 and finished_trials(out) == after, trials=len(after))


def control(cluster: Cluster, data: Path, folder: Path) -> None:
    """Control: a sweep that forgets its running trials must fail the check."""
    out = folder / "forgetful"
    driver = Driver(cluster, data, out, "--trials=2")
    assert until(lambda: any(trial.state == TrialState.RUNNING for trial in trials_of(out)), 120)
    driver.kill()
    code = Driver(cluster, data, out, "--trials=2", through=("tests.chaos.tuner", "forgetful")).wait()
    num_finished = len(finished_trials(out))
    reliability("tune-kills-control", ok=code != 0 and num_finished < 2, code=code, trials=num_finished, requested=2)


def faults(cluster: Cluster, data: Path, folder: Path) -> None:
    """One trial raises, one is killed as if out of memory, one allocates too much memory. The other trials finish."""
    out = folder / "faulty"
    code = Driver(cluster, data, out, "--trials=5", through=("tests.chaos.tuner", "faulty")).wait()
    states = {trial.number: trial.state for trial in trials_of(out)}
    reasons = {trial.number: str(trial.user_attrs.get("reason")) for trial in trials_of(out) if trial.state == TrialState.FAIL}
    for number, reason in reasons.items():
        print(f"  trial {number}: {reason}")
    rest = [states[number] in (TrialState.COMPLETE, TrialState.PRUNED) for number in (0, 4) if number in states]
    expected = {1: "trial 1 raises", 2: "", 3: "memory"}
    right = all(reason in reasons.get(number, "-") for number, reason in expected.items()) and None not in reasons.values()
    best = sweep.read_best(out)["trial"] if code == 0 else None
    ok = code == 0 and rest == [True, True] and sorted(reasons) == [1, 2, 3] and right and best in (0, 4)
    reliability("tune-failures", ok=ok, failed=len(reasons), finished=sum(rest), best=best)


def nodes(cluster: Cluster, data: Path, folder: Path) -> None:
    """Submit a sweep to two nodes. Its trials run on both."""
    out = folder / "submitted"
    command = [RAY, "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command += ["--runtime-env-json", json.dumps({"env_vars": {"PATH": path}}), "--"]
    command += ["python", "-m", "jobs.tune", *flags_of(data, out), "--trials=4"]
    with Watched(cluster) as watched:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        print(done.stdout[-3_000:], done.stderr[-1_000:])
    num_finished = len(finished_trials(out))
    ok = done.returncode == 0 and num_finished == 4 and len(watched.nodes) == 2 and watched.most <= BOUND
    reliability("tune-submitted-on-two-nodes", ok=ok, trials=num_finished, nodes=len(watched.nodes), most=watched.most, bound=BOUND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="seed of the random times")
    parser.add_argument("--only", nargs="*", default=["kills", "faults", "nodes"], help="runs to do")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}; to repeat this run: --seed {arguments.seed}", flush=True)
    with head(num_cpus=CPUS, num_nodes=2) as cluster, tempfile.TemporaryDirectory(prefix="han-tune-") as name:
        folder = Path(name)
        planted.write_jsonl(folder / "planted.jsonl", 800, seed=1, num_neutral=200)
        small = PrepareConfig(vocab=VocabConfig(min_count=1), vectors=VectorsConfig(size=16, source="random"), punkt_sample=0)
        data = prepare(str(folder / "planted.jsonl"), folder / "data", small, dev_ids=None, report=lambda *step: None).path
        if "kills" in arguments.only:
            kills(cluster, data, folder, random.Random(arguments.seed))
            control(cluster, data, folder)
        if "faults" in arguments.only:
            faults(cluster, data, folder)
        if "nodes" in arguments.only:
            nodes(cluster, data, folder)
    close()


if __name__ == "__main__":
    main()
