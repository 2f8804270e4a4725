"""Raw reviews are prepared and a model is trained on a real Ray."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from han.config import ModelConfig, PrepareConfig, TrackConfig, TrainConfig, VocabConfig
from han.data.samples import planted as generated
from han.model import artifact
from han.score.scorer import Scorer
from han.train.encoded import EncodedFolder, read_encoded, windows
from han.train.prepare import digest_of, prepare
from han.train.trainer import Run, fit, read_run
from han.types import UserError

if TYPE_CHECKING:
    from conftest import Cluster, Submitted

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("on_ray"), pytest.mark.timeout(900)]

MODEL = ModelConfig(word_hidden=16, word_attention=32, sentence_hidden=16, sentence_attention=32, embedding_dropout=0.2, dropout=0.2)
TRAIN = TrainConfig(epochs=4, learning_rate=0.01, batch_tokens=8_192)


@pytest.fixture(scope="module")
def two_workers(submitted: Submitted) -> Run:
    return read_run(submitted.run)


def vars_of(config: TrainConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in TrainConfig.__slots__}


def test_every_review_is_encoded_once_by_the_encoder_of_scoring(planted: Path, folder: EncodedFolder) -> None:
    texts = {line["review_id"]: line["text"] for line in map(json.loads, planted.read_text().splitlines())}
    rows = [row for split in ("train", "development") for table in _tables(folder, split) for row in table.to_pylist()]
    assert len(rows) == len(texts)
    assert {row["review_id"] for row in rows} == texts.keys()
    for row in rows[::50]:
        encoded = folder.encoder.encode(texts[row["review_id"]])
        assert row["token_ids"] == encoded.token_ids.tolist()  # type: ignore[union-attr]
        assert row["sentence_lengths"] == encoded.sentence_lengths.tolist()  # type: ignore[union-attr]


def _tables(folder: EncodedFolder, split: str) -> list[object]:
    return [pq.read_table(folder.path / split / name) for name in folder.files[split]]


def test_preparing_again_does_nothing_and_other_settings_are_refused(planted: Path, folder: EncodedFolder, small: PrepareConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    again = prepare(str(planted), folder.path, small, dev_ids=None, report=lambda *step: None)
    assert again.fingerprint == folder.fingerprint
    other = PrepareConfig(vocab=VocabConfig(min_count=9), vectors=small.vectors, punkt_sample=0)
    with pytest.raises(UserError, match=r"config\.vocab\.min_count: 1 -> 9"):
        prepare(str(planted), folder.path, other, dev_ids=None, report=lambda *step: None)
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_a_folder_whose_input_has_swapped_labels_since_is_refused(on_ray: Cluster, small: PrepareConfig, tmp_path: Path) -> None:
    texts = [f"the film number {row} was seen" for row in range(40)]
    for first, second in (("good", "evil"), ("evil", "good")):  # names of one length, so the file keeps its size
        rows = "".join(f"{text},{(first, second)[row % 2]}\n" for row, text in enumerate(texts))
        (tmp_path / "reviews.csv").write_text("text,label\n" + rows)
        arguments = str(tmp_path / "reviews.csv"), tmp_path / "data", small
        if first == "good":
            prepare(*arguments, dev_ids=None, report=lambda *step: None)
    with pytest.raises(UserError, match="was prepared with other settings"):
        prepare(*arguments, dev_ids=None, report=lambda *step: None)


def test_workers_share_the_windows_and_the_order_depends_only_on_the_seed(folder: EncodedFolder) -> None:
    def ids(seed: int | None, num_workers: int) -> list[list[str]]:
        shares = []
        for rank in range(num_workers):
            first, second = (list(each) for each in windows(folder, [("train", seed), ("train", seed)], rank=rank, num_workers=num_workers))
            assert first == second
            shares.append([name for table in first for name in table["review_id"].to_pylist()])
        return shares

    first, again, other = ids(1, 2), ids(1, 2), ids(2, 2)
    everything = sorted(ids(None, 1)[0])
    assert first == again
    assert first != other
    assert sorted(first[0] + first[1]) == everything
    assert len(everything) == folder.num_reviews("train")


def test_two_workers_learn_and_attention_and_effects_find_the_planted_evidence(two_workers: Run) -> None:
    unseen = list(generated.generate(200, seed=2))
    answers = Scorer(artifact.load(two_workers.artifact)).score([review.text for review in unseen], effects="words")
    assert two_workers.best["accuracy"] >= 0.95
    found = generated.shares_found(unseen, answers)
    assert found.attention >= 0.95
    assert found.effect >= 0.98
    assert found.word >= 0.95


def test_a_killed_run_resumes_and_ends_like_an_uninterrupted_one(on_ray: Cluster, folder: EncodedFolder, tmp_path: Path) -> None:
    straight = fit(folder.path, tmp_path / "straight", MODEL, TRAIN)
    assert straight.best["accuracy"] >= 0.95
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "jobs.train", "--data", str(folder.path), "--out", str(killed)]
    command += [f"--model.{name.replace('_', '-')}={getattr(MODEL, name)}" for name in ModelConfig.__slots__]
    command += ["--train.epochs=4", "--train.learning-rate=0.01", "--train.batch-tokens=8192"]
    environment = os.environ | {"RAY_ADDRESS": on_ray.address}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(lambda: (killed / "history.jsonl").exists())  # the first epoch is over, the second under way
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not (killed / "artifact").exists()
    tracked = TrackConfig(mlflow=f"sqlite:///{tmp_path}/mlflow.db", wandb="reviews", wandb_offline=True)  # asked for later
    resumed = fit(folder.path, killed, MODEL, TRAIN, track=tracked)
    _is_tracked(killed, str(tracked.mlflow), resumed)
    assert [line["epoch"] for line in resumed.history] == [line["epoch"] for line in straight.history]
    for ours, theirs in zip(resumed.history, straight.history, strict=True):
        for figure in ("accuracy", "log_loss", "train_loss"):
            assert ours[figure] == pytest.approx(theirs[figure], abs=1e-5)
    one, other = (load_file(run.artifact / "model.safetensors") for run in (resumed, straight))
    assert all(abs(one[name] - other[name]).max() <= 1e-5 for name in other)


def _is_tracked(out: Path, uri: str, run: Run) -> None:
    """Whether MLflow has every epoch of the run, and the artifact has the run's names in both trackers."""
    noted = json.loads((out / "run.json").read_text())
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        query = "select step, value from metrics where run_uuid = ? and key = 'development/accuracy' order by step"
        rows = database.execute(query, [noted["mlflow"]["run_id"]]).fetchall()
    assert rows == [(line["epoch"], line["accuracy"]) for line in run.history]
    assert noted["wandb"]["epochs"] == len(run.history)
    assert list(out.glob(f"wandb/offline-run-*/run-{noted['id']}.wandb"))
    linked = artifact.load(run.artifact).provenance["run"]
    assert linked["mlflow"] == noted["mlflow"]
    assert linked["wandb"] == {"project": "reviews", "id": noted["id"]}


def _wait_for(happened: object, deadline_s: float = 400) -> None:
    end = time.monotonic() + deadline_s
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_an_artifact_names_its_run_and_its_data_without_a_path(folder: EncodedFolder, two_workers: Run) -> None:
    provenance = artifact.load(two_workers.artifact).provenance
    run = json.loads((two_workers.artifact.parent / "run.json").read_text())
    assert provenance["run"] == {"id": run["id"], "name": "run"}
    assert provenance["data"] == {"name": "data", "encoding": folder.fingerprint, "fingerprint": folder.data_fingerprint}
    assert provenance["counts"] == folder.counts
    for name in ("config.json", "README.md"):
        assert str(folder.path.parent) not in (two_workers.artifact / name).read_text()
    assert run["id"] in (two_workers.artifact / "README.md").read_text()


def test_a_data_fingerprint_depends_on_the_reviews_and_not_on_order_or_files(folder: EncodedFolder) -> None:
    parts = {split: pa.concat_tables(_tables(folder, split)) for split in ("train", "development")}
    backwards = {split: part.take(list(reversed(range(len(part))))) for split, part in parts.items()}
    assert f"{sum(digest_of(part, split) for split, part in backwards.items()) % (1 << 64):016x}" == folder.data_fingerprint
    flipped = parts["train"].to_pylist()
    flipped[7]["label"] = 1 - flipped[7]["label"]
    changed = parts | {"train": pa.Table.from_pylist(flipped, schema=parts["train"].schema)}
    assert f"{sum(digest_of(part, split) for split, part in changed.items()) % (1 << 64):016x}" != folder.data_fingerprint


def test_a_finished_run_is_returned_and_other_settings_are_refused(folder: EncodedFolder, two_workers: Run) -> None:
    out = two_workers.artifact.parent
    assert fit(folder.path, out, MODEL, TrainConfig(**{**vars_of(TRAIN), "num_workers": 2})).best == two_workers.best
    with pytest.raises(UserError, match=r"train\.num_workers: 2 -> 1"):
        fit(folder.path, out, MODEL, TRAIN)


def test_a_cluster_that_is_too_small_is_reported_before_anything_waits(folder: EncodedFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="64 workers need 64 CPUs, the cluster has 4"):
        fit(folder.path, tmp_path / "run", MODEL, TrainConfig(num_workers=64))


def test_an_encoded_folder_whose_vocabulary_was_changed_is_refused(folder: EncodedFolder, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    for name in ("encoding.json", "vectors.safetensors"):
        (changed / name).symlink_to(folder.path / name)
    (changed / "vocab.txt").write_text("\n".join([*folder.encoder.vocab.words, "new"]) + "\n")
    with pytest.raises(UserError, match="a file was changed"):
        read_encoded(changed)


def test_a_diverging_training_stops_with_one_line_and_leaves_no_model(folder: EncodedFolder, tmp_path: Path) -> None:
    steep = TrainConfig(epochs=2, learning_rate=1e30, batch_tokens=8_192)
    with pytest.raises(UserError, match=r"not finite at epoch 1, step \d+, learning rate .*lower --train\.learning-rate") as caught:
        fit(folder.path, tmp_path / "run", MODEL, steep)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "artifact").exists()
