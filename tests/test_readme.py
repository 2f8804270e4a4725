"""Every command of the README is one that there is: its verb, its job, all its flags."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from jobs import door

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line.split(" #")[0].split(" <!--")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS += re.findall(r"`(\.venv/bin/python -m [^`]+)`", README)


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_every_verb_of_the_readme_is_in_the_makefile(command: str) -> None:
    assert re.search(rf"^{shlex.split(command)[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "-m jobs." in command])
def test_every_job_of_the_readme_takes_its_flags(command: str) -> None:
    _, _, call = command.partition("-m ")
    name, *arguments = shlex.split(call)
    module = importlib.import_module(name)
    kind = getattr(module, name.rpartition(".")[2].capitalize())
    if "--help" in arguments:
        with pytest.raises(SystemExit):
            tyro.cli(kind, args=arguments, config=door.STYLE)
    else:
        assert isinstance(tyro.cli(kind, args=arguments, config=door.STYLE), kind)


def test_nothing_else_is_called_than_make_jobs_and_the_terminal() -> None:
    others = [command for command in COMMANDS if not command.startswith("make ") and "-m jobs." not in command]
    assert all(".venv/bin/python -m han " in command for command in others)
