"""Tune, promote, score and serve on generated reviews."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pyarrow.parquet as pq
import pytest

from han.model import artifact
from han.score.scorer import Scorer
from han.types import Score
from jobs import promote, score
from tests.helpers.serving import Service, status, until
from tests.helpers.swept import TRIALS

if TYPE_CHECKING:
    from tests.helpers.swept import Swept

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("on_ray"), pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    models: Path
    version: Path
    fingerprint: str  # of the sweep's best trial


@pytest.fixture(scope="module")
def promoted(swept: Swept, tmp_path_factory: pytest.TempPathFactory) -> Promoted:
    """The best model of the sweep, promoted by the job."""
    models = tmp_path_factory.mktemp("promoted") / "models"
    promote.main(promote.Promote(run=str(swept.out), models=str(models)))
    pointer = read(models)
    return Promoted(models=models, version=models / pointer["version"], fingerprint=pointer["fingerprint"])


def read(models: Path) -> dict[str, Any]:
    pointer: dict[str, Any] = json.loads((models / "best.json").read_text())
    return pointer


@pytest.fixture
def service(promoted: Promoted, serving: Service) -> Iterator[Service]:
    """The promoted model behind HTTP, by its name models/best."""
    serving.deploy(with_model(serving, promoted.models / "best"))
    until(lambda: status(serving.url) == 200)
    yield serving
    serving.deploy({**serving.config, "applications": []})
    until(lambda: status(serving.url) != 200)


def with_model(serving: Service, model: Path) -> dict[str, Any]:
    config = copy.deepcopy(serving.config)
    config["applications"][0]["args"]["model"] = str(model)
    for deployment in config["applications"][0]["deployments"]:
        deployment["num_replicas"] = 1
    return config


def test_a_sweep_leaves_a_report_of_all_its_trials(swept: Swept) -> None:
    page = (swept.out / "report.html").read_text(encoding="utf-8")
    assert page.count('<tr id="trial-') == TRIALS


def test_the_best_of_a_sweep_is_promoted(swept: Swept, promoted: Promoted) -> None:
    best = artifact.load(swept.out / "artifact")
    assert promoted.fingerprint == best.fingerprint
    assert read(promoted.models)["metrics"]["development"]["accuracy"] == best.metrics["development"]["accuracy"]


def test_a_promoted_model_scores_a_dump(promoted: Promoted, planted: Path, tmp_path: Path) -> None:
    score.main(score.Score(input=str(planted), model=str(promoted.models / "best"), out=str(tmp_path / "scores"), limit=100))
    rows = pq.read_table(tmp_path / "scores").to_pylist()
    answers = Scorer(artifact.load(promoted.version)).score([row["text"] for row in rows])
    assert len(rows) == 100
    for row, answer in zip(rows, answers, strict=True):
        assert isinstance(answer, Score)
        assert (row["model"], row["label"]) == (promoted.fingerprint, answer.label)
        assert row["probability"] == pytest.approx(answer.probability, abs=1e-5)


def test_a_promoted_model_serves_until_another_version_is_deployed(promoted: Promoted, service: Service, tiny_model: Path) -> None:
    def serves() -> str:
        return str(httpx.post(f"{service.url}/v1/score", json={"inputs": "I loved it."}, timeout=10).json().get("model"))

    assert serves() == promoted.fingerprint
    promote.main(promote.Promote(run=str(tiny_model), models=str(promoted.models)))
    other = read(promoted.models)
    assert other["fingerprint"] != promoted.fingerprint
    service.deploy(with_model(service, promoted.models / "best"))  # the same file again builds nothing
    assert serves() == promoted.fingerprint
    service.deploy(with_model(service, promoted.models / other["version"]))
    until(lambda: serves() == other["fingerprint"])
    promote.main(promote.Promote(rollback=True, models=str(promoted.models)))
    assert read(promoted.models)["fingerprint"] == promoted.fingerprint
    assert serves() == other["fingerprint"]
