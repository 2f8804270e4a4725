"""Trackers receive each epoch of a run's history once, even if the run or the tracker fails."""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from han.config import TrackConfig
from han.train import track
from han.train.track import Trackers, claim, figures, link
from han.types import UserError

# mlflow's own models use a loader that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

SETTINGS = {"model": {"dropout": 0.4}, "train": {"seed": 1}, "encoding": "0123456789abcdef"}


@pytest.fixture(autouse=True)
def by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the trackers of the test are used."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)


def lines(number: int) -> list[dict[str, Any]]:
    """A history of this number of epochs. It has only one label, so it has no AUC."""
    return [
        {
            "epoch": epoch,
            **{"accuracy": 0.5 + epoch / 100, "f1": 0.4, "auc": None, "log_loss": 0.7 / epoch, "brier": 0.2},
            **{"expected_calibration_error": 0.1, "temperature": 1.5, "train_loss": 0.6 / epoch, "reviews_per_s": 900.0, "train_s": 2.0},
            "confusion": {"negative": {"negative": 1}},
        }
        for epoch in range(1, number + 1)
    ]


def run(out: Path, config: TrackConfig, *histories: list[dict[str, Any]], behind: Sequence[dict[str, Any]] = ()) -> None:
    """Do the work of rank 0 in a run that resumes after `behind`, reports these histories, and ends."""
    out.mkdir(exist_ok=True)
    claim(out, config)
    trackers = Trackers(out, config, SETTINGS, behind)
    for history in histories:
        trackers.epoch(history)
    trackers.close()


def in_mlflow(out: Path, uri: str) -> dict[str, list[tuple[int, float]]]:
    """Figures by epoch of the run that run.json names."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run_id = json.loads((out / "run.json").read_text())["mlflow"]["run_id"]
    names = client.get_run(run_id).data.metrics
    return {name: sorted((each.step, each.value) for each in client.get_metric_history(run_id, name)) for name in names}


def in_wandb(out: Path) -> tuple[list[Record], dict[str, list[tuple[int, float]]]]:
    """All records of the offline files, and the figures by epoch. W&B's own process may still write them: each ends with an exit."""
    paths, deadline = sorted(out.glob("wandb/offline-run-*/*.wandb")), time.monotonic() + 30
    while True:
        files = [list(wandb_records(path.read_bytes())) for path in paths]
        if time.monotonic() > deadline or all(file and file[-1].HasField("exit") for file in files):
            break
        time.sleep(0.05)
    records = [record for file in files for record in file]
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record.HasField("history"):
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() - {"_step", "_timestamp", "_runtime"}:
                found.setdefault(name, []).append((row["_step"], row[name]))
    return records, found


def wandb_records(content: bytes) -> Iterator[Record]:
    """A file of W&B is a log as LevelDB writes it: blocks of 32 KiB, of pieces: checksum, length, kind (1 whole, 2 first, 4 last)."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if 32_768 - place % 32_768 < 7:
            place += 32_768 - place % 32_768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        if place + 7 + length > len(content):
            return  # it is being written
        whole = (b"" if kind in (1, 2) else whole) + content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)


def in_history(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    named = [(line["epoch"], figures(line)) for line in history]
    return {name: [(epoch, values[name]) for epoch, values in named] for name in named[0][1]}


def test_tensorboard_has_the_figures_of_the_history(tmp_path: Path) -> None:
    run(tmp_path / "run", TrackConfig(), lines(1), lines(2), lines(3))
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    logged = {name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]}
    assert logged == {
        name: [(epoch, pytest.approx(value, rel=1e-6)) for epoch, value in of] for name, of in in_history(lines(3)).items()
    }  # float32 there


def test_mlflow_has_the_figures_of_the_history_and_a_resumed_run_continues(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = TrackConfig(mlflow=f"sqlite:///{tmp_path}/mlflow.db", name="a name", group="a sweep")
    run(tmp_path / "run", config, lines(1), lines(2))
    before = link(tmp_path / "run")
    run(tmp_path / "run", config, lines(2), lines(3))  # the second epoch was done again
    assert link(tmp_path / "run") == before
    assert in_mlflow(tmp_path / "run", str(config.mlflow)) == in_history(lines(3))
    client = MlflowClient(tracking_uri=config.mlflow)
    experiment = client.get_experiment_by_name("han-on-ray")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (before["mlflow"]["run_id"], "a name", "FINISHED")
    assert (found.data.tags["run"], found.data.tags["group"]) == (before["id"], "a sweep")
    assert found.data.params == {"model.dropout": "0.4", "train.seed": "1", "encoding": "0123456789abcdef"}
    track.stopped(tmp_path / "run", config, lines(4))
    assert client.get_run(found.info.run_id).info.status == "KILLED"
    assert in_mlflow(tmp_path / "run", str(config.mlflow)) == in_history(lines(4))


def test_a_stopped_run_whose_worker_ends_later_stays_killed_in_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = TrackConfig(mlflow=f"sqlite:///{tmp_path}/mlflow.db")
    run(tmp_path / "run", config, lines(1))
    worker = Trackers(tmp_path / "run", config, SETTINGS, lines(1))
    track.stopped(tmp_path / "run", config, lines(1))
    worker.close()
    assert MlflowClient(tracking_uri=config.mlflow).get_run(link(tmp_path / "run")["mlflow"]["run_id"]).info.status == "KILLED"


def test_another_mlflow_server_receives_all_epochs(tmp_path: Path) -> None:
    one, other = (f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "other"))
    run(tmp_path / "run", TrackConfig(mlflow=one), lines(1))
    run(tmp_path / "run", TrackConfig(mlflow=other), behind=lines(2))  # killed at the very end: nothing was left to train
    assert in_mlflow(tmp_path / "run", other) == in_history(lines(2))


def test_wandb_has_the_figures_of_the_history_and_a_resumed_run_continues(tmp_path: Path) -> None:
    config = TrackConfig(wandb="team/reviews", wandb_offline=True, group="a sweep")
    run(tmp_path / "run", config, lines(1), lines(2))
    run(tmp_path / "run", config, lines(2), lines(3))
    records, logged = in_wandb(tmp_path / "run")
    assert logged == in_history(lines(3))
    runs = [record.run for record in records if record.HasField("run")]
    assert {(each.entity, each.project, each.run_id, each.run_group, each.display_name) for each in runs} == {
        ("team", "reviews", link(tmp_path / "run")["id"], "a sweep", "run")
    }
    assert {item.key: json.loads(item.value_json) for item in runs[0].config.update if item.key != "_wandb"} == track.flatten(SETTINGS)


def test_no_tracker_receives_a_path_of_this_machine(tmp_path: Path) -> None:
    config = TrackConfig(mlflow=f"sqlite:///{tmp_path}/mlflow.db", wandb="reviews", wandb_offline=True)
    run(tmp_path / "run", config, lines(1))
    records, _ = in_wandb(tmp_path / "run")
    assert [record for record in records if str(tmp_path) in str(record) or str(Path(__file__).parents[2]) in str(record)] == []
    assert {record.run.host for record in records if record.HasField("run")} == {""}
    assert str(tmp_path) not in json.dumps(link(tmp_path / "run"))


def test_a_failing_tracker_does_not_stop_the_run_and_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = TrackConfig(mlflow="http://127.0.0.1:9")  # discard: nobody listens
    with caplog.at_level(logging.WARNING, logger="han.train.track"):
        run(tmp_path / "run", config, lines(1), lines(2), lines(3))
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == ["MLflow cannot record this run"]
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert len(board.Scalars("train/loss")) == 3
    here = TrackConfig(mlflow=f"sqlite:///{tmp_path}/mlflow.db")
    run(tmp_path / "run", here, lines(4))  # one that is there is told what it has missed
    assert in_mlflow(tmp_path / "run", str(here.mlflow)) == in_history(lines(4))


def test_a_tracker_that_does_not_answer_does_not_block_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    answers = threading.Event()
    monkeypatch.setattr(track, "_mlflow_client", lambda uri: answers.wait())
    monkeypatch.setattr(track, "CLOSE_S", 0.1)
    run(tmp_path / "run", TrackConfig(mlflow="http://127.0.0.1:9"), lines(1))
    answers.set()
    assert "MLflow has not taken all figures after 0 s" in caplog.text


def test_a_missing_tracker_package_is_reported_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'han-on-ray\[wandb\]'"):
        claim(tmp_path, TrackConfig(wandb="reviews"))
    assert list(tmp_path.iterdir()) == []
