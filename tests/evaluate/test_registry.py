"""A folder of models: promotion, rollback, and the state after a killed process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from han.config import TextConfig
from han.evaluate import registry
from han.failpoint import OF_A_PROMOTION
from han.model import artifact
from han.score.scorer import Scorer
from han.storage import Folder
from han.text.encode import Encoder
from han.text.vocabulary import Vocab
from han.types import Score, UserError
from jobs import cli, promote
from tests.conftest import WORDS, tiny_network

ROOT = Path(__file__).parents[2]
FIGURES = {"num_reviews": 10, "accuracy": 0.9, "f1": 0.9, "auc": None, "log_loss": 0.3, "expected_calibration_error": 0.02}
CARD = {"accuracy_interval": [0.8, 0.95], "confusion": {}}


def save(folder: Path, *, seed: int) -> Path:
    artifact.save(
        folder,
        encoder=Encoder(TextConfig(), None, Vocab(WORDS)),
        network=tiny_network(seed=seed),
        labels=("negative", "positive"),
        metrics={"development": {**FIGURES, **CARD, "accuracy": 0.9 + seed / 100}, "temperature": 1.0},
        provenance={"data": "random weights", "seed": seed},
    )
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Three runs, each with a model. Read only."""
    where = tmp_path_factory.mktemp("runs")
    for seed in (1, 2, 3):
        save(where / str(seed) / "artifact", seed=seed)
    return where / "1", where / "2", where / "3"


def promoted(run: Path, folder: Path) -> dict[str, Any]:
    return registry.promote(artifact.find(str(run)), folder)[0]


def best(folder: Path) -> str:
    return artifact.load(artifact.find(str(folder / "best"))).fingerprint


def fingerprint(run: Path) -> str:
    return artifact.load(artifact.find(str(run))).fingerprint


def test_models_best_is_the_promoted_model(runs: tuple[Path, ...], tmp_path: Path) -> None:
    pointer = promoted(runs[0], tmp_path / "models")
    assert json.loads((tmp_path / "models" / "best.json").read_text()) == pointer
    assert set(pointer) == {"version", "fingerprint", "date", "metrics", "previous"}
    assert pointer["version"].startswith(pointer["fingerprint"])
    assert pointer["metrics"] == {"development": {**FIGURES, "accuracy": 0.91}}
    assert pointer["previous"] is None
    assert artifact.find(str(tmp_path / "models" / "best")) == tmp_path / "models" / pointer["version"]
    assert best(tmp_path / "models") == fingerprint(runs[0])


def test_a_version_is_the_artifact_byte_for_byte_and_read_only(runs: tuple[Path, ...], tmp_path: Path) -> None:
    version = tmp_path / "models" / promoted(runs[0], tmp_path / "models")["version"]
    source = runs[0] / "artifact"
    assert {path.name: path.read_bytes() for path in version.iterdir()} == {path.name: path.read_bytes() for path in source.iterdir()}
    assert {path.stat().st_mode & 0o777 for path in version.iterdir()} == {0o444}


def test_the_next_promotion_moves_the_pointer_and_keeps_the_old_version(runs: tuple[Path, ...], tmp_path: Path) -> None:
    first, second = promoted(runs[0], tmp_path / "models"), promoted(runs[1], tmp_path / "models")
    assert second["previous"] == first
    assert best(tmp_path / "models") == fingerprint(runs[1])
    assert artifact.load(tmp_path / "models" / first["version"]).fingerprint == fingerprint(runs[0])


def test_the_best_model_is_not_promoted_again(runs: tuple[Path, ...], tmp_path: Path) -> None:
    first = promoted(runs[0], tmp_path / "models")
    assert registry.promote(runs[0] / "artifact", tmp_path / "models") == (first, False)
    assert registry.promote(tmp_path / "models" / first["version"], tmp_path / "models") == (first, False)


def test_equal_weights_with_different_figures_are_another_version(runs: tuple[Path, ...], tmp_path: Path) -> None:
    measured = {**FIGURES, **CARD, "accuracy": 0.5}
    loaded = artifact.load(runs[0] / "artifact")
    artifact.save(
        tmp_path / "again",
        encoder=loaded.encoder,
        network=loaded.network,
        labels=loaded.labels,
        metrics={"development": measured, "temperature": 1.0},
        provenance=loaded.provenance,
    )
    first, second = promoted(runs[0], tmp_path / "models"), promoted(tmp_path / "again", tmp_path / "models")
    assert first["fingerprint"] == second["fingerprint"]
    assert first["version"] != second["version"]
    assert second["metrics"]["development"]["accuracy"] == 0.5


def test_rollback_goes_back_step_by_step_until_the_first_version(runs: tuple[Path, ...], tmp_path: Path) -> None:
    pointers = [promoted(run, tmp_path / "models") for run in runs]
    assert registry.roll_back(tmp_path / "models") == pointers[1]
    assert best(tmp_path / "models") == fingerprint(runs[1])
    assert registry.roll_back(tmp_path / "models") == pointers[0]
    with pytest.raises(UserError, match=r"first model promoted in .*: there is nothing to roll back to"):
        registry.roll_back(tmp_path / "models")
    assert best(tmp_path / "models") == fingerprint(runs[0])


def test_a_rolled_back_version_can_be_promoted_again(runs: tuple[Path, ...], tmp_path: Path) -> None:
    first, second = promoted(runs[0], tmp_path / "models"), promoted(runs[1], tmp_path / "models")
    registry.roll_back(tmp_path / "models")
    again = promoted(tmp_path / "models" / second["version"], tmp_path / "models")
    assert (again["version"], again["previous"]) == (second["version"], first)


def test_rollback_without_a_promotion_is_a_mistake_that_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model was promoted in .*nothing to roll back"):
        registry.roll_back(tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_rollback_to_a_damaged_version_is_refused_and_changes_nothing(runs: tuple[Path, ...], tmp_path: Path) -> None:
    first, _ = promoted(runs[0], tmp_path / "models"), promoted(runs[1], tmp_path / "models")
    damage(tmp_path / "models" / first["version"])
    with pytest.raises(UserError, match="does not match its line in SHA256SUMS"):
        registry.roll_back(tmp_path / "models")
    assert best(tmp_path / "models") == fingerprint(runs[1])


def test_the_number_of_recorded_promotions_is_limited(runs: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "KEPT", 2)
    for run in (*runs, runs[0]):
        pointer = promoted(run, tmp_path / "models")
    assert pointer["previous"]["previous"]["version"].startswith(fingerprint(runs[1]))
    assert pointer["previous"]["previous"]["previous"] is None


def damage(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)


def test_a_damaged_artifact_is_refused_and_the_pointer_stays(runs: tuple[Path, ...], tmp_path: Path) -> None:
    first = promoted(runs[0], tmp_path / "models")
    shutil.copytree(runs[1] / "artifact", tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(UserError, match="does not match its line in SHA256SUMS"):
        promoted(tmp_path / "damaged", tmp_path / "models")
    assert json.loads((tmp_path / "models" / "best.json").read_text()) == first
    assert set(names(tmp_path / "models")) == {first["version"], "best.json"}


def test_a_failed_copy_is_never_named_as_a_version(runs: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copyfile = shutil.copyfile

    def half(source: Path, target: Path) -> None:
        copyfile(source, target)
        if target.name == "model.safetensors":
            os.truncate(target, 100)

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(UserError, match="does not match its line in SHA256SUMS"):
        promoted(runs[0], tmp_path / "models")
    assert names(tmp_path / "models") == []
    monkeypatch.undo()
    promoted(runs[0], tmp_path / "models")
    assert best(tmp_path / "models") == fingerprint(runs[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_folder_with_other_content_is_not_changed(runs: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds something else \(thesis.tex\)"):
        promoted(runs[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_concurrent_promotion_is_refused_and_names_the_holder(runs: tuple[Path, ...], tmp_path: Path) -> None:
    first = promoted(runs[0], tmp_path / "models")
    with Folder(str(tmp_path / "models")).locked(".lock"):
        for change in (lambda: promoted(runs[1], tmp_path / "models"), lambda: registry.roll_back(tmp_path / "models")):
            with pytest.raises(UserError, match=rf"is being written by another process.*{os.getpid()}"):
                change()
    assert json.loads((tmp_path / "models" / "best.json").read_text()) == first


PROMOTE = """
import sys
from pathlib import Path
from han.evaluate import registry
try:
    registry.promote(Path(sys.argv[1]), Path(sys.argv[2]), failpoint=sys.argv[3] if len(sys.argv) > 3 else None)
except registry.UserError as mistake:
    sys.exit(str(mistake))
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROMOTE, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_promotion_killed_at_any_point_leaves_the_old_or_the_new_pointer(runs: tuple[Path, ...], tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in OF_A_PROMOTION}
    for folder in folders.values():
        promoted(runs[0], folder)
    dying = {name: start(runs[1] / "artifact", folder, name) for name, folder in folders.items()}
    for name, process in dying.items():
        output, _ = process.communicate(timeout=90)
        assert process.returncode == -9, output
        assert best(folders[name]) == fingerprint(runs[1] if name == "pointed" else runs[0])
    for folder in folders.values():  # and the same command goes on
        pointer = promoted(runs[1], folder)
        assert best(folder) == fingerprint(runs[1])
        assert pointer["previous"]["fingerprint"] == fingerprint(runs[0])
        assert not [path for path in folder.iterdir() if path.name.endswith(".unfinished")]


def test_a_partly_written_pointer_is_ignored_and_removed(runs: tuple[Path, ...], tmp_path: Path) -> None:
    promoted(runs[0], tmp_path / "models")
    (tmp_path / "models" / "best.json.0a1b2c3d.tmp").write_text('{"version": "3f')
    assert best(tmp_path / "models") == fingerprint(runs[0])
    second = promoted(runs[1], tmp_path / "models")
    assert names(tmp_path / "models") == sorted([second["version"], second["previous"]["version"], "best.json"])


def test_concurrent_promotions_leave_one_pointer_and_complete_versions(runs: tuple[Path, ...], tmp_path: Path) -> None:
    racing = [start(run / "artifact", tmp_path / "models") for run in runs]
    outputs = [process.communicate(timeout=90)[0] for process in racing]
    won = [fingerprint(run) for run, process in zip(runs, racing, strict=True) if process.returncode == 0]
    assert won, outputs
    assert all("is being written by another process" in line for line, process in zip(outputs, racing, strict=True) if process.returncode)
    assert best(tmp_path / "models") in won
    assert sorted(version.fingerprint for version in registry.versions(tmp_path / "models")) == sorted(won)


def test_a_resolved_name_does_not_change_when_the_pointer_moves(runs: tuple[Path, ...], tmp_path: Path) -> None:
    first = promoted(runs[0], tmp_path / "models")
    resolved = artifact.resolve(str(tmp_path / "models" / "best"))
    promoted(runs[1], tmp_path / "models")
    assert resolved == str(tmp_path / "models" / first["version"])
    assert artifact.resolve("imdb") == "imdb"


def test_models_best_scores_like_the_promoted_run(runs: tuple[Path, ...], tmp_path: Path) -> None:
    promoted(runs[1], tmp_path / "models")
    text = "I loved it. The film was not dull!"
    one, other = (Scorer(artifact.load(artifact.find(str(model)))).score([text])[0] for model in (tmp_path / "models" / "best", runs[1]))
    assert isinstance(one, Score)
    assert one == other


@pytest.mark.parametrize("version", ["../1", "", "gone", None, ["a"]])
def test_a_pointer_to_a_missing_version_is_a_mistake(version: object, runs: tuple[Path, ...], tmp_path: Path) -> None:
    promoted(runs[0], tmp_path / "models")
    (tmp_path / "models" / "best.json").write_text(json.dumps({"version": version}))
    with pytest.raises(UserError, match="which is not in"):
        artifact.find(str(tmp_path / "models" / "best"))


def test_models_best_without_a_promotion_is_a_mistake_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model was promoted in .*run han promote RUN"):
        artifact.find(str(tmp_path / "best"))


def test_the_job_promotes_lists_and_rolls_back(runs: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(**arguments: Any) -> str:
        promote.main(promote.Promote(models=str(tmp_path / "models"), **arguments))
        return capsys.readouterr().out

    assert "development accuracy 91.00%" in call(run=str(runs[0]))
    output = call(run=str(runs[1]))
    assert f"before: {fingerprint(runs[0])}" in output
    assert f"python -m jobs.score --model {tmp_path / 'models' / 'best'}" in output
    assert "already, since" in call(run=str(runs[1]))
    listed = call(list=True).splitlines()
    assert len(listed) == 2
    assert listed[0].startswith(f"best  {fingerprint(runs[1])}")
    assert f"{fingerprint(runs[0])}" in call(rollback=True)
    assert best(tmp_path / "models") == fingerprint(runs[0])
    with pytest.raises(UserError, match="give one of"):
        promote.main(promote.Promote(models=str(tmp_path / "models")))


@pytest.mark.parametrize("arguments", [["--rollback"], ["--rollback", "True"], ["--rollback", "--models", "elsewhere"]])
def test_the_rollback_flag_needs_no_value_and_no_run(arguments: list[str]) -> None:

    parsed = cli.parse(promote.Promote, arguments)
    assert parsed.rollback
    assert not parsed.list
    assert parsed.run is None


def trained(folder: Path, *, accuracy: float, data: str, seed: int = 1) -> Path:
    artifact.save(
        folder,
        encoder=Encoder(TextConfig(), None, Vocab(WORDS)),
        network=tiny_network(seed=seed),
        labels=("negative", "positive"),
        metrics={"development": {**FIGURES, **CARD, "accuracy": accuracy}},
        provenance={"data": {"fingerprint": data}, "run": {"id": folder.name}},
    )
    return folder


def test_a_model_that_measures_worse_on_the_same_data_is_promoted_only_by_force(tmp_path: Path) -> None:
    models = tmp_path / "models"
    good, worse = trained(tmp_path / "good", accuracy=0.9, data="abc"), trained(tmp_path / "worse", accuracy=0.8, data="abc", seed=2)
    registry.promote(good, models)
    with pytest.raises(UserError, match=r"accuracy 80\.00%.*has 90\.00% on the same data: give --force"):
        registry.promote(worse, models)
    assert best(models) == artifact.load(good).fingerprint
    assert registry.promote(worse, models, force=True)[1]
    assert best(models) == artifact.load(worse).fingerprint


def test_a_model_that_measures_worse_on_other_data_is_promoted(tmp_path: Path) -> None:
    registry.promote(trained(tmp_path / "first", accuracy=0.9, data="abc"), tmp_path / "models")
    assert registry.promote(trained(tmp_path / "second", accuracy=0.8, data="def", seed=2), tmp_path / "models")[1]


def test_versions_are_listed_newest_first_with_date_run_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    days = iter((1, 2, 3))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2030, 1, next(days), tzinfo=tz)

    monkeypatch.setattr(registry, "datetime", Clock)
    for seed, (name, accuracy) in enumerate((("a", 0.8), ("b", 0.85), ("c", 0.9))):
        registry.promote(trained(tmp_path / name, accuracy=accuracy, data="abc", seed=seed), models)
    listed = registry.versions(models)
    assert [(version.run, version.date[:10], version.is_best) for version in listed] == [
        ("c", "2030-01-03", True),
        ("b", "2030-01-02", False),
        ("a", "2030-01-01", False),
    ]
    assert listed[0].metrics["development"]["accuracy"] == 0.9


def test_test_metrics_of_a_run_are_promoted_with_it_and_listed(runs: tuple[Path, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    (run / "config.json").write_text("{}")
    measured = {**FIGURES, "accuracy": 0.875, "data": "test.csv", "confusion": {}, "model": fingerprint(run)}
    assert registry.keep_test(run / "artifact", measured)
    pointer = promoted(run, tmp_path / "models")
    (version,) = registry.versions(tmp_path / "models")
    assert (version.metrics["test"]["accuracy"], version.metrics["test"]["data"]) == (0.875, "test.csv")
    assert "confusion" not in version.metrics["test"]
    assert pointer["metrics"]["test"]["accuracy"] == artifact.load(run / "artifact").metrics["test"]["accuracy"] == 0.875
    assert registry.keep_test(tmp_path / "models" / pointer["version"], {**measured, "accuracy": 0.9})
    assert registry.versions(tmp_path / "models")[0].metrics["test"]["accuracy"] == 0.9
    promoted(runs[1], tmp_path / "models")  # the folder still counts as one of models


def test_test_metrics_of_a_run_are_on_its_card_unless_somebody_edited_the_card(runs: tuple[Path, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    (run / "config.json").write_text("{}")
    stars = [{"rating": 1.0, "num_reviews": 40, "accuracy": 0.925, "accuracy_interval": [0.8, 0.98]}]
    measured = {**FIGURES, "accuracy": 0.875, "accuracy_by_rating": stars, "model": fingerprint(run)}
    card = run / "artifact" / "README.md"
    assert "not opened" in card.read_text()
    registry.keep_test(run / "artifact", measured)
    assert "| 87.50% |" in card.read_text()
    assert "| 1 | 40 | 92.50% (80.00% to 98.00%) |" in card.read_text()
    assert "not opened" not in card.read_text()
    registry.keep_test(run / "artifact", {**measured, "accuracy": 0.9})
    assert "| 90.00% |" in card.read_text()
    card.write_text(card.read_text() + "Ours.\n")
    registry.keep_test(run / "artifact", measured)
    assert "| 90.00% |" in card.read_text()
    assert card.read_text().endswith("Ours.\n")


def test_test_metrics_are_not_stored_beside_an_artifact_that_is_neither_of_a_run_nor_promoted(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "some" / "model")
    assert not registry.keep_test(tmp_path / "some" / "model", dict(FIGURES))
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["model"]


def test_test_metrics_of_another_model_are_ignored(runs: tuple[Path, ...], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / "artifact.test.json").write_text(json.dumps({**FIGURES, "model": "of another model"}))
    assert "test" not in artifact.load(tmp_path / "run" / "artifact").metrics
