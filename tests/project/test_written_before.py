"""Files written by version 0.1.0 still load: an artifact, an encoded folder, published scores, a sweep."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import han
from han.config import SemiSupervisedConfig, TrainConfig, as_json, differences, from_json
from han.model import artifact
from han.score.verify import verify
from han.train.encoded import read_encoded
from han.tune import sweep
from han.tune.report import report
from han.types import UserError
from jobs import cli
from jobs.train import Train

BEFORE = Path(__file__).parents[1] / "data" / "written_by_0.1.0"


def test_an_old_artifact_gives_the_same_scores() -> None:
    rows = pq.read_table(BEFORE / "scores" / "scores").to_pylist()
    scorer = han.load(str(BEFORE / "run"))
    assert {row["model"] for row in rows} == {scorer.fingerprint}
    found = scorer.score_flat([row["text"] for row in rows])
    wanted = [[row["probabilities"][label] for label in scorer.labels] for row in rows]
    np.testing.assert_allclose(found.probabilities, np.array(wanted, np.float32), atol=1e-6)
    attention = [word["attention"] for row in rows for sentence in row["sentences"] for word in sentence["words"]]
    np.testing.assert_allclose(found.word_attention, np.array(attention, np.float32), atol=1e-6)


def test_an_old_encoded_folder_is_read_and_has_the_same_encoder() -> None:
    folder = read_encoded(BEFORE / "encoded")
    assert folder.fingerprint == artifact.load(BEFORE / "run" / "artifact").encoder.fingerprint
    rows = {split: sum(pq.read_table(BEFORE / "encoded" / split / name).num_rows for name in folder.files[split]) for split in folder.files}
    assert rows == {split: sum(numbers.values()) for split, numbers in folder.files.items()}


def test_old_published_scores_pass_verification() -> None:
    verdict = verify(str(BEFORE / "scores"), unique_ids=True, report=lambda *step: None)
    assert verdict.num_problems == 0
    assert verdict.listing is not None
    assert verdict.listing.counts["scored"] == 20


def test_an_old_sweep_has_its_trials_and_its_page(tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "sweep", tmp_path / "sweep")
    study = sweep.read_study(tmp_path / "sweep")
    best = json.loads((BEFORE / "sweep" / "best.json").read_text())
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "COMPLETE"]
    assert sweep.best(study).number == sweep.read_best(tmp_path / "sweep")["trial"] == best["trial"]
    assert "<svg" in report(study)
    assert artifact.find(str(BEFORE / "sweep")) == BEFORE / "sweep" / "artifact"


REMOVED = {"train": {"adversarial": 0.0}, "semi_supervised": {"teacher_adversarial": 0.0, "teacher_hidden": None}}


def test_settings_with_removed_fields_that_were_off_still_load_and_are_the_same_run() -> None:
    for config, removed in ((TrainConfig(), REMOVED["train"]), (SemiSupervisedConfig(), REMOVED["semi_supervised"])):
        assert from_json(type(config), as_json(config) | removed) == config
        assert differences({"a": as_json(config)}, {"a": as_json(config) | removed}) == []
    with pytest.raises(UserError, match="has no setting adversarial"):
        from_json(TrainConfig, {"adversarial": 0.02})
    assert differences(as_json(TrainConfig()), as_json(TrainConfig()) | {"adversarial": 0.02}) == ["adversarial: 0.02 -> None"]


def test_a_settings_file_with_removed_fields_that_were_off_still_loads(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        'data = "d"\nout = "o"\n[train]\nseed = 3\nadversarial = 0.0\n[semi_supervised]\nteacher_adversarial = 0.0\n'
    )
    given = ["--config", str(tmp_path / "settings.toml")]
    assert cli.parse(Train, given) == Train(data="d", out="o", train=TrainConfig(seed=3))
    (tmp_path / "settings.toml").write_text('data = "d"\n[train]\nadversarial = 0.02\n')
    with pytest.raises(UserError, match="adversarial, which does not exist"):
        cli.parse(Train, given)
