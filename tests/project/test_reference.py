"""docs/reference.md agrees with the code."""

from pathlib import Path

from benchmarks import reference
from jobs import cli

ROOT = Path(__file__).parents[2]


def test_the_reference_is_rendered_from_the_code() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.render(), "docs/reference.md is outdated: run make reference"


def test_the_reference_has_every_job_and_every_exit_code() -> None:
    page = reference.render()
    runnable = [path.stem for path in (ROOT / "jobs").glob("*.py") if "cli.run(" in path.read_text(encoding="utf-8")]
    assert len(runnable) >= 9
    assert [name for name in runnable if f"### han {name}\n" not in page] == []
    for name, module in reference.modules().items():
        codes = [value for constant, value in vars(module).items() if constant.startswith("EXIT_") and isinstance(value, int)]
        assert [code for code in codes if f"| {code} | han {name} |" not in page] == []


def test_the_runbook_explains_every_exit_code() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert [code for code in cli.EXIT_CODES if f"| {code} | " not in page] == []


def test_every_flag_option_and_metric_has_help() -> None:
    rows = [line.split(" | ") for line in reference.render().splitlines() if line.startswith(("| `--", "| `han_"))]
    assert len(rows) > 100
    assert [row[0] for row in rows if len(row[3].strip(" |")) < 5] == []


def test_the_values_and_defaults_of_flags_are_words_that_can_be_typed() -> None:
    rows = [line.split(" | ") for line in reference.render().splitlines() if line.startswith(("| `--", "| `RUN", "| `TEXTS"))]
    assert {row[1] for row in rows if "--no-" in row[0] or ".no-" in row[0]} == {"on or off"}
    assert [row for row in rows if {"None", "`None`", "`True`", "`False`"} & set(row) or "STR" in row[1]] == []
    assert "name=value'" not in reference.render()
