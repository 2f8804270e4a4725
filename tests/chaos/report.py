"""How a reliability run says what it saw: one line a promise, and an exit code that is 1 where any fell short."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

_short: list[str] = []


def reliability(name: str, *, ok: bool, **figures: Any) -> None:
    """Print `RELIABILITY <name> ok=... key=value ...`."""
    if not ok:
        _short.append(name)
    told = " ".join(f"{key}={_plain(value)}" for key, value in figures.items())
    print(f"RELIABILITY {name} ok={'yes' if ok else 'NO'} {told}", flush=True)


def attempt(name: str, run: Callable[[], None], *, expected: type[Exception] | tuple[type[Exception], ...]) -> None:
    """Do one run and say how long it took; an `expected` error is a promise that fell short and says nothing about the other runs."""
    since = time.monotonic()
    try:
        run()
    except expected as error:
        reliability(name, ok=False, error=f"{type(error).__name__}: {error}")
    print(f"{name}: {time.monotonic() - since:.0f} s", flush=True)


def close() -> None:
    """End the process: 0 if every promise held, else 1 and the names of those that did not."""
    if _short:
        print(f"fell short: {' '.join(_short)}", file=sys.stderr)
    sys.exit(1 if _short else 0)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "_")
