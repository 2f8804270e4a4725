"""Run every step of everyday use from a checkout, and print what each took: `make everyday`. Takes minutes; starts Ray."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq

from tests.everyday.steps import (
    COLUMNS,
    GERMAN,
    HAN,
    HELP,
    MAKE,
    MISTAKE_S,
    MISTAKES,
    PYTHON,
    ROOT,
    Result,
    Step,
    free_port,
    run,
    write_inputs,
    write_large,
)

NUM_LARGE = 25_000
IDLE_S = 30.0
IDLE_LINES = 5  # most lines of an idle service in that time
REDONE_SHARDS = 2  # most shards that a killed job scores again
DEADLINE_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[""], help="run only the steps whose name contains one of these")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of the longest time of a step, for a busy machine")
    arguments = parser.parse_args()
    failed = total = 0
    with tempfile.TemporaryDirectory(prefix="everyday-") as made:
        folder = Path(made)
        write_inputs(folder)
        for step, check in [*((step, None) for step in (*HELP, *MISTAKES, *WAYS)), *LONG]:
            if not any(part in step.name for part in arguments.only):
                continue
            result = run(step, folder, patience=arguments.patience) if check is None else _run(step, check, folder)
            total += 1
            failed += bool(result.problems)
            print(f"{'FAILED' if result.problems else 'ok    '} {result.took_s:6.1f} s  {step.role}: {step.name}", flush=True)
            for problem in result.problems:
                print(f"        {problem}")
            if result.problems:
                print("\n".join(f"        | {line}" for line in result.output.splitlines()[-30:]))
    print(f"{total - failed} of {total} steps are as they should be")
    sys.exit(failed > 0)


def _run(step: Step, check: Callable[[Path], str], folder: Path) -> Result:
    began, output, problems = time.monotonic(), "", ()
    try:
        output = check(folder)
    except Exception as error:  # the other steps still run
        problems = (f"{type(error).__name__}: {error}",)
    return Result(step=step, took_s=time.monotonic() - began, problems=problems, output=output)


def _stars_are_numbers(folder: Path, output: str) -> None:
    table = pq.read_table(folder / "scores")
    mean = table["stars"].to_numpy().mean()
    assert table.num_rows == 320, table.num_rows
    assert 1 < mean < 10, mean
    assert {"unfamiliar", "uncertain"} <= set(table.schema.names)


def _three_objects(folder: Path, output: str) -> None:
    objects = [json.loads(line) for line in output.splitlines()]
    assert [each["unfamiliar"] for each in objects] == [False, True, False], objects


def _has_page(name: str) -> Callable[[Path, str], None]:
    def check(folder: Path, output: str) -> None:
        page = (folder / name).read_text(encoding="utf-8")
        assert "<article" in page, f"{name} draws no review"
        assert page.count("<script") <= 1, f"{name} has another script than its own"

    return check


def _evaluated(folder: Path, output: str) -> None:
    _has_page("evaluation/evaluation.html")(folder, output)
    assert pq.read_table(folder / "evaluation" / "predictions.parquet").num_rows == 320


def _paste_next(folder: Path, output: str) -> None:
    """The command that is printed as the next one runs when it is pasted, once its <place> is filled in."""
    (command,) = re.findall(r"^next: (\S*han \S+ --model.*)$", output, re.MULTILINE)
    pasted = re.sub(r"--out \S+", "--help | head -1", command.replace("<labelled test reviews>", "small.parquet"))
    subprocess.run(["bash", "-c", pasted], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)


TINY = "--train.epochs 1 --model.word-hidden 8 --model.sentence-hidden 8"
RAY_LINES = (5, 45)
WAYS = (
    Step(
        role="analyst",
        name="predict one review",
        command=f"{HAN} predict 'I loved it. The cast is superb!'",
        lines=(5, 16),
        says=("positive",),
        not_says=("Do not trust",),
    ),
    Step(
        role="analyst",
        name="predict a text, a German text and a file as JSON",
        command=f"{HAN} predict 'A dull film.' {shlex.quote(GERMAN)} one.txt --json",
        lines=(3, 3),
        after=_three_objects,
    ),
    Step(role="analyst", name="predict from a pipe", command=f"cat one.txt | {HAN} predict -", lines=(5, 16), says=("superb",)),
    Step(role="analyst", name="predict emoji", command=f"{HAN} predict '😍😍😍'", lines=(5, 16), says=("Do not trust this answer",)),
    Step(
        role="analyst",
        name="Python in three lines",
        command=f"{PYTHON} -c \"import han; scorer = han.load('imdb'); print(scorer.score(['I loved it.'])[0].label)\"",
        says=("positive",),
    ),
    Step(
        role="analyst",
        name="explain the bundled reviews",
        command=f"{HAN} explain --input sample --out attention.html",
        lines=(2, 4),
        after=_has_page("attention.html"),
    ),
    Step(
        role="data engineer",
        name="score: estimate first",
        command=f"{HAN} score --input reviews.csv {COLUMNS} --out scores --dry-run",
        lines=(5, 16),
        says=("start-up takes", "nothing was written"),
        after=lambda folder, output: _assert(not (folder / "scores").exists(), "the dry run wrote scores"),
    ),
    Step(
        role="data engineer",
        name="score one CSV, with the average of its stars",
        command=f"{HAN} score --input reviews.csv {COLUMNS} --out scores",
        lines=RAY_LINES,
        says=("320 records in = 320 scored", "labelled records have the predicted label"),
        after=_stars_are_numbers,
    ),
    Step(
        role="data engineer",
        name="the same command again does nothing",
        command=f"{HAN} score --input reviews.csv {COLUMNS} --out scores",
        lines=(3, 16),
        says=("already complete",),
    ),
    Step(role="data engineer", name="verify the scores", command=f"{HAN} verify --out scores", lines=(8, 16), says=("OK: 320 records",)),
    Step(
        role="data engineer",
        name="score with other settings into the same folder",
        command=f"{HAN} score --input reviews.csv {COLUMNS} --out scores --attention none",
        code=2,
        lines=(1, 16),
        says=("settings.attention: words -> none",),
        seconds=MISTAKE_S,
    ),
    Step(
        role="data engineer",
        name="score TSV",
        command=f"{HAN} score --input reviews.tsv {COLUMNS} --out scores-tsv",
        lines=RAY_LINES,
        says=("320 records in = 320 scored",),
    ),
    Step(
        role="data engineer",
        name="score CSV with semicolons",
        command=f"{HAN} score --input semicolons.csv --columns.delimiter ';' {COLUMNS} --out scores-semicolons",
        lines=RAY_LINES,
        says=("320 records in = 320 scored",),
    ),
    Step(
        role="data engineer",
        name="a cluster that does not run",
        command=f"RAY_ADDRESS=127.0.0.1:1 {HAN} score --input sample --out nowhere",
        code=2,
        lines=(2, 8),
        says=("no Ray answers at RAY_ADDRESS",),
        seconds=60,
    ),
    Step(
        role="ML engineer",
        name="prepare",
        command=f"{HAN} prepare --input small.parquet --out data --vectors.source random --vectors.size 16",
        lines=RAY_LINES,
        says=("290 training and 30 development reviews", "next: "),
    ),
    Step(
        role="ML engineer",
        name="prepare with other settings into the same folder",
        command=f"{HAN} prepare --input small.parquet --out data --vectors.source random --vectors.size 32",
        code=2,
        lines=(1, 16),
        says=("config.vectors.size: 16 -> 32",),
        seconds=MISTAKE_S,
    ),
    Step(
        role="ML engineer",
        name="tune with other settings into the folder of a sweep",
        command=f"{HAN} tune --data data --out sweep --trials 2",
        code=2,
        lines=(1, 30),
        says=("holds a sweep with other settings",),
        seconds=MISTAKE_S,
    ),
    Step(
        role="ML engineer",
        name="train on few reviews",
        command=f"{HAN} train --data data --out run {TINY}",
        lines=RAY_LINES,
        says=("are few", "beat the majority class"),
        not_says=("best of 1 epochs",),
        after=_paste_next,
    ),
    Step(
        role="ML engineer",
        name="train the same again with another seed",
        command=f"{HAN} train --data data --out other {TINY} --train.seed 2",
        lines=RAY_LINES,
    ),
    Step(
        role="ML engineer",
        name="train into the folder of another run",
        command=f"{HAN} train --data data --out run {TINY} --train.seed 3",
        code=2,
        lines=(1, 1),
        says=("train.seed: 1 -> 3",),
        seconds=MISTAKE_S,
    ),
    Step(
        role="ML engineer",
        name="compare two runs",
        command=f"{HAN} compare run other --out compare.html",
        lines=(15, 60),
        says=("with curves",),
    ),
    Step(
        role="ML engineer",
        name="evaluate",
        command=f"{HAN} evaluate --model run --data reviews.csv {COLUMNS} --out evaluation",
        lines=(20, 90),
        says=("majority class", "evaluation.html"),
        after=_evaluated,
    ),
    Step(role="ML engineer", name="promote", command=f"{HAN} promote run --models models", lines=(2, 6), says=("development accuracy",)),
    Step(
        role="ML engineer",
        name="list the models",
        command=f"{HAN} models --models models",
        lines=(3, 5),
        says=("1 version in", "newest first", "best", "reviews.csv"),
    ),
    Step(role="ML engineer", name="go back too far", command=f"{HAN} promote --rollback --models models", code=2, lines=(1, 1)),
    Step(
        role="operator",
        name="doctor",
        command=f"{HAN} doctor --data data --train.num-workers 1",
        lines=(5, 40),
        says=("checks are green",),
    ),
    *(
        Step(
            role="operator",
            name=f"make {verb} without a cluster",
            command=f"RAY_API_SERVER_ADDRESS=http://127.0.0.1:1 {MAKE} {verb}",
            code=2,
            lines=(1, 2),
            says=("no cluster answers at http://127.0.0.1:1",),
        )
        for verb in ("status", "doctor", "logs ID=nope", "stop-job ID=nope", "submit JOB=train")
    ),
)


def _assert(holds: bool, message: str) -> None:
    assert holds, message


def _killed_in_the_middle(folder: Path) -> str:
    """One CSV of 25,000 reviews, killed by SIGKILL half-way: at most two shards are scored again, and all counts are equal."""
    write_large(folder, NUM_LARGE)
    command = f"exec {HAN} score --input large.csv {COLUMNS} --out large --attention none"
    first = _start(command, folder)
    began = time.monotonic()
    busy = reported = 0
    try:
        for line in _lines(first):
            done = re.match(r"scored ([\d,]+) of", line)
            if done:
                busy = max(busy, _num_busy_actors(first.pid))
            reported = int(done[1].replace(",", "")) if done else reported
            if reported >= NUM_LARGE // 2:
                break
            _assert(time.monotonic() - began < DEADLINE_S, "half of the reviews were not scored in time")
    finally:
        _kill_group(first)
    done_again = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        stdin=subprocess.DEVNULL,
    )
    output = done_again.stdout + done_again.stderr
    _assert(done_again.returncode == 0, f"exit code {done_again.returncode}: {output[-2_000:]}")
    table = pq.read_table(folder / "large" / "scores", columns=["id"])
    _assert(table.num_rows == len(set(table["id"].to_pylist())) == NUM_LARGE, f"{table.num_rows} rows")
    (kept,) = re.findall(r"resumed: ([\d,]+) of", output)
    manifest = json.loads((folder / "large" / "_manifest.json").read_text())
    largest = max(part["rows_in"] for part in manifest["parts"])
    again = reported - int(kept.replace(",", ""))
    print(
        f"        killed after {reported:,} of {NUM_LARGE:,}, kept {kept}; {len(manifest['parts'])} shards of at most {largest:,} reviews"
    )
    print(f"        {busy} scoring processes were busy at once")
    _assert(again <= REDONE_SHARDS * largest, f"{again} reviews were scored again, more than {REDONE_SHARDS} shards")
    _assert(busy >= min(2, os.cpu_count() or 1), f"only {busy} scoring processes were busy")
    return output


def _idle_service(folder: Path) -> str:
    """The service prints its address, at most 5 lines while idle, and one line of JSON for a request. Its port is then taken."""
    port = free_port()
    service = _start(f"exec {HAN} serve --port {port}", folder)
    log = folder / f"{service.pid}.log"
    try:
        _until(lambda: _answers(f"http://127.0.0.1:{port}/readyz"), "the service did not start")
        before = log.read_text().splitlines()
        _assert(any(str(port) in line for line in before), "the address is not printed")
        time.sleep(IDLE_S)
        idle = log.read_text().splitlines()[len(before) :]
        _assert(len(idle) <= IDLE_LINES, f"{len(idle)} lines in {IDLE_S:.0f} idle seconds: {idle[:3]}")
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/score", json={"inputs": GERMAN, "attention": "none"}, timeout=60)
        (score,) = answer.json()["results"]
        _assert(score["unfamiliar"] is True, f"the flag of a German review: {score}")
        _until(lambda: len(log.read_text().splitlines()) > len(before) + len(idle), "the request has no line in the log")
        taken = run(
            Step(role="operator", name="a taken port", command=f"{HAN} serve --port {port}", code=2, lines=(1, 6), says=("cannot listen",)),
            folder,
        )
        _assert(not taken.problems, f"a taken port: {taken.problems}")
        return log.read_text()
    finally:
        _stop(service)


def _beside_another_ray(folder: Path) -> str:
    """A healthy training beside another Ray prints no line of Ray."""
    code = (
        "import ray, sys; ray.init(address='local', num_cpus=1, logging_level='ERROR', log_to_driver=False); "
        "print('up', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        _assert(other.stdout is not None and other.stdout.readline() == "up\n", "the other Ray did not start")
        training = Step(
            role="ML engineer",
            name="train beside another Ray",
            command=f"{HAN} train --data data --out beside {TINY}",
            lines=(5, 20),
            not_says=("Found multiple active Ray instances", "PlacementGroupCleaner"),
        )
        result = run(training, folder)
        _assert(not result.problems, f"{result.problems}: {result.output}")
        return result.output
    finally:
        other.communicate("", timeout=60)


def _interrupted(folder: Path) -> str:
    """SIGTERM ends a job with one line and exit code 4."""
    job = _start(f"exec {HAN} score --input sample --num-actors 1 --out interrupted", folder)
    log = folder / f"{job.pid}.log"
    try:
        _until(lambda: "starting Ray" in log.read_text(), "the job did not start")
        job.send_signal(signal.SIGTERM)
        code = job.wait(60)
    finally:
        _stop(job)
    _assert(code == 4, f"exit code {code}")
    _assert("Traceback" not in log.read_text(), "a traceback")
    return log.read_text()


def _step(role: str, name: str) -> Step:
    return Step(role=role, name=name, command="")


LONG: tuple[tuple[Step, Callable[[Path], str]], ...] = (
    (_step("data engineer", "a job that is stopped by SIGTERM"), _interrupted),
    (_step("ML engineer", "train beside another Ray"), _beside_another_ray),
    (_step("application developer", "an idle service, a German review, a taken port"), _idle_service),
    (_step("data engineer", "one CSV of 25,000 reviews, killed half-way"), _killed_in_the_middle),
)


def _environment() -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def _start(command: str, folder: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own. Its output is in the file <pid>.log of the folder."""
    unnamed = folder / "started.log"
    with unnamed.open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    unnamed.rename(folder / f"{process.pid}.log")
    return process


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The lines of a started process, as they appear, until it ends."""
    log = Path(f"/proc/{process.pid}/cwd").resolve() / f"{process.pid}.log"
    seen = 0
    while True:
        is_over = process.poll() is not None
        lines = log.read_text().splitlines()
        yield from lines[seen:]
        seen = len(lines)
        if is_over:
            raise AssertionError(f"the job ended with exit code {process.returncode}: {lines[-5:]}")
        time.sleep(0.05)
        yield ""


def _num_busy_actors(driver: int) -> int:
    """Processes below the driver that score and run now: Ray's actors, or processes that the driver has forked."""
    busy = 0
    for child in psutil.Process(driver).children(recursive=True):
        try:
            forked = child.ppid() == driver and child.cmdline() == psutil.Process(driver).cmdline()
            if forked or "_Worker" in " ".join(child.cmdline()) or "MapWorker" in child.name():
                busy += child.cpu_times().user > 1.0
        except psutil.Error:
            continue
    return busy


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver. Its Ray ends by itself, because its driver is gone; what does not end is killed."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=30)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        _kill_group(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _until(happened: Callable[[], bool], message: str, deadline_s: float = 180.0) -> None:
    end = time.monotonic() + deadline_s
    while not happened():
        _assert(time.monotonic() < end, message)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
