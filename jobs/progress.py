"""How far the scoring is: a line that moves on a terminal, a line every other second in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_LIVE_S, _LOG_S = 0.2, 2.0  # seconds between two lines


@dataclass(slots=True, kw_only=True)
class Rows:
    """A reporter of rows done: how many of how many, how many a second, how many seconds are left."""

    live: bool = field(default_factory=sys.stdout.isatty)
    clock: Callable[[], float] = time.monotonic
    _began: float | None = None
    _shown: float = -_LOG_S

    def __call__(self, what: str, done: int, total: int, *, exact: bool = True) -> None:
        """total: rows in all, 0 where nobody knows, an estimate unless `exact`; equal to `done`, it is the last line."""
        now = self.clock()
        self._began = now if self._began is None else self._began
        over = done == total
        if not over and now - self._shown < (_LIVE_S if self.live else _LOG_S):
            return
        self._shown = now
        of = f" of {'' if exact else 'about '}{total:,}" if total else ""
        line = f"{what} {done:,}{of} rows"
        if done and now > self._began:
            rate = done / (now - self._began)
            line += f", {rate:,.0f} a second"
            line += f", {(total - done) / rate:,.0f} s left" if total > done else ""
        print(f"\r\x1b[2K{line}" if self.live else line, end="" if self.live and not over else "\n", flush=True)
