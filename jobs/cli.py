"""What all commands share: settings from flags and TOML, absolute paths, Ray, one line for a user error, exit codes."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar, cast, get_type_hints

import tyro

import han
from han.cluster.start_hook import LARGE_REPLIES
from han.config import SETTINGS_FILE, ColumnsConfig, as_json, without_removed, without_settings
from han.types import TooManyBad, UserError
from jobs import flags

Config = TypeVar("Config")
Caused = TypeVar("Caused", bound=BaseException)
Defaults: TypeAlias = Callable[[Sequence[str], dict[str, Any]], Any]
EXIT_USER_ERROR, EXIT_TOO_MANY_BAD, EXIT_INTERRUPTED, EXIT_IO, EXIT_RAY = 2, 3, 4, 5, 6
EXIT_CLOSED_PIPE = 141  # what a shell reports for a process that SIGPIPE ended
EXIT_CODES = {
    0: "done, or already complete",
    1: "a bug of this program, with a traceback (some jobs give it another meaning in their description)",
    EXIT_USER_ERROR: "user error in the input or the settings, or the cluster is too small; one line says what to change",
    EXIT_TOO_MANY_BAD: "more bad records than --max-bad-ratio; nothing is published, all work is kept",
    EXIT_INTERRUPTED: "interrupted by SIGTERM, SIGINT or `ray job stop`; run the same command to resume",
    EXIT_IO: "disk or network failure; one line names the path; fix it and run the same command to resume",
    EXIT_RAY: "Ray stopped working, or a worker ran out of memory; run the same command to resume",
}
STYLE = (tyro.conf.ConsolidateSubcommandArgs,)
# (TrainController pid=1) [2026-01-31 12:00:00,000 E 1 2] core_worker.cc:2465: ...
_LINE_OF_RAY = re.compile(
    rb"(?:\x1b\[\d+m)?(?:\([^)]*\)(?:\x1b\[\d+m)?\s*)?\[\d{4}-\d\d-\d\d [\d:,]+ [IWE] \d+ \d+\] (?:\(\w+\) )?\w+\.cc:\d+: "
)
_INTERRUPTED = "interrupted; run the same command to resume"
_NO_RAY = "no Ray answers at RAY_ADDRESS {}: start one or unset RAY_ADDRESS"
_RAY_ANSWERS_S = 5.0  # a cluster that has just been started may need a moment
_RAY_FAILED = "Ray stopped working ({kind}): run the same command to resume"
_OUT_OF_MEMORY = (
    "a worker ran out of memory: use fewer workers (--num-actors, --train.num-workers) or smaller batches, then run the command to resume"
)

invoked_as: tuple[str, str] | None = None  # set by the command `han`: its path as typed (empty after `python -m jobs`), and the subcommand
_shown: int | None = None  # the file descriptor of stderr, while `_hide_lines_of_ray` reads what is written to it
verbose = False  # --verbose: show the lines of Ray and of libraries


class _Interrupted(BaseException):
    """SIGTERM, which `ray job stop` and schedulers send."""


def run(
    kind: type[Config],
    job: Callable[[Config], None],
    *,
    defaults: Defaults = lambda arguments, values: None,
    examples: Sequence[str] = (),
) -> None:
    """Parse the command line into `kind` and call the job. A user error, here or in a worker, becomes one line and an exit code.

    defaults: makes the values of settings that neither a flag nor the settings file gives, from the arguments and the values of that
    file; None means those of `kind`. examples: arguments, printed at the end of the help.
    """
    try:
        _handle_sigterm()
        job(parse(kind, sys.argv[1:], defaults=defaults, examples=examples))
        sys.stdout.flush()
    except (KeyboardInterrupt, _Interrupted):
        _exit(_INTERRUPTED, EXIT_INTERRUPTED)
    except BrokenPipeError:
        _leave_closed_pipe()
    except SystemExit as leaving:
        if leaving.code == signal.SIGTERM:  # while Ray starts, its own handler is installed
            _exit(_INTERRUPTED, EXIT_INTERRUPTED)
        raise
    except TooManyBad as error:
        _exit(f"error: {error}", EXIT_TOO_MANY_BAD)
    except Exception as error:
        _explain(error)
        raise


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Without garbage collection, which finds nothing and costs time while modules and a model are loaded."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is loaded stays: later collections need not look at it
        gc.enable()


def parse(
    kind: type[Config],
    arguments: Sequence[str],
    *,
    defaults: Defaults = lambda arguments, values: None,
    examples: Sequence[str] = (),
) -> Config:
    """The settings of the arguments, else of the file of --config, else of `defaults` (see `run`).

    A flag of a boolean stands alone (`--dry-run`) or before a value (`--dry-run True`).
    """
    global verbose
    arguments = list(arguments)
    if "--version" in arguments:
        print(f"han {han.__version__}")
        sys.exit(0)
    if "--verbose" in arguments:
        arguments.remove("--verbose")
        verbose = True
    file = _take(arguments, "--config")
    values = _read_settings(file) if file is not None else {}
    default = defaults(arguments, values)
    if file is not None:
        default = _from_values(kind, values, where=file, base=default)
    plain = flags.plain_booleans(arguments, kind)
    try:
        settings: Config = tyro.cli(
            kind, prog=_program_name(), args=plain, default=cast(Any, default), config=STYLE, registry=flags.rules()
        )
        return settings
    except SystemExit as leaving:
        if leaving.code == 0 and {"-h", "--help"} & set(arguments):
            print("every command also takes:\n  --config FILE.toml  read settings from a file; flags override it")
            print("  --verbose           show the log lines of Ray and of libraries\n  --version")
            for number, example in enumerate(examples):
                print(f"{'' if number else chr(10) + 'examples:' + chr(10)}  {command()} {example}")
        raise


def _program_name() -> str:
    """`han score`, or `python -m jobs.score`."""
    return f"han {invoked_as[1]}" if invoked_as else command()


def command(job: str | None = None) -> str:
    """How a command is called here, so that what is printed can be pasted: `han score`, `.venv/bin/python -m jobs.score`.

    job: another command than the one that runs.
    """
    if invoked_as and not invoked_as[0]:
        return f"{shlex.quote(next(iter(sys.orig_argv), 'python'))} -m jobs {job or invoked_as[1]}"
    if invoked_as:
        path, own = invoked_as
        name = Path(path).name if shutil.which(Path(path).name) == path else path
        return shlex.join([name, job or own])
    interpreter = next(iter(sys.orig_argv), "python")
    return f"{shlex.quote(interpreter)} -m jobs.{job or Path(sys.argv[0]).stem}"


def columns_flags(columns: ColumnsConfig) -> str:
    """The flags that name these columns, with a leading space; nothing where all have their default names."""
    flags = []
    for field in dataclasses.fields(columns):
        value = getattr(columns, field.name)
        if value != field.default:
            values = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
            flags += [f"--columns.{field.name.replace('_', '-')}", *values]
    return f" {shlex.join(flags)}" if flags else ""


def unused(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist. Suggested commands of two runs never use one folder."""
    candidates = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in range(1, 1_000))
    return next((candidate for candidate in candidates if not candidate.exists()), path)


def path(value: str, flag: str) -> str:
    """An absolute path, before Ray sees it; a URI stays as it is.

    A relative path of a submitted job is a `UserError`: the job runs in a temporary folder, and its output would be lost.
    """
    if "://" in value or os.path.isabs(value):
        return value
    if not value:
        raise UserError(f"{flag} is empty: give a path")
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise UserError(
            f"{flag} {value} is relative, and a submitted job's folder is temporary: "
            f"give the absolute path (in the shell you submit from: $PWD/{value}) or a URI such as s3://bucket/{value}"
        )
    return os.path.abspath(os.path.expanduser(value))


def local(value: str, flag: str) -> Path:
    """Like `path`, for a folder on storage that every node has mounted."""
    if "://" in value:
        raise UserError(f"{flag} {value} is a URI: give a folder that every node has mounted")
    return Path(path(value, flag))


def model(value: str) -> str:
    """`imdb`, or the absolute path of a model. A path that holds no model is a `UserError`, before torch is loaded."""
    from han.model import artifact

    named = value if value == "imdb" else path(value, "--model")
    if "://" not in named:
        artifact.find(named)
    return named


def encoded(value: str, flag: str = "--data") -> Path:
    """The absolute path of an encoded folder; any other folder is a `UserError`."""
    folder = local(value, flag)
    if not (folder / "encoding.json").is_file():
        raise UserError(f"{folder} is not an encoded folder: it has no encoding.json. Make one with {command('prepare')}")
    return folder


def check_out(out: str | Path, *names: str) -> None:
    """`UserError` if the folder of --out has files but none of `names`, which the job writes first, or if it cannot be written."""
    folder = Path(out)
    if "://" in str(out):
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: give a folder")
    existing = sorted(without_settings(each.name for each in folder.iterdir())) if folder.is_dir() else []
    if existing and not any(name.startswith(names) for name in existing):
        raise UserError(f"--out {folder} holds something else ({existing[0]}): give a new folder")
    parent = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out {folder} cannot be made: {parent} is not a folder that this user can write to")


def connect(at_least: int = 1, *, workers_print: bool = True) -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start Ray here with at least `at_least` logical CPUs.

    workers_print: whether lines that workers print are shown here.
    """
    where = os.environ.get("RAY_ADDRESS")
    print("starting Ray" if not where else f"joining Ray at {where}", flush=True)
    quiet = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    quiet |= {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
    os.environ.update(quiet)
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if not verbose:
        os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")  # (RayTrainWorker pid=...) before each line of a training
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning about GPUs that are not used
    for name, value in LARGE_REPLIES.items():
        os.environ.setdefault(name, value)
    import ray

    environment = {"env_vars": quiet, "worker_process_setup_hook": _name_own_ray()}
    options: dict[str, Any] = {"log_to_driver": workers_print, "logging_level": "ERROR", "runtime_env": environment}
    if not ray.is_initialized():
        if not verbose:
            _hide_lines_of_ray()
        try:
            # Not ray.init()'s own choice: it would join any Ray that runs on this machine, and die with it.
            if where:
                _check_answers(where)
                ray.init(**options)
            else:
                ray.init(address="local", num_cpus=max(at_least, num_cpus()), **options)
        except Exception as error:  # Ray raises a bare Exception if a node does not start in time
            if _cause(error, UserError):
                raise
            reason = " ".join(str(error).split())[:200]
            todo = _NO_RAY.format(where) if where else "Ray did not start: try again"
            _exit(f"error: {todo} ({reason})", EXIT_USER_ERROR if where else EXIT_RAY)
        if "ray://" not in (where or ""):
            from han.cluster import alive

            alive.watch(_leave_dead_ray)
    _handle_sigterm()  # Ray has installed its own handler
    resources = ray.cluster_resources()
    print(f"Ray: {int(resources.get('CPU', 0))} CPUs, {int(resources.get('GPU', 0))} GPUs, {plural(len(ray.nodes()), 'node')}", flush=True)


def _check_answers(address: str) -> None:
    """A `UserError` if nothing listens at HOST:PORT for `_RAY_ANSWERS_S`. ray.init() itself would try for ten minutes."""
    from ray.util import get_node_ip_address

    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():  # auto, local, ray://HOST:PORT: ray.init() checks them at once
        return
    host = host.strip("[]")
    hosts = [host, get_node_ip_address()] if host in ("localhost", "127.0.0.1") else [host]  # ray.init() reads the one as the other
    reason, deadline = "", time.monotonic() + _RAY_ANSWERS_S
    while not reason or time.monotonic() < deadline:
        for each in hosts:
            try:
                socket.create_connection((each, int(port)), timeout=_RAY_ANSWERS_S).close()
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                return
        time.sleep(0.2)
    raise UserError(f"{_NO_RAY.format(address)} ({reason})")


def has_ray() -> bool:
    """Whether a Ray is named, or this process has one already: then work is given to it, however small."""
    return bool(os.environ.get("RAY_ADDRESS")) or is_connected()


def is_connected() -> bool:
    """Whether this process has joined or started a Ray."""
    if "ray" not in sys.modules:
        return False
    import ray

    return bool(ray.is_initialized())


def _name_own_ray() -> Callable[[], None]:
    """What a worker calls when it starts: Ray Train looks up its Ray there, and fails if several Rays run on this machine."""

    def name_own_ray() -> None:  # nested, so that a worker need not import this module
        import os

        import ray

        os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)

    return name_own_ray


def num_cpus() -> int:
    """CPUs of this machine, where jobs run if they join no cluster."""
    return os.cpu_count() or 1


def duration(seconds: float) -> str:
    """Seconds in a unit that reads well: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def plural(number: int, noun: str) -> str:
    """1 node, 2 nodes, 1,000 nodes."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def show(title: str, settings: object) -> None:
    """The title, and the settings that differ from their defaults, one line each; all of them with --verbose."""
    print(title)
    values = dict(_flat(as_json(settings)))
    usual = {} if verbose else _defaults(type(settings))
    changed = {name: value for name, value in values.items() if name not in usual or usual[name] != value}
    for name, value in changed.items():
        print(f"  {name:<32} {json.dumps(value) if not isinstance(value, str) else value}")
    sys.stdout.flush()


def settings_toml(settings: object, name: str = SETTINGS_FILE) -> str:
    """The content of a settings file, which repeats a run: `--config FOLDER/settings.toml`. name: of the file."""
    import tomli_w

    return f"# {command()} --config {name}\n{tomli_w.dumps(_without_none(as_json(settings)))}"


@contextlib.contextmanager
def repeatable(settings: object, out: str | Path) -> Iterator[None]:
    """Write settings.toml before the work, so that a killed run can be repeated. settings: with absolute paths.

    A user error that leaves nothing else in a new folder leaves no folder.
    """
    from han.storage import Folder

    folder = Folder(str(out))
    is_new = not folder.exists()
    folder.make()
    folder.write(SETTINGS_FILE, settings_toml(settings).encode(), durable=True)
    try:
        yield
    except Exception as error:
        if is_new and _cause(error, UserError) and not without_settings(folder.names()):
            folder.remove(SETTINGS_FILE)
            folder.remove_empty()
        raise


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag, as `--flag VALUE` or `--flag=VALUE`; None if the flag is not there. A flag without a value is a `UserError`."""
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == flag and not equals and place + 1 == len(arguments):
            raise UserError(f"{flag} needs a value")
        if name == flag:
            return value if equals else arguments[place + 1]
    return None


def _take(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, which is removed with its flag."""
    value = value_of(arguments, flag)
    if value is not None:
        place = next(place for place, word in enumerate(arguments) if word.partition("=")[0] == flag)
        del arguments[place : place + (1 if "=" in arguments[place] else 2)]
    return value


def _read_settings(file: str) -> dict[str, Any]:
    """The values of a TOML file."""
    import tomllib

    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {file} cannot be read ({error.strerror}): give a TOML file, such as {SETTINGS_FILE} of a run") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {file} is not TOML: {error}") from None


def _from_values(kind: Any, values: dict[str, Any], *, where: str, base: Any) -> Any:
    """`kind` with these values; what they leave out is as in `base`, or has its default, or must be given as a flag."""
    values = without_removed({name.replace("-", "_"): value for name, value in values.items()})
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        raise UserError(f"{where} has the setting {unknown[0]}, which does not exist: there are {', '.join(fields)}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name in values:
            nested = dataclasses.is_dataclass(hints[name]) and isinstance(values[name], dict)
            inner = getattr(base, name, None)
            value = _from_values(hints[name], values[name], where=where, base=inner) if nested else values[name]
            arguments[name] = tuple(value) if isinstance(value, list) else value
        elif base is not None:
            arguments[name] = getattr(base, name)
        elif not has_default:
            arguments[name] = tyro.MISSING
    return kind(**arguments)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: a setting that is absent has its default, which is None."""
    kept = {name: value for name, value in values.items() if value is not None}
    plain = {name: value for name, value in kept.items() if not isinstance(value, dict)}
    return plain | {name: _without_none(value) for name, value in kept.items() if isinstance(value, dict)}


def _defaults(kind: type[Any]) -> dict[str, Any]:
    """The flat settings of a dataclass whose fields have defaults; required ones are left out."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
            values[field.name] = as_json(made) if dataclasses.is_dataclass(made) else made
    return dict(_flat(json.loads(json.dumps(values))))


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in settings.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _hide_lines_of_ray() -> None:
    """Drop the log lines of Ray's C++ code, which goes to the file descriptor of stderr past Python; all other lines pass."""
    global _shown
    _shown = shown = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    is_over = threading.Event()

    def copy() -> None:
        rest = b""
        while True:
            if not select.select([reading], [], [], 0.1)[0]:
                if is_over.is_set():
                    break
                continue
            *lines, rest = (rest + os.read(reading, 1 << 16)).split(b"\n")
            kept = [line + b"\n" for line in lines if not _LINE_OF_RAY.match(line)]
            os.write(shown, b"".join(kept))
        os.write(shown, rest)

    copying = threading.Thread(target=copy, daemon=True)
    copying.start()

    def restore() -> None:
        global _shown
        sys.stderr.flush()
        os.dup2(shown, 2)
        _shown = None
        is_over.set()
        copying.join(2)

    atexit.register(restore)


def _handle_sigterm() -> None:
    def interrupt(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Interrupted

    signal.signal(signal.SIGTERM, interrupt)


def _exit(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def _leave_dead_ray(kind: str) -> NoReturn:
    """End at once, in any thread: what is on the disk can be resumed, and each call of Ray would end the process without a line."""
    os.write(_shown or sys.stderr.fileno(), f"error: {_RAY_FAILED.format(kind=kind)}\n".encode())
    os._exit(EXIT_RAY)


def _leave_closed_pipe() -> NoReturn:
    """Nobody reads the output any more (`| head`): end quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_CLOSED_PIPE)


def _explain(error: Exception) -> None:
    """Exit with one line if the error is a user's, the disk's, the network's or Ray's, or a signal; return if it is a bug."""
    if _cause(error, _Interrupted) or _cause(error, KeyboardInterrupt):  # a signal inside Ray's compiled code becomes a SystemError
        _exit(_INTERRUPTED, EXIT_INTERRUPTED)
    if mistake := _cause(error, UserError):
        _exit(f"error: {mistake}", EXIT_USER_ERROR)
    if (failed := _cause(error, OSError)) and failed.errno is not None:
        _exit(f"error: {failed}: fix this, then run the same command to resume", EXIT_IO)
    if "ray" not in sys.modules:
        return
    from ray import exceptions

    if _cause(error, exceptions.OutOfMemoryError):
        _exit(f"error: {_OUT_OF_MEMORY}", EXIT_RAY)
    kinds = (
        exceptions.RaySystemError,
        exceptions.LocalRayletDiedError,
        exceptions.NodeDiedError,
        exceptions.ActorDiedError,
        exceptions.ActorUnavailableError,
        exceptions.OwnerDiedError,
        exceptions.GetTimeoutError,
        exceptions.WorkerCrashedError,
    )
    if died := next(filter(None, (_cause(error, kind) for kind in kinds)), None):
        _exit(f"error: {_RAY_FAILED.format(kind=type(died).__name__)}", EXIT_RAY)


def _cause(error: BaseException | None, kind: type[Caused]) -> Caused | None:
    """An error of that kind inside one that Ray may have wrapped."""
    if error is None:
        return None
    cause = getattr(error, "cause", None)
    if isinstance(cause, kind):
        return cause
    if isinstance(error, kind) and not hasattr(error, "as_instanceof_cause"):  # Ray's wrapper is of both kinds, its text a traceback
        return error
    inside = [cause if isinstance(cause, BaseException) else error.__cause__, getattr(error, "controller_failure", None)]
    inside += getattr(error, "worker_failures", {}).values()  # of Ray Train
    return next(filter(None, (_cause(each, kind) for each in inside)), None)
