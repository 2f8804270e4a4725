"""One small Ray for all tests of this folder, started as a cluster's head is and apart from any other that runs on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from han.config import PrepareConfig, VectorsConfig, VocabConfig

if TYPE_CHECKING:
    from han.ray_data import EncodedFolder

SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
SIZES = {"word_hidden": 16, "word_attention": 32, "sentence_hidden": 16, "sentence_attention": 32}
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    address: str  # of its head, for RAY_ADDRESS
    dashboard: str  # URL, for `ray job submit --address`


@pytest.fixture(scope="session")
def on_ray() -> Iterator[Cluster]:
    """A head of 4 logical CPUs, to which this process is connected. The dashboard is on: jobs, and what Ray Train frees, need it."""
    os.environ.update(SETTINGS)
    head, dashboard, *others = _free_ports(5)
    folder = tempfile.mkdtemp(prefix="han-")  # short: Ray's socket paths may have 107 characters
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={head}", f"--temp-dir={folder}"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={others[0]}", f"--dashboard-agent-listen-port={others[1]}"]
    command += [f"--dashboard-agent-grpc-port={others[2]}", "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=4"]
    command += ["--object-store-memory=300000000", "--disable-usage-stats"]
    with Path(folder, "head.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    cluster = Cluster(address=f"127.0.0.1:{head}", dashboard=f"http://127.0.0.1:{dashboard}")
    try:
        _connect(cluster.address)
        yield cluster
    finally:
        import ray

        ray.shutdown()
        everything = [process, *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _, alive = psutil.wait_procs([psutil.Process(process.pid)], timeout=5)
        for left in everything if alive else ():  # after many jobs Ray takes half a minute to stop of its own accord
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _connect(address: str, deadline_s: float = 90) -> None:
    import ray

    end = time.monotonic() + deadline_s
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return
        except (ConnectionError, RuntimeError, ValueError):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _free_ports(number: int) -> list[int]:
    """Ports nobody listens on, outside 10002 to 19999, which Ray keeps for its workers."""
    listeners: list[socket.socket] = []
    while len(listeners) < number:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listeners.append(listener)
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 generated reviews, 1,600 of them with planted evidence, as JSON lines."""
    from han.samples.planted import write_jsonl

    path = tmp_path_factory.mktemp("planted") / "planted.jsonl"
    write_jsonl(path, 1_600, seed=1, num_neutral=400)
    return path


@pytest.fixture(scope="session")
def small() -> PrepareConfig:
    """What `folder` was prepared with."""
    return PrepareConfig(vocab=VocabConfig(min_count=1), vectors=VectorsConfig(size=32), punkt_sample=0)


@pytest.fixture(scope="session")
def folder(on_ray: Cluster, planted: Path, small: PrepareConfig, tmp_path_factory: pytest.TempPathFactory) -> EncodedFolder:
    """The generated reviews, encoded, with word vectors of their own."""
    from han.ray_prepare import prepare

    return prepare(str(planted), tmp_path_factory.mktemp("encoded") / "data", small, dev_ids=None, report=lambda *step: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    run: Path  # of a training on two workers
    scores: Path  # of 200 reviews by its model
    printed: str  # by `ray job submit`


@pytest.fixture(scope="session")
def submitted(on_ray: Cluster, folder: EncodedFolder, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """A training on two workers and a scoring with its model, as one job submitted to the cluster."""
    out = tmp_path_factory.mktemp("submitted")
    flags = " ".join(f"--model.{name} {size}" for name, size in {**SIZES, "embedding_dropout": 0.2, "dropout": 0.2}.items()).replace(
        "_", "-"
    )
    train = f"--train.num-workers 2 --train.epochs 4 --train.learning-rate 0.01 --train.batch-tokens 8192 {flags}"
    steps = f"python -m jobs.train --data {folder.path} --out {out}/run {train}"
    steps += f" && python -m jobs.score --model {out}/run --input {planted} --out {out}/scores --limit 200"
    command = [RAY, "job", "submit", "--address", on_ray.dashboard, "--working-dir", str(Path(__file__).parents[2])]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command += ["--runtime-env-json", json.dumps({"env_vars": {"PATH": path}}), "--", "sh", "-c", steps]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return Submitted(run=out / "run", scores=out / "scores", printed=done.stdout + done.stderr)
