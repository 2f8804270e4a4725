"""What `han score` prints at its end."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from jobs import score


def printed(folder: Path, texts: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    if not (folder / "reviews.csv").exists():
        pyarrow.csv.write_csv(pa.table({"text": texts}), folder / "reviews.csv")
    score.main(score.Score(input=str(folder / "reviews.csv"), out=str(folder / "out")))
    return capfd.readouterr().out


def test_the_summary_counts_flagged_records(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["A superb film, I loved every minute of it.", "Zyxq qwvk.", "Jumalauta olipa kehnonlainen elokuvanen."]
    output = printed(tmp_path, texts, capfd)
    (line,) = [line for line in output.splitlines() if "unfamiliar" in line]
    assert line.startswith("of 3 scored records, ")
    assert line.endswith("2 are unfamiliar")
    assert line in printed(tmp_path, texts, capfd), "a job that is complete already"


def test_the_summary_has_no_line_of_flags_if_no_record_is_flagged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = printed(tmp_path, ["A superb film, I loved every minute of it."] * 3, capfd)
    assert "3 records in = 3 scored" in output
    assert "unfamiliar" not in output
    assert "uncertain" not in output
