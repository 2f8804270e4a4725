"""The output of a reliability run: one line for each guarantee, and exit code 1 if one does not hold."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

_broken: list[str] = []


def reliability(name: str, *, ok: bool, **figures: Any) -> None:
    """Print `RELIABILITY <name> ok=... key=value ...`."""
    if not ok:
        _broken.append(name)
    line = " ".join(f"{key}={_plain(value)}" for key, value in figures.items())
    print(f"RELIABILITY {name} ok={'yes' if ok else 'NO'} {line}", flush=True)


def attempt(name: str, run: Callable[[], None], *, expected: type[Exception] | tuple[type[Exception], ...]) -> None:
    """Do one run and print its duration. An `expected` error means that the guarantee does not hold; the other runs continue."""
    since = time.monotonic()
    try:
        run()
    except expected as error:
        reliability(name, ok=False, error=f"{type(error).__name__}: {error}")
    print(f"{name}: {time.monotonic() - since:.0f} s", flush=True)


def close() -> None:
    """End the process with 0 if every guarantee held, else with 1 and the names of the broken ones."""
    if _broken:
        print(f"did not hold: {' '.join(_broken)}", file=sys.stderr)
    sys.exit(1 if _broken else 0)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "_")
