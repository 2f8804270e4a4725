"""The marked blocks of the README and the tutorial run unchanged and in order, as a reader would run them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from han.data.samples import REVIEWS
from jobs.__main__ import main

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("on_ray"), pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
OURS = re.compile(r"<!-- run by tests/on_ray/test_docs\.py -->\n```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run(document: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the document's blocks in a folder and return their number. Jobs run in this process, on the Ray of the tests."""
    monkeypatch.chdir(folder)
    found = OURS.findall(document.read_text(encoding="utf-8"))
    for language, code in found:
        if language == "python":
            subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT), "HOME": str(folder)}, check=True, timeout=60)
            continue
        for line in code.replace("\\\n", " ").splitlines():
            program, command, *arguments = shlex.split(line, comments=True)
            assert program == ".venv/bin/han"
            monkeypatch.setattr(sys, "argv", [program, command, *arguments])
            main()
    return len(found)


def test_the_readme_runs_on_a_dump_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dump").mkdir()
    reviews = [json.loads(line) for line in REVIEWS.read_text(encoding="utf-8").splitlines()[:60]]
    pq.write_table(pa.Table.from_pylist(reviews), tmp_path / "dump" / "reviews.parquet")
    assert run(ROOT / "README.md", tmp_path, monkeypatch) >= 4
    assert pq.read_table(tmp_path / "scores").num_rows == 60
    assert (tmp_path / "attention.html").read_text().count("<article") == 20


def test_the_tutorial_trains_a_model_that_predicts_its_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(ROOT / "docs" / "tutorial.md", tmp_path, monkeypatch) >= 7
    figures = json.loads((tmp_path / "out" / "csv" / "evaluation" / "metrics.json").read_text())
    assert figures["num_reviews"] == 200
    assert figures["accuracy"] >= 0.95
    assert {f"`{name}`" for name in figures} <= set(re.findall(r"`\w+`", (ROOT / "docs" / "reference.md").read_text()))
    printed = capfd.readouterr().out
    assert "200 records in = 200 scored + 0 quarantined" in printed
    assert "OK: 200 records in = 200 scored + 0 quarantined" in printed
    assert printed.count("│ positive │") + printed.count("│ negative │") >= 5  # what the SQL shows
