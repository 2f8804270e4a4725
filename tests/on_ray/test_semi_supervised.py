"""Semi-supervised training on generated reviews, most of them without a label, on a real Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from han.config import ModelConfig, PrepareConfig, SemiSupervisedConfig, TrainConfig, as_json
from han.data.samples.planted import write_jsonl
from han.model import artifact
from han.train import semi_supervised
from han.train.encoded import EncodedFolder
from han.train.ngrams import NgramModel
from han.train.prepare import prepare
from han.train.trainer import Run, fit
from han.types import UserError

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("on_ray"), pytest.mark.timeout(900)]

MODEL = ModelConfig(word_hidden=8, word_attention=8, sentence_hidden=8, sentence_attention=8)
TRAIN = TrainConfig(learning_rate=0.01, batch_tokens=8_192, semi_supervised=True)
RECIPE = SemiSupervisedConfig(teachers=2, teacher_epochs=1, student_epochs=1, pretraining_passes=1)
# of the stages before the student, in their order
RESULTS = (
    "ngrams.safetensors",
    "words-8.safetensors",
    "teacher-1/artifact/SHA256SUMS",
    "teacher-2/artifact/SHA256SUMS",
    "soft-labels.parquet",
)


@pytest.fixture(scope="module")
def folder(on_ray: Cluster, small: PrepareConfig, tmp_path_factory: pytest.TempPathFactory) -> EncodedFolder:
    """600 reviews with labels, and 400 without."""
    path = tmp_path_factory.mktemp("partly") / "reviews.jsonl"
    write_jsonl(path, 800, seed=3, num_neutral=200)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | ({"label": None} if row % 5 < 2 else {})) + "\n" for row, line in enumerate(lines)))
    return prepare(str(path), path.parent / "data", small, dev_ids=None, report=lambda *step: None)


@pytest.fixture(scope="module")
def finished(folder: EncodedFolder, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the recipe that nothing interrupted."""
    return fit(folder.path, tmp_path_factory.mktemp("finished") / "run", MODEL, TRAIN, recipe=RECIPE)


def test_unlabelled_reviews_are_a_split_of_their_own(folder: EncodedFolder) -> None:
    tables = [pq.read_table(folder.path / "unlabelled" / name) for name in folder.files["unlabelled"]]
    assert sum(map(len, tables)) == folder.num_reviews("unlabelled") == folder.counts["unlabelled"] == 400
    assert all(table["label"].null_count == len(table) for table in tables)
    assert folder.num_reviews("train") + folder.num_reviews("development") == 600


def test_the_recipe_makes_one_network_with_ngrams_and_shares_its_stages(folder: EncodedFolder, finished: Run, tmp_path: Path) -> None:
    model = artifact.load(finished.artifact)
    assert model.network.ngrams is not None
    assert model.network.ngram_projection is not None
    assert model.network.ngram_projection.any()
    assert model.uncertain_below is not None
    assert 0 < model.uncertain_below < 1
    assert model.provenance["recipe"] == {name: value for name, value in as_json(RECIPE).items() if name != "stages"}
    assert set(model.provenance["semi_supervised"]) == {"n-grams", "teacher 1", "teacher 2", "all"}
    stages = finished.artifact.parent / "stages"
    before = {path: path.stat().st_mtime_ns for path in stages.glob("*.*")}
    shared = SemiSupervisedConfig(teachers=2, teacher_epochs=1, student_epochs=1, pretraining_passes=1, stages=str(stages))
    again = fit(folder.path, tmp_path / "other", MODEL, TrainConfig(**_fields(TRAIN) | {"seed": 2}), recipe=shared)
    assert {path: path.stat().st_mtime_ns for path in stages.glob("*.*")} == before
    assert artifact.load(again.artifact).fingerprint != model.fingerprint


def test_few_labels_fit_ngrams_again_on_the_soft_labels(folder: EncodedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi_supervised, "FEW_LABELS", 1.0)
    recipe = SemiSupervisedConfig(teachers=1, teacher_epochs=1, student_epochs=1, pretraining_passes=1)
    run = fit(folder.path, tmp_path / "run", MODEL, TRAIN, recipe=recipe)
    first, again = (NgramModel.read(tmp_path / "run" / "stages" / f"{name}.safetensors") for name in ("ngrams", "ngrams-of-labels"))
    assert len(again.hashes) > len(first.hashes)
    model = artifact.load(run.artifact)
    assert set(model.provenance["semi_supervised"]) == {"n-grams", "n-grams of the soft labels", "teacher 1", "all"}
    assert model.network.ngrams is not None
    np.testing.assert_array_equal(model.network.ngrams.hashes, again.tables().whole.hashes)


class Killed(Exception):
    """Ends the driver between two stages."""


def test_a_recipe_killed_after_each_stage_resumes_without_repeating_one_and_has_the_same_result(
    folder: EncodedFolder, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, stages = semi_supervised._Plan.begin, tmp_path / "run" / "stages"
    made: dict[Path, int] = {}
    # n-grams, pretraining, two teachers, soft labels, student
    for number, result in enumerate((None, *RESULTS), start=1):

        def begin_until(plan: semi_supervised._Plan, name: str, last: int = number) -> None:
            begin(plan, name)
            if plan.number == last:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(semi_supervised._Plan, "begin", begin_until)
            with pytest.raises(Killed):
                fit(folder.path, tmp_path / "run", MODEL, TRAIN, recipe=RECIPE)
        assert sorted(str(path.relative_to(stages)) for path in _results(stages)) == sorted(RESULTS[: number - 1])
        assert {path: path.stat().st_mtime_ns for path in made} == made
        if result is not None:
            made[stages / result] = (stages / result).stat().st_mtime_ns
    resumed = fit(folder.path, tmp_path / "run", MODEL, TRAIN, recipe=RECIPE)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(made) == len(RESULTS)
    assert artifact.load(resumed.artifact).fingerprint == artifact.load(finished.artifact).fingerprint


def _results(stages: Path) -> list[Path]:
    return [path for name in RESULTS if (path := stages / name).exists()]


def test_other_settings_do_not_share_stages(folder: EncodedFolder, tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "stages.json").write_text(json.dumps({"encoding": "other", "seed": 1}))
    recipe = SemiSupervisedConfig(teachers=2, stages=str(tmp_path / "stages"))
    with pytest.raises(UserError, match="holds stages of other data or settings"):
        fit(folder.path, tmp_path / "run", MODEL, TRAIN, recipe=recipe)


def test_soft_labels_of_other_reviews_are_refused(folder: EncodedFolder, tmp_path: Path) -> None:
    probabilities = [dict.fromkeys(folder.labels, 1 / len(folder.labels))]
    pq.write_table(pa.table({"review_id": ["another"], "probabilities": probabilities}), tmp_path / "soft.parquet")
    train = TrainConfig(soft_labels=str(tmp_path / "soft.parquet"))
    with pytest.raises(UserError, match="0 of the 400 unlabelled reviews"):
        fit(folder.path, tmp_path / "run", MODEL, train)


def _fields(config: TrainConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in TrainConfig.__slots__}
