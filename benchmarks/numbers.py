"""Render docs/numbers.md from docs/numbers/*.json: `make numbers`. `record` writes one figure with this commit and this machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import tyro

FOLDER = Path(__file__).parents[1] / "docs" / "numbers"
HEAD = """# Numbers

Every figure that this project claims has a file in [docs/numbers](numbers); `make numbers` renders this page. Figures of the development
split were used for choices, figures of the test split only for reports. Missed aims are noted beside the figure.

| figure | value | command | commit | measured |
|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One published figure."""

    name: str
    """name of the file, which also orders the table"""
    what: str
    """what was measured, and on which data"""
    value: str
    """the figure with its unit"""
    command: str
    """the command that prints the figure"""
    note: str = ""
    """missed aims, or how to read the figure"""
    commit: str = ""
    """the last commit that changed the measured code; empty for the current commit"""


def render(folder: Path = FOLDER) -> str:
    """The page with all figures of a folder."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        number = json.loads(path.read_text(encoding="utf-8"))
        what = number["what"] + (f" ({number['note']})" if number["note"] else "")
        measured = f"{number['machine']}, {number['date']}"
        rows.append(f"| {what} | **{number['value']}** | `{number['command']}` | {number['commit']} | {measured} |\n")
    return HEAD + "".join(rows)


def record(number: Number) -> None:
    """Write one figure with the machine and the date."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    machine = f"{os.cpu_count()} cores, {_processor()}, no GPU"
    facts = asdict(number) | {"commit": number.commit or head.stdout.strip(), "machine": machine, "date": date.today().isoformat()}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{number.name}.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _processor() -> str:
    """AMD EPYC, or x86_64 where the system does not tell."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        record(tyro.cli(Number))
    (FOLDER.parent / "numbers.md").write_text(render(), encoding="utf-8")
