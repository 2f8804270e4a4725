"""The study of a sweep: which trials run, which are stopped early, and resuming after a death."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import Trial, TrialState

from han.config import ModelConfig, SweepConfig, TrainConfig
from han.tune import search_space, sweep
from han.tune.search_space import SPACE
from han.types import UserError

MODEL, TRAIN = ModelConfig(), TrainConfig()
FIRST = search_space.default(SPACE, MODEL, TRAIN)
EPOCHS = 3


def line(epoch: int, accuracy: float, log_loss: float = 0.5) -> dict[str, Any]:
    return {"epoch": epoch, "accuracy": accuracy, "log_loss": log_loss, "reviews_per_s": 100.0 + epoch, "train_s": 2.0}


def opened(out: Path, config: SweepConfig) -> optuna.Study:
    """Open the study as each driver does."""
    sweep.claim(out, {"sweep": config.trials})
    return sweep.open_study(out, config, epochs=EPOCHS, first=[FIRST])


def requested(study: optuna.Study, config: SweepConfig) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """The trials that a driver gets, with their settings."""
    for trial in sweep.left_running(study, config):
        yield trial, search_space.suggest(trial, SPACE, MODEL, TRAIN)
    while (trial := sweep.ask(study, config)) is not None:  # type: ignore[assignment]
        yield trial, search_space.suggest(trial, SPACE, MODEL, TRAIN)


def train(study: optuna.Study, trial: Trial, accuracy: float) -> str | None:
    """Run the epochs of a trial until it is stopped."""
    history: list[dict[str, Any]] = []
    stopped = None
    while len(history) < EPOCHS and stopped is None:
        history.append(line(len(history) + 1, accuracy + 0.01 * len(history)))
        stopped = sweep.report(trial, history[-1])
    sweep.tell(study, trial, history, folder=sweep.folder_of(trial.number), stopped=stopped, workers=1)
    return stopped


def accuracy_of(settings: dict[str, Any]) -> float:
    return 0.5 + 30 * float(settings["train.learning_rate"])


def run(study: optuna.Study, config: SweepConfig) -> None:
    for trial, settings in requested(study, config):
        train(study, trial, accuracy_of(settings))


def told(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.state, trial.params, trial.values, trial.intermediate_values) for trial in study.get_trials()]


def test_a_sweep_tries_the_default_first_and_then_the_requested_number_of_trials(tmp_path: Path) -> None:
    config = SweepConfig(trials=5)
    study = opened(tmp_path / "sweep", config)
    run(study, config)
    trials = study.get_trials()
    assert trials[0].params == FIRST
    assert [trial.number for trial in trials] == list(range(5))
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == 5
    assert sweep.ask(study, config) is None


def test_a_seed_determines_the_trials(tmp_path: Path) -> None:
    found = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        config = SweepConfig(trials=4, seed=seed)
        study = opened(tmp_path / name, config)
        run(study, config)
        found.append([trial.params for trial in study.get_trials()])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsgaii"])
def test_every_sampler_draws_distinct_trials_even_with_one_driver_per_trial(tmp_path: Path, sampler: Any) -> None:
    config = SweepConfig(trials=4, sampler=sampler)
    for _ in range(4):
        study = opened(tmp_path / "sweep", config)
        trial = sweep.ask(study, config)
        assert trial is not None
        train(study, trial, accuracy_of(search_space.suggest(trial, SPACE, MODEL, TRAIN)))
    assert len({json.dumps(trial.params, sort_keys=True) for trial in study.get_trials()}) == 4


def test_running_trials_resume_under_their_numbers_and_finished_ones_are_unchanged(tmp_path: Path) -> None:
    config = SweepConfig(trials=4)
    out = tmp_path / "sweep"
    study = opened(out, config)
    running = requested(study, config)
    train(study, *_with_accuracy(next(running)))
    half_trained, settings = next(running)
    sweep.report(half_trained, line(1, 0.9))
    bare = sweep.ask(study, config)  # its driver dies before anything is drawn
    assert bare is not None
    before = told(study)
    again = opened(out, config)
    left = sweep.left_running(again, config)
    assert [trial.number for trial in left] == [1, 2]
    assert search_space.suggest(left[0], SPACE, MODEL, TRAIN) == settings
    run(again, config)
    after = told(again)
    assert after[0] == before[0]
    assert after[1][4] == {1: 0.9, 2: pytest.approx(accuracy_of(settings) + 0.01), 3: pytest.approx(accuracy_of(settings) + 0.02)}
    assert [row[0] for row in after] == list(range(4))
    assert all(row[1].is_finished() for row in after)


def _with_accuracy(requested: tuple[Trial, dict[str, Any]]) -> tuple[Trial, float]:
    return requested[0], accuracy_of(requested[1])


def test_the_default_is_queued_after_a_death_before_it(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    out.mkdir()
    optuna.create_study(storage=f"sqlite:///{out}/study.db", study_name="sweep", direction="maximize")
    (out / "sweep.json").write_text('{"sweep": 2}')
    for _ in range(2):
        study = opened(out, SweepConfig(trials=2))
        assert len(study.get_trials()) == 1
    run(study, SweepConfig(trials=2))
    assert study.get_trials()[0].params == FIRST


def test_a_trial_that_is_stopped_early_is_pruned_with_its_last_step_and_saves_epochs(tmp_path: Path) -> None:
    config = SweepConfig(trials=5, sampler="random")
    study = opened(tmp_path / "sweep", config)
    for place, (trial, _) in enumerate(requested(study, config)):
        stopped = train(study, trial, 0.9 - 0.05 * place)  # each worse than all before
        assert stopped == (None if place == 0 else "early")
    assert sweep.counts(study) == {"done": 1, "stopped": 4, "failed": 0, "running": 0, "epochs": 3 + 4}
    pruned = study.get_trials(states=[TrialState.PRUNED])
    assert {trial.last_step for trial in pruned} == {1}
    assert sweep.best(study).number == 0


def test_the_first_trial_is_never_stopped_but_others_are_compared_with_it(tmp_path: Path) -> None:
    config = SweepConfig(trials=3)
    study = opened(tmp_path / "sweep", config)
    (first, _), (second, _), (third, _) = requested(study, config)
    assert sweep.report(second, line(1, 0.8)) is None
    assert sweep.report(first, line(1, 0.7)) is None
    assert sweep.report(third, line(1, 0.75)) == "early"


def test_no_trial_is_stopped_at_the_last_epoch(tmp_path: Path) -> None:
    config = SweepConfig(trials=2, grace=EPOCHS)
    study = opened(tmp_path / "sweep", config)
    for place, (trial, _) in enumerate(requested(study, config)):
        assert train(study, trial, 0.9 - 0.1 * place) is None


def test_a_reduction_factor_of_one_stops_no_trial(tmp_path: Path) -> None:
    config = SweepConfig(trials=4, reduction_factor=1)
    study = opened(tmp_path / "sweep", config)
    for place, (trial, _) in enumerate(requested(study, config)):
        assert train(study, trial, 0.9 - 0.1 * place) is None


def test_a_score_that_is_not_a_number_fails_its_trial_and_is_never_best(tmp_path: Path) -> None:
    config = SweepConfig(trials=3)
    study = opened(tmp_path / "sweep", config)
    trials = [trial for trial, _ in requested(study, config)]
    train(study, trials[0], 0.6)
    why = sweep.report(trials[1], line(1, 0.99, float("nan")))
    assert why == "it diverged: development log_loss is nan after epoch 1"
    sweep.tell(study, trials[1], [line(1, 0.99, float("nan"))], folder="", stopped=why, workers=1)
    sweep.tell(study, trials[2], [line(1, float("inf"))], folder="", stopped=None, workers=1)
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert "diverged" in study.get_trials()[2].user_attrs["reason"]
    assert sweep.best(study).number == 0


def test_a_sweep_whose_trials_all_fail_reports_the_reason(tmp_path: Path) -> None:
    config = SweepConfig(trials=2)
    study = opened(tmp_path / "sweep", config)
    for trial, _ in requested(study, config):
        sweep.tell(study, trial, [], folder="", stopped="no memory", workers=1)
    with pytest.raises(UserError, match="none of 2 trials finished; reason of the first: no memory"):
        sweep.best(study)


def test_two_objectives_have_a_pareto_front_and_stop_no_trial(tmp_path: Path) -> None:
    config = SweepConfig(trials=3, cost=True)
    study = opened(tmp_path / "sweep", config)
    for (trial, _), (loss, speed) in zip(requested(study, config), [(0.3, 100.0), (0.4, 200.0), (0.5, 150.0)], strict=True):
        entry = {**line(1, 0.8, loss), "reviews_per_s": speed}
        assert sweep.report(trial, entry) is None
        sweep.tell(study, trial, [entry], folder="", stopped=None, workers=2)
    assert [trial.values for trial in study.get_trials()] == [[0.3, 20.0], [0.4, 10.0], [0.5, pytest.approx(13.33, abs=0.01)]]
    assert {trial.number for trial in study.best_trials} == {0, 1}
    assert sweep.best(study).number == 0


def test_a_warm_start_tries_the_best_of_an_earlier_sweep_after_the_default(tmp_path: Path) -> None:
    config = SweepConfig(trials=4, sampler="random")
    study = opened(tmp_path / "earlier", config)
    run(study, config)
    names = [name for name in SPACE if name != "model.dropout"]
    best = sweep.earlier_best(tmp_path / "earlier", 1, names)
    assert best == [{name: value for name, value in sweep.best(study).params.items() if name in names}]
    later = sweep.open_study(_made(tmp_path / "later"), SweepConfig(trials=3), epochs=EPOCHS, first=[FIRST, *best])
    trials = list(requested(later, SweepConfig(trials=3)))
    assert trials[0][1] == FIRST
    assert best[0].items() <= trials[1][1].items()
    assert len(trials) == 3


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_other_settings_and_folders_with_other_content_are_refused(tmp_path: Path) -> None:
    sweep.claim(tmp_path / "sweep", {"trials": 4})
    sweep.claim(tmp_path / "sweep", {"trials": 4})
    with pytest.raises(UserError, match="trials: 4 -> 8"):
        sweep.claim(tmp_path / "sweep", {"trials": 8})
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else"):
        sweep.claim(tmp_path, {"trials": 4})
    with pytest.raises(UserError, match="is no sweep"):
        sweep.read_study(tmp_path)
    with pytest.raises(UserError, match="is no finished sweep"):
        sweep.read_best(tmp_path / "sweep")


def test_every_trial_has_a_row_in_the_table_and_the_best_has_its_artifact(tmp_path: Path) -> None:
    out, config = tmp_path / "sweep", SweepConfig(trials=3)
    study = opened(out, config)
    run(study, config)
    best = sweep.best(study)
    artifact = out / str(best.user_attrs["folder"]) / "artifact"
    artifact.mkdir(parents=True)
    (artifact / "SHA256SUMS").write_text("sums")
    (artifact.parent / "checkpoints").mkdir()
    for _ in range(2):  # once more does no harm
        sweep.write_trials(study, out / "trials.parquet")
        sweep.write_best(out, study, {"train.learning_rate": 0.01}, data="data", more={})
        sweep.tidy(out)
    table = pq.read_table(out / "trials.parquet")
    assert table["number"].to_pylist() == [0, 1, 2]
    assert {"state", "train.learning_rate", "accuracy", "log_loss", "epochs", "train_s", "folder", "started"} <= set(table.column_names)
    written = sweep.read_best(out)
    assert (written["trial"], written["overrides"], written["data"]) == (best.number, {"train.learning_rate": 0.01}, "data")
    assert (out / "artifact" / "SHA256SUMS").read_text() == "sums"
    assert not (artifact.parent / "checkpoints").exists()
    assert artifact.exists()


@pytest.mark.parametrize("wrong", [{"trials": 0}, {"trials": 4, "grace": 0}, {"trials": 4, "reduction_factor": 0}])
def test_settings_of_a_sweep_have_bounds(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="give at least 1"):
        SweepConfig(**wrong)
