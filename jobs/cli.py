"""What every job does at its door: settings from the command line, absolute paths, Ray, one line for a mistake, exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, cast

import ray
import tyro
from ray.exceptions import RayError

from han.types import Mistake, TooManyBad

Config = TypeVar("Config")
Caused = TypeVar("Caused", bound=Exception)
EXIT_MISTAKE, EXIT_TOO_MANY_BAD, EXIT_INTERRUPTED, EXIT_IO = 2, 3, 4, 5
EXIT_CODES = {
    0: "done, or it was already and nothing was done",
    1: "a fault of this program: a traceback (what else it means to a job is in its description)",
    EXIT_MISTAKE: "a mistake in the input, the settings or the size of the cluster; one line says which",
    EXIT_TOO_MANY_BAD: "more bad records than --max-bad-ratio; nothing is published, everything is kept",
    EXIT_INTERRUPTED: "interrupted by SIGTERM, SIGINT or `ray job stop`; the same command goes on",
    EXIT_IO: "the disk or the network failed; one line with the path; mend that, and the same command goes on",
}
STYLE = (tyro.conf.FlagConversionOff,)  # --train.gpu True, not --train.gpu and --train.no-gpu

Verb = Annotated[  # a flag that stands for itself: --rollback, and not --rollback True
    bool,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="",
        instance_from_str=lambda given: given in ([], ["True"]),
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]


class _Interrupted(BaseException):
    """SIGTERM, as `ray job stop` and every scheduler send it."""


def run(kind: type[Config], job: Callable[[Config], None], *, defaults: Callable[[], Config | None] = lambda: None) -> None:
    """Parse the command line into `kind`, call the job. What a user can mend, here or in a worker, is one line and an exit code.

    defaults: of the flags that are not given, None for those of `kind`.
    """
    try:
        _on_sigterm()
        job(tyro.cli(kind, default=cast(Any, defaults()), config=STYLE))
    except (KeyboardInterrupt, _Interrupted):
        _leave("interrupted: the same command goes on where this one stopped", EXIT_INTERRUPTED)
    except TooManyBad as error:
        _leave(f"error: {error}", EXIT_TOO_MANY_BAD)
    except Exception as error:
        if mistake := _cause(error, Mistake):
            _leave(f"error: {mistake}", EXIT_MISTAKE)
        if (failed := _cause(error, OSError)) and failed.errno is not None:
            _leave(f"error: {failed}: mend that, and the same command goes on where this one stopped", EXIT_IO)
        raise


def _on_sigterm() -> None:
    def interrupt(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Interrupted

    signal.signal(signal.SIGTERM, interrupt)


def _leave(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def hidden(flag: str) -> str | None:
    """The value of a flag that no help shows; it is taken off the command line."""
    if flag not in sys.argv[:-1]:
        return None
    place = sys.argv.index(flag)
    value = sys.argv[place + 1]
    del sys.argv[place : place + 2]
    return value


def path(value: str, flag: str) -> str:
    """An absolute path, before Ray sees it; a URI stays as it is.

    A submitted job runs in a temporary folder, so there a relative path is a `Mistake`: it would be lost with the job.
    """
    if "://" in value or os.path.isabs(value):
        return value
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise Mistake(
            f"{flag} {value} is relative, and a submitted job's folder is temporary: "
            f"give the absolute path (in the shell you submit from: $PWD/{value}) or a URI such as s3://bucket/{value}"
        )
    return os.path.abspath(os.path.expanduser(value))


def local(value: str, flag: str) -> Path:
    """Like `path`, for what has to be a folder on storage that every node has mounted."""
    if "://" in value:
        raise Mistake(f"{flag} {value} is a URI: give a folder that every node has mounted")
    return Path(path(value, flag))


def connect(at_least: int = 1, *, workers_print: bool = True) -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start one here with `at_least` so many logical CPUs.

    workers_print: whether what workers print shows here.
    """
    quiet = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    quiet |= {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}  # trackers tell their servers, not their makers
    options: dict[str, Any] = {"log_to_driver": workers_print, "logging_level": "ERROR", "runtime_env": {"env_vars": quiet}}
    os.environ.update(quiet)
    # Not ray.init()'s own choice: it would join any Ray that another command happens to run on this machine, and die with it.
    if ray.is_initialized():
        pass
    elif os.environ.get("RAY_ADDRESS"):
        ray.init(**options)
    else:
        ray.init(address="local", num_cpus=max(at_least, num_cpus()), **options)
    _on_sigterm()  # Ray has put its own handler in its place
    there = ray.cluster_resources()
    print(f"Ray: {int(there.get('CPU', 0))} CPUs, {int(there.get('GPU', 0))} GPUs, {len(ray.nodes())} node(s)", flush=True)


def num_cpus() -> int:
    """Of this machine: where jobs run if they join no cluster."""
    return os.cpu_count() or 1


def duration(seconds: float) -> str:
    """As people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def show(title: str, settings: dict[str, Any]) -> None:
    """The resolved settings, one line each."""
    print(title)
    for name, value in _flat(settings):
        print(f"  {name:<32} {json.dumps(value) if not isinstance(value, str) else value}")
    sys.stdout.flush()


def progress() -> Callable[[str, int, int], None]:
    """A reporter of steps of work: one line that moves on a terminal, a line every few seconds in a log."""
    started: dict[str, float] = {}
    shown: dict[str, float] = {}
    live = sys.stdout.isatty()

    def report(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        first = started.setdefault(what, now)
        if done < total and now - shown.get(what, 0.0) < (0.2 if live else 2.0):
            return
        shown[what] = now
        left = f"  {(now - first) / done * (total - done):,.0f} s left" if 0 < done < total else ""
        took = f"  {now - first:,.1f} s" if done == total else ""
        print(f"{what}: {done:,}/{total:,}{left}{took}", end="\r" if live and done < total else "\n", flush=True)

    return report


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in settings.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _cause(error: BaseException | None, kind: type[Caused]) -> Caused | None:
    """An error of that kind inside one that Ray may have wrapped."""
    while error is not None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, kind):
            return cause
        if isinstance(error, kind) and not isinstance(error, RayError):
            return error
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None
