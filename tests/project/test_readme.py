"""Every command of the README and of the documents is one that there is: its verb, its job, all its flags. Every block that could be run
says which test runs it, or why none does."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks import reference
from jobs import cli
from jobs.__main__ import COMMANDS as COMMANDS_OF_HAN

ROOT = Path(__file__).parents[2]
GENERATED = {"numbers.md", "reference.md"}  # the first quotes commands of the commits that it names
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(path for path in sorted(ROOT.glob("docs/*.md")) if path.name not in GENERATED)]
BLOCK = re.compile(r"(?:<!-- (?P<marker>[^\n]*) -->\n)?^```(?P<language>bash|sh|python)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:\.venv/bin/)?(?:python -m (?:jobs\.\w+|han)|han [a-z]+ )[^`]*|make [a-z][^`]*)`")
RUN_BY, NOT_RUN = re.compile(r"run by (tests/[\w/]+\.py)"), re.compile(r"not run: .{8,}")
SHELL = re.compile(
    r"cat|cd|complete|cp|curl|cut|df|docker|du|export|git|grep|head|kill|kubectl|ls|mkdir|mv|openssl|rm|sed|ss|sudo|tail|test"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    where: str  # document and line
    marker: str
    language: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    where: str
    line: str

    @property
    def words(self) -> list[str]:
        """The words of a command without environment variables and without the path of the virtual environment."""
        words = shlex.split(self.line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
            words = words[1:]
        return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start("code"))
            where = f"{document.relative_to(ROOT)}:{line}"
            yield Block(where=where, marker=found["marker"] or "", language=found["language"], code=found["code"])


def commands() -> Iterator[Command]:
    """The lines of all shell blocks, and the commands in the text."""
    for block in blocks():
        if block.language != "python":
            joined = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", block.code.replace("\\\n", " "), flags=re.DOTALL | re.MULTILINE)
            yield from (Command(where=block.where, line=line) for line in joined.splitlines() if line.strip(" ") and line[0] != "#")
    for document in DOCUMENTS:
        text = BLOCK.sub("", document.read_text(encoding="utf-8"))
        for found in re.finditer(
            r"`((?:\.venv/bin/)?python -m (?:jobs\.\w+|han)[^`]*|(?:\.venv/bin/)?han [a-z]+ [^`]*|make [a-z][^`]*)`", text
        ):
            line = " ".join(found[1].split())
            if "NAME" not in line and "…" not in line:
                yield Command(where=str(document.relative_to(ROOT)), line=line)


COMMANDS = list(commands())
BLOCKS = list(blocks())


def test_the_documents_have_commands() -> None:
    assert len(COMMANDS) >= 50
    assert {"README.md", "docs/tutorial.md", "docs/runbook.md"} <= {block.where.partition(":")[0] for block in BLOCKS}


def test_the_readme_is_under_200_lines_and_contributing_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_every_block_states_its_test_or_why_it_has_none(block: Block) -> None:
    named = RUN_BY.fullmatch(block.marker)
    assert named or NOT_RUN.fullmatch(block.marker), f"before the block stands {block.marker!r}"
    if named:
        assert (ROOT / named[1]).is_file()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.where} {command.line[:60]}")
def test_every_documented_command_exists_and_accepts_its_flags(command: Command) -> None:
    for words in _parts(command.words):
        _check(words)


def _parts(words: list[str]) -> Iterator[list[str]]:
    """The commands of a line. They are separated by | && ; and each may have another after --."""
    part: list[str] = []
    for word in [*words, ";"]:
        if word in ("|", "&&", "||", ";", "--", "&"):
            yield from [part] if part else []
            part = []
        else:
            part.append(word)


def _check(words: list[str]) -> None:
    name, arguments = words[0], words[1:]
    if name == "make":
        verbs = [word for word in arguments if not re.match(r"[A-Z]+=", word)]
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert [verb for verb in verbs if not re.search(rf"^{re.escape(verb)}:", makefile, flags=re.MULTILINE)] == []
    elif name == "han":
        assert arguments[0] in COMMANDS_OF_HAN or arguments[0].startswith("--")
        if arguments[0] in COMMANDS_OF_HAN:
            _check_module(f"jobs.{arguments[0]}", arguments[1:])
    elif name == "python" and arguments[:1] == ["-m"]:
        _check_module(arguments[1], arguments[2:])
    elif name == "python":
        assert arguments[:1] == ["-"]  # what it reads is a block of its own, or a here document
    elif name in ("ray", "serve"):
        _check_ray(name, arguments)
    else:
        assert SHELL.fullmatch(name), f"{name} is no command that a reader is known to have"


def _check_module(name: str, arguments: list[str]) -> None:
    if not name.startswith("jobs."):
        assert name in ("han", "ray.util.state", "pip") or importlib.util.find_spec(name) is not None
        return
    kind = reference.kind(importlib.import_module(name))
    arguments = [argument for argument in arguments if not argument.startswith(("2>", ">"))]
    if not arguments:  # named, not called
        return
    if "--help" in arguments:
        with pytest.raises(SystemExit):
            cli.parse(kind, arguments)
    else:
        assert isinstance(cli.parse(kind, arguments), kind)


def _check_ray(name: str, arguments: list[str]) -> None:
    """Check flags of `ray` and `serve` by their own parser, and of `serve run` also the service's options."""
    from ray.scripts.scripts import cli as ray_cli
    from ray.serve.scripts import cli as serve_cli

    from serve.options import Options

    command: Any = {"ray": ray_cli, "serve": serve_cli}[name]
    while hasattr(command, "commands"):
        assert arguments, f"{name} alone does nothing"
        assert arguments[0] in command.commands, f"{name} has no command {arguments[0]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = click.Context(command, ignore_unknown_options=False)
    _, left, _ = command.make_parser(context).parse_args(list(arguments))
    if (name, command.name) == ("serve", "run") and left[:1] == ["serve.app:build"]:
        Options.model_validate(dict(pair.split("=", 1) for pair in left[1:]))
