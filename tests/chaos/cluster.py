"""Test that a cluster survives the death of a node: `python -m tests.chaos.cluster [--seed N] [--only C1 C2 …]`, one line for each run.

Three nodes with two CPUs run on this machine, each with its own raylet and workers, with a token. Jobs are submitted as users submit them.
A node dies by SIGKILL to its raylet, workers and agents; another node joins before the next run. See docs/runbook.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file

from deploy import local
from han.data.samples import planted
from han.model import artifact
from han.score.scorer import Scorer
from tests.chaos.batch import NUM_EMPTY, digest, holds, oracle, write_dump
from tests.chaos.report import attempt, close, reliability
from tests.chaos.service import GoldenRequest, Service, golden
from tests.chaos.submitted import Job, actors_by_node, cluster, until

NODE = local.NodeConfig(num_cpus=2)
NUM_REVIEWS, NUM_TRIALS, PER_S = 6_000, 4, 5.0
SIZES = ["--model.word-hidden=16", "--model.word-attention=32", "--model.sentence-hidden=16", "--model.sentence-attention=32"]
QUICK = ["--train.learning-rate=0.01", "--train.batch-tokens=8192"]
# A worker takes the two CPUs of a node, so two workers run on two nodes. After four epochs, some seeds have learnt two labels of three.
TRAIN = [*SIZES, *QUICK, "--train.num-workers=2", "--train.cpus-per-worker=2", "--train.epochs=6"]
MAX_TRIES, PAUSE_S = 5, 0.5  # of a client: see docs/serving.md
SERVE = str(Path(sys.executable).with_name("serve"))


class Matrix:
    """All runs, on one cluster."""

    def __init__(self, cluster: local.LocalCluster, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.dashboard, self.cluster_folder = cluster.dashboard, cluster.folder
        self.headers = {"Authorization": f"Bearer {(cluster.folder / 'token').read_text()}"}
        self.reviews, self.test, self.dump = folder / "reviews.jsonl", folder / "test.jsonl", folder / "dump.parquet"
        planted.write_jsonl(self.reviews, 1_600, seed=seed, num_neutral=400)
        planted.write_jsonl(self.test, 200, seed=seed + 1, num_neutral=50)
        write_dump(self.dump, NUM_REVIEWS, seed=seed)

    def _job(self, name: str, *arguments: object) -> Job:
        return Job(self.dashboard, "python", "-m", f"jobs.{name}", *map(str, arguments))

    def _train(self, out: Path) -> Job:
        return self._job("train", "--data", self.folder / "data", "--out", out, *TRAIN)

    def _score(self, out: Path) -> Job:
        return self._job("score", "--input", self.dump, "--out", out, "--num-actors", 4)

    def _tune(self, out: Path) -> Job:
        flags = [*SIZES, *QUICK, "--train.epochs=2"]
        return self._job("tune", "--data", self.folder / "data", "--out", out, "--trials", NUM_TRIALS, "--concurrent", 2, *flags)

    def _kill_worker_node(self, kind: str) -> str:
        """Kill a node with actors of this kind, never the head, and return its name."""
        victims = [name for name in actors_by_node(self.dashboard, kind) if name != "head"]
        victim = self.random.choice(sorted(victims))
        local.kill_node(local.read(self.cluster_folder).node(victim))
        return victim

    def replace(self) -> None:
        local.add_node(local.read(self.cluster_folder), NODE)

    def c1_everything_submitted(self) -> None:
        """Prepare, train on two nodes, evaluate and score. The other runs are compared with these results."""
        flags = ["--vocab.min-count", 1, "--vectors.size", 32, "--punkt-sample", 0]
        prepared = self._job("prepare", "--input", self.reviews, "--out", self.folder / "data", *flags).wait(300)
        spread: dict[str, set[str]] = {}
        training = self._train(self.folder / "run")
        until(lambda: spread.update(actors_by_node(self.dashboard, "training")) or sum(map(len, spread.values())) == 2, 120)
        trained = training.wait(400)
        evaluation = self._job("evaluate", "--model", self.folder / "run", "--data", self.test, "--out", self.folder / "evaluation")
        evaluated = evaluation.wait(300)
        scored = self._undisturbed()
        figures = json.loads((self.folder / "evaluation" / "metrics.json").read_text()) if evaluated else {"accuracy": 0.0}
        counts = oracle(self.dump, self.folder / "scores")
        ok = prepared and trained and len(spread) == 2 and figures["accuracy"] >= 0.95 and scored and holds(counts)
        nodes = ",".join(sorted(spread))
        reliability("C1-submitted", ok=ok, training_on=nodes, test_accuracy=figures["accuracy"], scored=scored, **counts)

    def c2_training(self) -> None:
        out = self.folder / "killed"
        job = self._train(out)
        until(lambda: (out / "history.jsonl").exists(), 300)
        began, victim = time.monotonic(), self._kill_worker_node("training")
        succeeded = job.wait(400)
        took_s = time.monotonic() - began
        histories, weights = (
            [_history(run) if succeeded else [] for run in (out, self.folder / "run")],
            [load_file(run / "artifact" / "model.safetensors") if succeeded else {} for run in (out, self.folder / "run")],
        )
        figures = ("accuracy", "log_loss", "train_loss")
        off = max((abs(one[name] - other[name]) for one, other in zip(*histories, strict=False) for name in figures), default=1.0)
        weights_off = max((float(abs(weights[0][name] - weights[1][name]).max()) for name in weights[1]), default=1.0)
        reliability(
            "C2-training",
            ok=succeeded and len(histories[0]) == len(histories[1]) and off <= 1e-5 and weights_off <= 1e-5,
            killed=victim,
            epochs=len(histories[0]),
            figures_off=off,
            weights_off=weights_off,
            from_kill_to_end_s=took_s,
        )

    def c3_sweep(self) -> None:
        out = self.folder / "sweep"
        job = self._tune(out)
        ready = until(lambda: any(name != "head" for name in actors_by_node(self.dashboard, "training")), 300)
        began, victim = time.monotonic(), self._kill_worker_node("training") if ready else "none"
        succeeded = job.wait(400)
        took_s = time.monotonic() - began
        trials = pq.read_table(out / "trials.parquet").to_pylist() if succeeded else []
        unique = len({trial["number"] for trial in trials})
        lost = sum(trial["state"] not in ("COMPLETE", "PRUNED") for trial in trials)
        reliability(
            "C3-sweep",
            ok=ready and succeeded and unique == len(trials) == NUM_TRIALS and lost == 0,
            killed=victim,
            trials=len(trials),
            unique=unique,
            lost=lost,
            from_kill_to_end_s=took_s,
        )

    def _undisturbed(self) -> bool:
        """Score the dump without a fault, unless C1 has done it; returns whether it is scored."""
        return (self.folder / "scores" / "_SUCCESS").exists() or self._score(self.folder / "scores").wait(400)

    def c4_scoring(self) -> None:
        whole, out = self._undisturbed(), self.folder / "scores-killed"
        job = self._score(out)
        ready = until(lambda: bool(list(out.glob(".staging/attempts/*.json"))) and len(actors_by_node(self.dashboard, "scoring")) >= 2, 120)
        began, victim = time.monotonic(), self._kill_worker_node("scoring") if ready else "none"
        in_time = not (out / "_SUCCESS").exists()
        succeeded = job.wait(400)
        counts = oracle(self.dump, out)
        same = whole and succeeded and digest(out) == digest(self.folder / "scores")
        reliability(
            "C4-scoring",
            ok=ready and in_time and succeeded and holds(counts, NUM_EMPTY) and same,
            killed=victim,
            **counts,
            digest_equal=same,
            from_kill_to_end_s=time.monotonic() - began,
        )

    def c5_serving(self) -> None:
        """Light load by clients that retry as docs/serving.md says, with replicas of each kind on two nodes."""
        service = Service(self.dashboard, headers=self.headers)
        for deployment in service.config["applications"][0]["deployments"]:
            if deployment["name"] != "Coordinator":
                deployment["max_replicas_per_node"] = 1
        (self.folder / "serve.yaml").write_text(yaml.safe_dump(service.config))
        subprocess.run([SERVE, "deploy", "--address", self.dashboard, str(self.folder / "serve.yaml")], check=True, timeout=60)
        deployed = until(lambda: service.status() == "RUNNING" and service.is_whole() and service.readyz() == 200, 300)
        requests = golden([Scorer(artifact.load(artifact.find("imdb")))], num_texts=100)
        with Clients(service.score_url, requests) as clients:
            time.sleep(3)
            spread, killed_s = actors_by_node(self.dashboard, "serving"), clients.since_s()
            victim = self._kill_worker_node("serving")
            until(lambda: len(service.running()) < 2, 60)
            whole = until(service.is_whole, 120)
            whole_s = clients.since_s() - killed_s
            time.sleep(3)
        results = clients.results
        reliability(
            "C5-serving",
            ok=deployed and whole and len(spread) == 2 and bool(results) and all(each["ok"] for each in results),
            killed=victim,
            sent=len(results),
            failed=sum(not each["ok"] for each in results),
            wrong=sum(each["wrong"] for each in results),
            retried=sum(each["tries"] > 1 for each in results),
            most_tries=max(each["tries"] for each in results),
            first_outcomes=_counted(each["first"] for each in results),
            slowest_s=max(each["took_s"] for each in results),
            two_replicas_again_after_s=whole_s,
        )
        service.withdraw()
        service.shut_down()

    def c6_token(self) -> None:
        """Without the token, or with a wrong one, the jobs API and the state API refuse requests."""
        paths = ("/api/version", "/api/jobs/", "/api/v0/nodes", "/nodes?view=summary", "/api/serve/applications/")
        codes = {httpx.get(self.dashboard + path, headers=headers).status_code for path in paths for headers in ({}, WRONG_TOKEN)}
        codes.add(httpx.post(f"{self.dashboard}/api/jobs/", json={"entrypoint": "true"}).status_code)
        with_token = httpx.get(f"{self.dashboard}/api/jobs/", headers=self.headers).status_code
        without_token = ",".join(map(str, sorted(codes)))
        reliability("C6-token", ok=codes <= {401, 403} and with_token == 200, without_token=without_token, with_token=with_token)

    def c7_listeners(self) -> None:
        """List all listeners. Only exporters of metrics may answer HTTP without the token outside loopback."""
        processes = [each for node in local.read(self.cluster_folder).nodes for each in local.processes(node)]
        listeners: dict[tuple[str, int], str] = {}
        for process in processes:
            for each in process.net_connections("tcp"):
                if each.status == psutil.CONN_LISTEN:
                    listeners[each.laddr.ip, each.laddr.port] = process.name()
        port = int(self.dashboard.rpartition(":")[2])
        dashboards = {ip for ip, each in listeners if each == port}
        outside = sorted({(name, each) for (ip, each), name in listeners.items() if not ip.startswith("127.") and ip != "::1"})
        open_to_all = [(name, each) for name, each in outside if _answers(each)]
        exporters = [(name, each) for name, each in open_to_all if "# HELP" in _get(each, "/metrics")]
        client_servers = sum("ray.util.client.server" in " ".join(process.cmdline()) for process in processes)
        reliability(
            "C7-listeners",
            ok=dashboards == {"127.0.0.1"} and client_servers == 0 and open_to_all == exporters,
            dashboard_at=",".join(sorted(dashboards)),
            client_servers=client_servers,
            loopback=len(listeners) - len(outside),
            outside=_counted(name for name, _ in outside) or "none",
            answer_without_token=len(open_to_all),
            of_them_metrics=len(exporters),
        )


WRONG_TOKEN = {"Authorization": f"Bearer {'0' * 64}"}


def _answers(port: int) -> bool:
    return bool(_get(port, "/") or _get(port, "/metrics"))


def _get(port: int, path: str) -> str:
    """The body of a response with status 200; empty otherwise."""
    try:
        response = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5)
        return response.text if response.status_code == 200 else ""
    except (httpx.HTTPError, UnicodeDecodeError):
        return ""


def _history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def _counted(names: Any) -> str:
    listed = list(names)
    return ",".join(f"{name}:{listed.count(name)}" for name in sorted(set(listed)))


class Clients:
    """Send requests at a steady rate while the `with` block runs, and retry each as docs/serving.md advises."""

    def __init__(self, url: str, requests: list[GoldenRequest]) -> None:
        self.results: list[dict[str, Any]] = []
        self._url, self._requests, self._over = url, requests, threading.Event()
        self._threads: list[threading.Thread] = []
        self._sender = threading.Thread(target=self._start_requests, daemon=True)

    def __enter__(self) -> Clients:
        self._began_s = time.monotonic()
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sender.join()
        for thread in self._threads:
            thread.join()

    def since_s(self) -> float:
        return time.monotonic() - self._began_s

    def _start_requests(self) -> None:
        while not self._over.wait(max(0.0, len(self._threads) / PER_S - self.since_s())):
            request = self._requests[len(self._threads) % len(self._requests)]
            self._threads.append(threading.Thread(target=self._send, args=(request,), daemon=True))
            self._threads[-1].start()

    def _send(self, request: GoldenRequest) -> None:
        began, first, content = time.monotonic(), "", b""
        for number in range(1, MAX_TRIES + 1):
            try:
                response = httpx.post(self._url, content=request.body, headers={"content-type": "application/json"}, timeout=10)
                outcome, content = str(response.status_code), response.content
            except httpx.TransportError as error:
                outcome = type(error).__name__
            first = first or outcome
            if outcome == "200" or (outcome.startswith("4") and outcome not in ("404", "408", "429")):
                break
            time.sleep(PAUSE_S * 2 ** (number - 1))
        wrong = outcome == "200" and request.is_wrong(content)
        took_s = time.monotonic() - began
        self.results.append({"ok": outcome == "200" and not wrong, "wrong": wrong, "tries": number, "first": first, "took_s": took_s})


RUNS: dict[str, Callable[[Matrix], None]] = {
    "C1": Matrix.c1_everything_submitted,
    "C2": Matrix.c2_training,
    "C3": Matrix.c3_sweep,
    "C4": Matrix.c4_scoring,
    "C5": Matrix.c5_serving,
    "C6": Matrix.c6_token,
    "C7": Matrix.c7_listeners,
}
KILLS = ("C2", "C3", "C4", "C5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="seed of all random choices")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="runs to do; C2 and C3 need the results of C1")
    arguments = parser.parse_args()
    if os.environ.get("RAY_AUTH_MODE") != "token":  # Ray reads the variable when it is imported
        os.execve(sys.executable, [sys.executable, "-m", "tests.chaos.cluster", *sys.argv[1:]], os.environ | {"RAY_AUTH_MODE": "token"})  # noqa: S606 # this script
    print(f"seed {arguments.seed}; to repeat this run: --seed {arguments.seed}", flush=True)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="han-"))  # short, because Ray's socket paths have at most 107 characters
    try:
        with cluster(folder / "c", 3, NODE) as started:
            print(f"three nodes: {time.monotonic() - began:.0f} s", flush=True)
            matrix = Matrix(started, folder, arguments.seed)
            for name in (name for name in RUNS if name in arguments.only):
                attempt(name, partial(RUNS[name], matrix), expected=Exception)
                if name in KILLS:
                    matrix.replace()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"all: {time.monotonic() - began:.0f} s", flush=True)
    close()


if __name__ == "__main__":
    main()
