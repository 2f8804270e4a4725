"""A small sweep on a real Ray. Its driver is killed and started again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from han.config import ModelConfig, TrainConfig
from han.model import artifact
from han.train.trainer import read_run
from han.tune import search, search_space, sweep
from han.types import UserError
from jobs import train
from tests.helpers.swept import EPOCHS, TRIALS, Swept, finished_trials

if TYPE_CHECKING:
    from han.train.encoded import EncodedFolder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("on_ray"), pytest.mark.timeout(900)]


def test_a_killed_sweep_resumes_and_runs_exactly_the_requested_trials(swept: Swept) -> None:
    after = finished_trials(swept.out)
    assert [trial[0] for trial in after] == list(range(TRIALS))
    assert [trial for trial in after if trial[0] in {known[0] for known in swept.before}] == swept.before
    assert {trial[1] for trial in after} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert after[0][2]["train.learning_rate"] == 0.01
    assert f"{TRIALS} of {TRIALS} trials ended" in swept.printed


def test_the_recorded_result_of_a_trial_equals_its_history(swept: Swept) -> None:
    for number, state, _, values, about in finished_trials(swept.out):
        history = read_run(swept.out / sweep.folder_of(number)).history
        accuracies = [line["accuracy"] for line in history[: about["epochs"]]]
        assert values == [max(accuracies)] if state == TrialState.COMPLETE else values == [accuracies[-1]]
        assert about["epochs"] == EPOCHS if state == TrialState.COMPLETE else about["epochs"] < EPOCHS
        assert list((swept.out / sweep.folder_of(number) / "tensorboard").glob("events*"))


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow itself
def test_mlflow_has_a_run_of_each_trial_with_its_figures(swept: Swept) -> None:
    client = MlflowClient(tracking_uri=swept.mlflow)
    (experiment,) = client.search_experiments(filter_string="name = 'han-on-ray'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == TRIALS
    for number, state, _, _, about in finished_trials(swept.out):
        run = runs[f"sweep/{number:04d}"]
        logged = [each.value for each in client.get_metric_history(run.info.run_id, "development/accuracy")]
        assert logged[: about["epochs"]] == [line["accuracy"] for line in read_run(swept.out / about["folder"]).history][: about["epochs"]]
        assert run.data.tags["group"] == "sweep"
        assert run.info.status == ("FINISHED" if state == TrialState.COMPLETE else "KILLED")


def test_the_best_trial_gives_a_model_and_settings_for_a_training(swept: Swept) -> None:
    best = sweep.read_best(swept.out)
    trial = sweep.best(sweep.read_study(swept.out))
    model = artifact.load(artifact.find(str(swept.out)))
    assert best["trial"] == trial.number
    assert model.metrics["development"]["accuracy"] == trial.values[0] == best["development"]["accuracy"]
    defaults = train.defaults(["--from", str(swept.out), "--out", "run"], {})
    assert defaults is not None
    assert defaults.model == model.network.config
    assert (defaults.train.epochs, defaults.train.learning_rate) == (EPOCHS, trial.params["train.learning_rate"])
    assert pq.read_table(swept.out / "trials.parquet").num_rows == TRIALS


def test_checkpoints_and_files_of_ray_tune_are_removed(swept: Swept) -> None:
    assert not list(swept.out.glob("trials/*/checkpoints"))
    assert not (swept.out / ".tune").exists()


def test_other_settings_on_the_same_folder_are_refused(swept: Swept, folder: EncodedFolder) -> None:
    with pytest.raises(UserError, match="sweep with other settings"):
        search.sweep(_job(folder, swept.out, config=sweep.SweepConfig(trials=TRIALS + 1)), watch=lambda study: None)


def test_a_trial_that_does_not_fit_the_cluster_is_an_error_with_its_numbers(folder: EncodedFolder, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"one trial needs 6 CPUs \(1 for its driver, 2 x 2 for its workers, 1 to read data\), the cluster has 4"
    ):
        search.sweep(_job(folder, tmp_path / "sweep", train=TrainConfig(num_workers=2, cpus_per_worker=2)), watch=lambda study: None)


def _job(folder: EncodedFolder, out: Path, **changes: Any) -> search.SweepJob:
    usual = {"space": search_space.SPACE, "model": ModelConfig(), "train": TrainConfig(), "config": sweep.SweepConfig(trials=1)}
    return search.SweepJob(data=[folder.path], out=out, **(usual | changes))
