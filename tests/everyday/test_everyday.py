"""The steps of everyday use that need neither torch nor Ray: help and user errors. `make everyday` runs all steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.everyday.steps import HELP, MISTAKES, Step, run, write_inputs

PATIENCE = float("inf")  # `make everyday` checks the times, on a machine without other work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("everyday")
    write_inputs(made)
    return made


@pytest.mark.parametrize("step", [*HELP, *MISTAKES], ids=lambda step: step.name)
def test_each_step_has_its_expected_exit_code_and_output(step: Step, folder: Path) -> None:
    result = run(step, folder, patience=PATIENCE)
    assert result.problems == (), f"{step.command}\n{result.output}"
    assert not (folder / "x").exists()
