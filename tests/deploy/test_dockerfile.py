"""The image has an exact base tag, does not run as root, compiles nothing, and copies only files that reach the build."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8")
COMPILERS = re.compile(r"\b(gcc|g\+\+|build-essential|clang|apt-get|apk|cargo)\b")


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    base: str
    lines: list[tuple[str, str]]  # instruction and the rest


def stages(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first FROM, and the stages."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    arguments: dict[str, str] = {}
    parsed: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            parsed.append(Stage(name, base, []))
        elif not parsed:
            assert instruction == "ARG", line
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            parsed[-1].lines.append((instruction, rest))
    return arguments, parsed


def faults(text: str, ignored: str = IGNORED) -> list[str]:
    """The faults of a Dockerfile, one line each."""
    arguments, parsed = stages(text)
    named = {stage.name: stage for stage in parsed}
    wrong = [f"no target {target}" for target in ("cpu", "gpu") if target not in named]
    for stage in parsed:
        base = re.sub(r"\$\{(\w+)\}", lambda name: arguments.get(name[1], ""), stage.base)
        if stage.base not in named and not re.fullmatch(r"[\w./-]+(:\d+\.\d+\.\d+[\w.-]*|@sha256:[0-9a-f]{64})", base):
            wrong.append(f"{stage.name}: the base {base or stage.base} is not an exact tag")
        for instruction, rest in stage.lines:
            if instruction == "COPY" and "--from=" not in rest:
                *sources, _ = rest.split()
                wrong += [f"{source} does not exist" for source in sources if not (ROOT / source).exists()]
                wrong += [f"{source} does not reach the build" for source in sources if not _reaches(source, ignored)]
            if instruction == "COPY" and (origin := re.search(r"--from=(\S+)", rest)) and origin[1] not in named:
                wrong.append(f"no stage {origin[1]}")
            if instruction == "RUN" and "pip install" in rest and not re.search(r"--constraint constraints\.txt|\^torch==", rest):
                wrong.append(f"not from constraints.txt: {rest}")
            if instruction == "RUN" and COMPILERS.search(rest):
                wrong.append(f"more than Python: {rest}")
            if instruction == "ADD":
                wrong.append(f"ADD may download and unpack: {rest}")
    for target in ("cpu", "gpu"):
        user = _user(target, named)
        if user is None or user.split(":")[0] in ("root", "0"):
            wrong.append(f"{target} runs as root")
    if "PIP_ONLY_BINARY=:all:" not in text:
        wrong.append("pip may compile")
    return wrong


def _user(target: str, named: dict[str, Stage]) -> str | None:
    stage = named.get(target)
    while stage:
        users = [rest for instruction, rest in stage.lines if instruction == "USER"]
        if users:
            return users[-1]
        stage = named.get(stage.base)
    return None


def _reaches(source: str, ignored: str) -> bool:
    """Whether .dockerignore includes a file. The last matching pattern decides."""
    included = True
    for pattern in (line for line in ignored.splitlines() if line and not line.startswith("#")):
        if fnmatch.fnmatch(source, pattern.removeprefix("!")):
            included = pattern.startswith("!")
    return included


def test_the_image_has_no_faults() -> None:
    assert faults(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("USER 1000:1000\n", "", "cpu runs as root"),
        ("USER 1000:1000", "USER root", "gpu runs as root"),
        ("ARG BASE=python:3.11.14-slim-bookworm", "ARG BASE=python:latest", "is not an exact tag"),
        ("ARG BASE=python:3.11.14-slim-bookworm", "ARG BASE=python", "is not an exact tag"),
        ("ARG BASE=python:3.11.14-slim-bookworm", "ARG BASE=python:3-slim", "is not an exact tag"),
        ("COPY serve serve", "COPY server server", "server does not exist"),
        ("COPY serve serve", "COPY tests tests", "tests does not reach the build"),
        ("COPY --from=cpu-builder", "COPY --from=builders", "no stage builders"),
        (" --constraint constraints.txt", "", "not from constraints.txt"),
        ("RUN groupadd", "RUN apt-get install gcc && groupadd", "more than Python"),
        ("FROM runtime AS gpu", "FROM runtime AS cuda", "no target gpu"),
        (" PIP_ONLY_BINARY=:all:", "", "pip may compile"),
        ("COPY constraints.txt ./", "ADD constraints.txt ./", "ADD may download"),
    ],
)
def test_each_fault_of_a_dockerfile_is_detected(old: str, new: str, message: str) -> None:
    assert old in DOCKERFILE
    reported = faults(DOCKERFILE.replace(old, new))
    assert [fault for fault in reported if message in fault] != [], reported


def test_every_package_reaches_the_build() -> None:
    copied = {rest.split()[0] for stage in stages(DOCKERFILE)[1] for instruction, rest in stage.lines if instruction == "COPY"}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.search(r"^include = \[(.*)\]$", project, flags=re.MULTILINE)
    assert packages
    assert set(re.findall(r'"(\w+)\*"', packages[1])) == {"han", "jobs", "serve"} <= copied


def test_the_image_has_a_tested_python_version() -> None:
    version = re.search(r"^ARG BASE=python:(\d+\.\d+)\.", DOCKERFILE, flags=re.MULTILINE)
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert version
    assert f"on Python {version[1]}" in constraints
    assert re.search(r"^torch==", constraints, flags=re.MULTILINE)  # the line that the build greps for
