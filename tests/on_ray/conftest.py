"""One small Ray for all tests of this folder, started like the head of a cluster and independent of any other Ray on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from han.config import PrepareConfig, VectorsConfig, VocabConfig
from tests.helpers.cluster import RAY, Cluster, head
from tests.helpers.serving import Service
from tests.helpers.serving import serving as start_serving

if TYPE_CHECKING:
    from han.train.encoded import EncodedFolder
    from tests.helpers.swept import Swept

SIZES = {"word_hidden": 16, "word_attention": 32, "sentence_hidden": 16, "sentence_attention": 32}


@pytest.fixture(scope="session")
def on_ray() -> Iterator[Cluster]:
    """A head with 4 logical CPUs. This process is connected to it."""
    with head() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 generated reviews, 1,600 of them with planted evidence, as JSON lines."""
    from han.data.samples.planted import write_jsonl

    path = tmp_path_factory.mktemp("planted") / "planted.jsonl"
    write_jsonl(path, 1_600, seed=1, num_neutral=400)
    return path


@pytest.fixture(scope="session")
def small() -> PrepareConfig:
    """The settings with which `folder` was prepared."""
    return PrepareConfig(vocab=VocabConfig(min_count=1), vectors=VectorsConfig(size=32), punkt_sample=0)


@pytest.fixture(scope="session")
def folder(on_ray: Cluster, planted: Path, small: PrepareConfig, tmp_path_factory: pytest.TempPathFactory) -> EncodedFolder:
    """The generated reviews, encoded, with in-domain word vectors."""
    from han.train.prepare import prepare

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
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return Submitted(run=out / "run", scores=out / "scores", printed=done.stdout + done.stderr)


@pytest.fixture(scope="session")
def swept(on_ray: Cluster, folder: EncodedFolder, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A sweep whose driver was killed after the first trial had finished, and was started again."""
    from tests.helpers.swept import kill_and_resume

    return kill_and_resume(on_ray, folder.path, tmp_path_factory.mktemp("swept") / "sweep")


@pytest.fixture(scope="session")
def serving(on_ray: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The only Serve of the session, without an application. A test that deploys one removes it, because it holds CPUs of trainings."""
    with start_serving(on_ray, tmp_path_factory.mktemp("elsewhere")) as service:
        yield service
