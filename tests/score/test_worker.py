"""Workers on this machine give the same scores as one `Scorer`, and the same guarantees as on Ray."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from han.config import ColumnsConfig, OutputConfig, ScoreConfig
from han.data import imdb, text_files
from han.score import batch_job, publish
from han.score.batch_job import Plan
from han.score.scorer import Scored, Scorer, load
from han.score.verify import verify
from han.score.worker import BatchScorer, Task
from han.types import EffectDetail, Score, UserError

POISON = "This text kills its worker."
TEXTS = [f"Review {number} was good. The end was {'bad' if number % 2 else 'fine'}." for number in range(60)]
UNFAMILIAR = ["Zyxq qwvk.", "Jumalauta olipa kehnonlainen elokuvanen."]


class Sabotaged:
    """A scorer that calls a function for each text before it scores them."""

    def __init__(self, scorer: Scorer, before: Callable[[str], object]) -> None:
        self.labels, self.fingerprint = scorer.labels, scorer.fingerprint
        self._scorer, self._before = scorer, before

    def score_flat(self, texts: Sequence[str], *, effects: EffectDetail = "none") -> Scored:
        for text in texts:
            self._before(text)
        return self._scorer.score_flat(texts, effects=effects)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return load("imdb")


def planned(folder: Path, texts: Sequence[str], *, files: int = 3, output: OutputConfig | None = None) -> Plan:
    """A job over `files` CSV files."""
    for number in range(files):
        if (folder / "in" / f"{number}.csv").exists():
            continue
        (folder / "in").mkdir(exist_ok=True)
        table = pa.table({"text": texts[number::files], "id": [f"{number}-{row}" for row in range(len(texts[number::files]))]})
        pyarrow.csv.write_csv(table, folder / "in" / f"{number}.csv")
    columns = ColumnsConfig(review_id="id")
    return batch_job.plan(
        str(folder / "in"),
        str(folder / "out"),
        model="imdb",
        columns=columns,
        config=ScoreConfig(),
        output=output or OutputConfig(max_bad_ratio=1),
        limit=None,
    )


def run(plan: Plan, make_scorer: Callable[[Task], BatchScorer], *, num_processes: int = 2) -> batch_job.Scores:
    return batch_job.score(plan, lambda *_, **__: None, num_processes=num_processes, make_scorer=make_scorer)


def is_sound(plan: Plan) -> bool:
    return verify(plan.out, unique_ids=True, report=lambda *_: None).num_problems == 0


def test_workers_give_the_scores_of_a_scorer(tmp_path: Path, scorer: Scorer) -> None:
    plan = planned(tmp_path, TEXTS)
    assert batch_job.fits_here(plan)
    scores = run(plan, lambda _: scorer)
    assert scores.manifest["counts"]["scored"] == len(TEXTS)
    assert is_sound(plan)
    table = pq.read_table(f"{plan.out}/scores").sort_by("text")
    alone = [answer for answer in scorer.score(sorted(TEXTS)) if isinstance(answer, Score)]
    assert table["text"].to_pylist() == sorted(TEXTS)
    assert table["probability"].to_pylist() == pytest.approx([answer.probability for answer in alone], abs=1e-6)


def test_a_record_that_kills_its_worker_is_quarantined_and_the_others_are_scored(tmp_path: Path, scorer: Scorer) -> None:
    plan = planned(tmp_path, [*TEXTS[:31], POISON, *TEXTS[31:]])
    killing = Sabotaged(scorer, lambda text: os.kill(os.getpid(), signal.SIGKILL) if text == POISON else None)
    scores = run(plan, lambda _: killing)
    assert scores.manifest["counts"] == {**scores.manifest["counts"], "scored": len(TEXTS), "quarantined": 1}
    assert scores.manifest["reasons"] == {"poison": 1}
    assert is_sound(plan)


def test_the_flagged_answers_of_all_workers_are_counted(tmp_path: Path, scorer: Scorer) -> None:
    plan = planned(tmp_path, [*TEXTS[:10], *UNFAMILIAR, *TEXTS[10:]])
    scores = run(plan, lambda _: scorer)
    table = pq.read_table(f"{plan.out}/scores")
    counted = {flag: sum(table[flag].to_pylist()) for flag in ("uncertain", "unfamiliar")}
    assert scores.manifest["flagged"] == counted
    assert counted["unfamiliar"] == len(UNFAMILIAR)
    assert counted["uncertain"] > 0


def test_flags_are_not_counted_beside_parts_of_a_version_that_did_not_count_them() -> None:
    counted = {"flagged": {"uncertain": 2, "unfamiliar": 1}}
    assert publish.flagged([counted, counted]) == {"uncertain": 4, "unfamiliar": 2}
    assert publish.flagged([counted, {}]) == {}


def test_a_mistake_of_a_worker_ends_the_job_and_nothing_is_published(tmp_path: Path, scorer: Scorer) -> None:
    def refuse(text: str) -> None:
        raise UserError("the weights are damaged")

    plan = planned(tmp_path, TEXTS)
    with pytest.raises(UserError, match="the weights are damaged"):
        run(plan, lambda _: Sabotaged(scorer, refuse))
    assert not (tmp_path / "out").exists()


def test_a_disk_error_in_a_worker_is_an_os_error_with_its_number(tmp_path: Path, scorer: Scorer) -> None:
    def fail(text: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error") as raised:
        run(planned(tmp_path, TEXTS), lambda _: Sabotaged(scorer, fail))
    assert raised.value.errno == errno.EIO


@pytest.fixture(params=["{}.txt", "train/pos/{}_7.txt"], ids=["texts", "aclImdb"])
def limited(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, Path]:
    """A job of the first three of five texts in shards of two, and the path of the last text."""
    monkeypatch.setattr(text_files, "SHARD_FILES", 2)
    monkeypatch.setattr(imdb, "SHARD_ROWS", 2)
    paths = [tmp_path / "in" / request.param.format(number) for number in range(5)]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        path.write_text("It was good.")
    options = {"columns": ColumnsConfig(), "config": ScoreConfig(), "output": OutputConfig(), "limit": 3}
    return batch_job.plan(str(tmp_path / "in"), str(tmp_path / "out"), model="imdb", **options), paths[-1]


def test_a_limit_that_leaves_shards_of_an_unchanged_folder_out_is_no_change(limited: tuple[Plan, Path], scorer: Scorer) -> None:
    plan, _ = limited
    assert run(plan, lambda _: scorer).manifest["counts"]["scored"] == 3


def test_a_change_of_a_folder_beyond_the_limit_is_named(limited: tuple[Plan, Path], scorer: Scorer) -> None:
    plan, last = limited
    last.write_text("It was bad, after all.")
    with pytest.raises(UserError, match=f"{last.name} changed or was removed"):
        run(plan, lambda _: scorer)


def test_workers_that_die_at_start_end_the_job(tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("han.score.worker.Worker", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="died 3 times before it began"):
        run(planned(tmp_path, TEXTS), lambda _: scorer)


def test_the_progress_has_the_number_of_quarantined_records(tmp_path: Path, scorer: Scorer) -> None:
    plan, reported = planned(tmp_path, [*TEXTS, "...", " "]), []

    def report(what: str, done: int, total: int, *, exact: bool = True, quarantined: int = 0) -> None:
        reported.append(quarantined)

    batch_job.score(plan, report, num_processes=1, make_scorer=lambda _: scorer)
    assert reported == sorted(reported)
    assert (reported[0], reported[-1]) == (0, 2)


def test_an_interrupted_job_leaves_no_process_and_resumes(tmp_path: Path, scorer: Scorer) -> None:
    plan, reached = planned(tmp_path, TEXTS), []

    def report(what: str, done: int, total: int, *, exact: bool = True, quarantined: int = 0) -> None:
        reached.append(done)
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch_job.score(plan, report, num_processes=1, make_scorer=lambda _: scorer)
    scores = run(plan, lambda _: scorer)
    assert 0 < scores.rows_now <= len(TEXTS)
    assert is_sound(plan)


DRIVER = """
import sys
from pathlib import Path
from tests.score.test_worker import TEXTS, Sabotaged, planned, run
from han.score.scorer import load
import os, time
def stall(text):
    print(os.getpid(), flush=True)
    time.sleep(3600)
scorer = load("imdb")
run(planned(Path(sys.argv[1]), TEXTS), lambda _: Sabotaged(scorer, stall), num_processes=1)
"""


def test_workers_end_with_a_killed_driver_and_release_its_lock(tmp_path: Path, scorer: Scorer) -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())
        driver.kill()
        driver.wait()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{worker}/cmdline").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not Path(f"/proc/{worker}/cmdline").exists()
    assert run(planned(tmp_path, TEXTS), lambda _: scorer).manifest["counts"]["scored"] == len(TEXTS)


CHANGES = ({"config": ScoreConfig(num_actors=2)}, {"config": ScoreConfig(gpu=True)}, {"out": "s3://bucket/out"})


@pytest.mark.parametrize("change", CHANGES, ids=("actors", "gpu", "bucket"))
def test_ray_is_used_where_it_is_needed(tmp_path: Path, change: dict[str, Any]) -> None:
    assert not batch_job.fits_here(dataclasses.replace(planned(tmp_path, TEXTS), **change))


def test_the_bytes_of_a_parquet_file_count_once_however_many_shards_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_job, "_BYTES_HERE", 3 * 400_000)
    texts = ["".join(random.Random(row).choices("abcdefgh ", k=100)) for row in range(4_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet", row_group_size=500, compression="none", use_dictionary=False)
    options = {"columns": ColumnsConfig(), "config": ScoreConfig(), "output": OutputConfig(), "limit": None}
    plan = batch_job.plan(str(tmp_path / "in.parquet"), str(tmp_path / "out"), model="imdb", **options)
    assert len(plan.items) > 3
    assert batch_job.fits_here(plan)


def test_a_folder_of_text_files_counts_its_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.txt").write_text("It was good.")
    options = {"columns": ColumnsConfig(), "config": ScoreConfig(), "output": OutputConfig(), "limit": None}
    assert batch_job.fits_here(batch_job.plan(str(tmp_path / "in"), str(tmp_path / "out"), model="imdb", **options))
