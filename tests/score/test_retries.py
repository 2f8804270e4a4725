"""The records of deaths and errors that a dead worker leaves for its successor."""

from __future__ import annotations

from pathlib import Path

import pytest

from han.score.retries import OTHER_DEATHS, Attempts, BatchState, RecordState, batch_state, record_state
from han.storage import Folder
from han.types import UserError


@pytest.fixture
def staging(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path))
    folder.make("attempts")
    return folder


def test_the_successor_of_a_dead_worker_finds_its_batch(staging: Folder) -> None:
    Attempts(staging, "part", run="1").scoring(0, 9)
    assert Attempts(staging, "part", run="1").deaths(0, 9) == 1
    assert Attempts(staging, "part", run="1").deaths(0, 9) == 1  # the second died of nothing


def test_a_record_that_raised_is_remembered_after_its_worker_died(staging: Folder) -> None:
    first = Attempts(staging, "part", run="1")
    first.scoring(4, 4)
    first.failed(4, 4)
    first.scoring(5, 5)
    second = Attempts(staging, "part", run="1")
    assert [(second.deaths(row, row), second.failures(row, row)) for row in (4, 5)] == [(0, 1), (1, 0)]


def test_deaths_without_a_suspect_record_end_the_run_but_not_the_next_one(staging: Folder) -> None:
    for _ in range(OTHER_DEATHS):
        Attempts(staging, "part", run="1").reading(0)
    with pytest.raises(UserError, match="no record is to blame"):
        Attempts(staging, "part", run="1")
    assert Attempts(staging, "part", run="2").deaths(0, 0) == 0


@pytest.mark.parametrize(
    ("deaths", "failures", "state"),
    [(0, 0, "TOGETHER"), (1, 0, "SIFT"), (2, 0, "SIFT"), (3, 0, "SINGLY"), (0, 1, "SINGLY"), (1, 1, "SINGLY")],
)
def test_the_state_of_a_batch_follows_from_its_deaths_and_failures(deaths: int, failures: int, state: str) -> None:
    assert batch_state(deaths=deaths, failures=failures) is BatchState[state]


@pytest.mark.parametrize(
    ("deaths", "failures", "state"),
    [(0, 0, "UNTRIED"), (1, 0, "UNTRIED"), (0, 1, "UNTRIED"), (2, 0, "POISON"), (0, 2, "FAILED"), (1, 1, "FAILED")],
)
def test_the_state_of_a_record_follows_from_its_deaths_and_failures(deaths: int, failures: int, state: str) -> None:
    assert record_state(deaths=deaths, failures=failures) is RecordState[state]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_marker_is_ignored(staging: Folder, content: bytes) -> None:
    staging.write("attempts/part.json", content, durable=False)
    assert Attempts(staging, "part", run="1").deaths(0, 9) == 0
