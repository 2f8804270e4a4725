"""The ways of five kinds of user from a checkout, step by step, each with mistakes that people make. Uses the bundled reviews only."""

from __future__ import annotations

import csv
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from han.data.samples import REVIEWS

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
HAN = shlex.quote(str(Path(PYTHON).with_name("han")))
MAKE = f"make -s -C {shlex.quote(str(ROOT))} READY= BIN={shlex.quote(str(Path(PYTHON).parent))} RUN={shlex.quote(PYTHON)}"
GERMAN = "Der Film war leider sehr langweilig. Die Handlung ist vorhersehbar, und die Schauspieler haben mir nicht gefallen."
MISTAKE_S = 2.0  # a wrong flag or path is answered within so many seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A shell command in the folder of `write_inputs`, and what it must print."""

    role: str
    name: str
    command: str
    code: int = 0
    lines: tuple[int, int] = (1, 1)  # fewest and most lines of stdout and stderr together
    says: tuple[str, ...] = ()  # texts in the output
    not_says: tuple[str, ...] = ()
    after: Callable[[Path, str], object] = lambda folder, output: None  # raises AssertionError; gets the folder and the output
    seconds: float | None = None  # longest time


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    step: Step
    took_s: float
    problems: tuple[str, ...]
    output: str


def run(step: Step, folder: Path, *, patience: float = 1.0) -> Result:
    """Run the step. patience: factor of the longest time, for a busy machine."""
    environment = {**_environment(), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    began = time.monotonic()
    command = ["bash", "-c", step.command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    took_s = time.monotonic() - began
    output = done.stdout + done.stderr
    problems = []
    if done.returncode != step.code:
        problems.append(f"exit code {done.returncode}, not {step.code}")
    num_lines = len(output.splitlines())
    if not step.lines[0] <= num_lines <= step.lines[1]:
        problems.append(f"{num_lines} lines, not {step.lines[0]} to {step.lines[1]}")
    if "Traceback" in output:
        problems.append("a traceback")
    problems += [f"does not say {text!r}" for text in step.says if text not in output]
    problems += [f"says {text!r}" for text in step.not_says if text in output]
    if step.seconds is not None and took_s > step.seconds * patience:
        problems.append(f"{took_s:.1f} s, more than {step.seconds * patience:.1f} s")
    try:
        step.after(folder, output)
    except (AssertionError, OSError, KeyError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    return Result(step=step, took_s=took_s, problems=tuple(problems), output=output)


def mistake(role: str, name: str, command: str, *says: str, lines: tuple[int, int] = (1, 1), code: int = 2) -> Step:
    """A wrong step: one line, exit code 2, within `MISTAKE_S`. The title and the settings may stand above the line."""
    return Step(role=role, name=name, command=command, code=code, lines=lines, says=says, seconds=MISTAKE_S)


def write_inputs(folder: Path) -> None:
    """reviews.csv, reviews.tsv, semicolons.csv, small.parquet, one.txt, and things that are not what a job expects, or are another's."""
    reviews = [json.loads(line) for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
    for name, delimiter in (("reviews.csv", ","), ("reviews.tsv", "\t"), ("semicolons.csv", ";")):
        _write_csv(folder / name, [[row["review_id"], row["text"], row["label"], row["rating"]] for row in reviews], delimiter)
    pq.write_table(pa.Table.from_pylist(reviews), folder / "small.parquet")
    (folder / "one.txt").write_text("I loved it. The cast is superb!", encoding="utf-8")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").touch()
    (folder / "page.html").write_text("<p>my page</p>")
    (folder / "empty").mkdir()
    (folder / "sweep").mkdir()
    (folder / "sweep" / "sweep.json").write_text(json.dumps({"sweep": {"trials": 1}}))


def write_large(folder: Path, num_reviews: int) -> None:
    """large.csv: long reviews, each of ten bundled ones, with the label and rating of the first."""
    reviews = [json.loads(line) for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
    texts = [" ".join(reviews[(first + more) % len(reviews)]["text"] for more in range(10)) for first in range(len(reviews))]
    rows = (
        [f"r{row}", texts[row % len(reviews)], *(reviews[row % len(reviews)][name] for name in ("label", "rating"))]
        for row in range(num_reviews)
    )
    _write_csv(folder / "large.csv", rows, ",")


def _write_csv(path: Path, rows: object, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "body", "label", "stars"])
        writer.writerows(rows)  # type: ignore[arg-type]


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "COLUMNS")}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


COLUMNS = "--columns.text body --columns.review-id id --columns.rating stars"
FEW = (1, 14)  # the title, the settings that were given, and the error

MISTAKES: Sequence[Step] = (
    mistake("everybody", "a command with a typo", f"{HAN} scroe", "Did you mean score?"),
    mistake("everybody", "a flag that does not exist", f"{HAN} score --input sample --out x --bogus 1", lines=(3, 30)),
    mistake("everybody", "a number that is none", f"{HAN} score --input sample --out x --limit many", lines=(3, 30)),
    mistake("everybody", "a required flag left out", f"{HAN} score --input sample", "--out", lines=(3, 30)),
    mistake("data engineer", "score: no such input", f"{HAN} score --input nope.csv --out x", "nope.csv is missing", lines=FEW),
    mistake("data engineer", "score: no such text column", f"{HAN} score --input reviews.csv --out x", "it has id, body", lines=FEW),
    mistake(
        "data engineer",
        "score: no such id column",
        f"{HAN} score --input reviews.csv --columns.text body --columns.review-id nope --out x",
        "nope",
        lines=FEW,
    ),
    mistake(
        "data engineer",
        "score: no such rating column",
        f"{HAN} score --input reviews.csv --columns.text body --columns.rating nope --out x",
        "nope",
        lines=FEW,
    ),
    mistake(
        "data engineer",
        "score: no such label column",
        f"{HAN} score --input reviews.csv --columns.text body --columns.label nope --out x",
        "nope",
        lines=FEW,
    ),
    mistake("data engineer", "score: no such model", f"{HAN} score --input sample --model nope --out x", "no model at", lines=FEW),
    mistake("data engineer", "score: a folder of other things", f"{HAN} score --input sample --out thesis", "something else", lines=FEW),
    mistake(
        "data engineer",
        "score: a delimiter of two characters",
        f"{HAN} score --input reviews.csv --columns.delimiter ab --out x",
        lines=(1, 30),
    ),
    mistake("data engineer", "verify: no such folder", f"{HAN} verify --out nope", "is no folder"),
    mistake("ML engineer", "prepare: no such input", f"{HAN} prepare --input nope --out x", "nope is missing", lines=FEW),
    mistake("ML engineer", "prepare: a folder of other things", f"{HAN} prepare --input sample --out thesis", "something else", lines=FEW),
    mistake(
        "ML engineer",
        "prepare: no such label column",
        f"{HAN} prepare --input small.parquet --columns.label nope --out x",
        "nope",
        lines=FEW,
    ),
    mistake("ML engineer", "prepare: no such list of ids", f"{HAN} prepare --input sample --dev-ids nope --out x", "--dev-ids", lines=FEW),
    mistake("ML engineer", "train: not an encoded folder", f"{HAN} train --data empty --out x", "not an encoded folder", lines=FEW),
    mistake(
        "ML engineer", "tune: not an encoded folder", f"{HAN} tune --data empty --out x --trials 2", "not an encoded folder", lines=FEW
    ),
    mistake("ML engineer", "tune: no number of trials", f"{HAN} tune --data empty --out x", "--trials", lines=(3, 30)),
    mistake("ML engineer", "evaluate: no such data", f"{HAN} evaluate --data nope --out x", "nope is missing", lines=FEW),
    mistake("ML engineer", "evaluate: a folder of other things", f"{HAN} evaluate --data sample --out thesis", "something else", lines=FEW),
    mistake(
        "ML engineer",
        "evaluate: no such label column",
        f"{HAN} evaluate --data small.parquet --columns.label nope --out x",
        "nope",
        lines=FEW,
    ),
    mistake("ML engineer", "compare: one run", f"{HAN} compare empty", "holds no run"),
    mistake("ML engineer", "compare: a page in no folder", f"{HAN} compare empty thesis --out no/where.html", "there is no folder"),
    mistake("ML engineer", "trim: not an encoded folder", f"{HAN} trim --model imdb --data empty --out x", "not an encoded folder"),
    mistake("ML engineer", "promote: no such run", f"{HAN} promote nope", "no model at"),
    mistake("ML engineer", "promote: nothing to promote", f"{HAN} promote", "give one of"),
    mistake("ML engineer", "models: no such folder", f"{HAN} models --models nope", "there is no folder"),
    mistake("analyst", "explain: no such input", f"{HAN} explain --input nope --out x.html", "nope is missing"),
    mistake(
        "analyst", "explain: a page of somebody else", f"{HAN} explain --input sample --out page.html", "is not a page of this program"
    ),
    mistake("analyst", "predict: no such model", f"{HAN} predict --model nope hello", "no model at"),
    mistake("application developer", "serve: no such model", f"{HAN} serve --model nope", "no model at"),
    mistake("application developer", "serve: no such file of keys", f"{HAN} serve --api-keys-file nope", "--api-keys-file"),
    mistake("operator", "doctor: no such data", f"{HAN} doctor --data nope", "nope is missing"),
    mistake("operator", "demo: no such model", f"{HAN} demo --model nope", "no model at"),
    mistake("operator", "fetch: no such thing", f"{HAN} fetch nope", lines=(3, 30)),
    mistake("operator", "make logs without ID", f"{MAKE} logs", "needs ID", lines=(1, 2)),
    mistake("operator", "make submit without JOB", f"{MAKE} submit", "needs JOB", lines=(1, 2)),
    mistake("operator", "make train without DATA", f"{MAKE} train", "needs DATA", lines=(1, 2)),
)

HELP: Sequence[Step] = (
    Step(role="everybody", name="han --help", command=f"{HAN} --help", lines=(15, 40), says=("predict", "models", "score")),
    Step(role="everybody", name="han --help | head", command=f"set -o pipefail; {HAN} --help | head -2 || test $? = 141", lines=(2, 2)),
    Step(role="everybody", name="score --help | head", command=f"{HAN} score --help | head -3", lines=(3, 3)),
    Step(role="everybody", name="han --version", command=f"{HAN} --version", says=("han ",)),
)
