"""Short versions of the faults of `make chaos-batch`, on the drivers that users start."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.cluster import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

NUM_ROWS, NUM_EMPTY = 3_000, 10


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards with ten records without a word and two poison records."""
    from tests.chaos.batch import write_dump

    path = tmp_path_factory.mktemp("dump") / "dump.parquet"
    poison = {100: "A film like POISONEXIT. It was fine.", 1_200: "A film like POISONMEMORY. It was fine."}
    write_dump(path, NUM_ROWS, seed=1, extra=poison)
    return path


def test_poison_and_deaths_of_workers_and_the_driver_lose_or_duplicate_no_record_and_show_no_partial_output(
    on_ray: Cluster, dump: Path, tmp_path: Path
) -> None:
    from tests.chaos.batch import Poller, Run, holds, oracle, quarantine

    out, log = tmp_path / "out", tmp_path / "faults.log"
    through = ("tests.chaos.driver", "poison", str(log))
    with Poller(out, NUM_ROWS - NUM_EMPTY - 2) as poller:
        killed = Run(on_ray, dump, out, "--failpoint", "gathered", through=through)
        assert killed.wait(240) == -signal.SIGKILL, killed.output()
        again = Run(on_ray, dump, out, through=through)
        assert again.wait(240) == 0, again.output()
    counts = oracle(dump, out)
    assert holds(counts, NUM_EMPTY + 2), counts
    assert {line["row"]: line["reason"] for line in quarantine(out) if line["reason"] != "empty_text"} == {100: "poison", 1_200: "failed"}
    assert max(log.read_text().count(word) for word in ("POISONEXIT", "POISONMEMORY")) <= 3
    assert poller.torn == 0


def test_one_of_two_drivers_scores_and_the_other_is_refused_and_a_third_finds_the_job_complete(
    on_ray: Cluster, dump: Path, tmp_path: Path
) -> None:
    from tests.chaos.batch import Run, everything, holds, oracle
    from tests.chaos.repeated import until

    out = tmp_path / "out"
    stopped = Run(on_ray, dump, out)
    assert until(lambda: len(list(out.glob(".staging/attempts/*.json"))) > 0, 240), stopped.output()
    stopped.kill(signal.SIGSTOP)  # so that it is not over before the second has looked
    refused = Run(on_ray, dump, out)
    assert refused.wait(240) == 2, refused.output()
    assert "is being written by another process" in refused.output()
    stopped.kill(signal.SIGTERM)
    stopped.kill(signal.SIGCONT)
    assert stopped.wait(240) == 4, stopped.output()
    assert "run the same command to resume" in stopped.output()
    last = Run(on_ray, dump, out)
    assert last.wait(240) == 0, last.output()
    assert holds(oracle(dump, out))
    before = everything(out)
    again = Run(on_ray, dump, out)
    assert again.wait(240) == 0, again.output()
    assert "already complete" in again.output()
    assert everything(out) == before


def test_a_job_whose_raylet_dies_ends_with_one_line_and_its_exit_code_and_resumes(on_ray: Cluster, dump: Path, tmp_path: Path) -> None:
    from tests.chaos.batch import Run, oracle, ray_dies

    out, log = tmp_path / "out", tmp_path / "faults.log"
    code, output, took_s = ray_dies("raylet", dump, out)
    assert code == 6, output
    assert [line for line in output.splitlines() if line.startswith("error: ")] == [
        "error: Ray stopped working (the raylet of this node ended): run the same command to resume"
    ]
    assert "Traceback" not in output
    assert took_s < 60
    again = Run(on_ray, dump, out, through=("tests.chaos.driver", "none", str(log)))
    assert again.wait(240) == 0, again.output()
    assert "were complete and were kept" in again.output()
    counts = oracle(dump, out)
    assert counts["duplicates"] + counts["missing"] == 0, counts
