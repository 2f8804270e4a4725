"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_LOG_S = 2.0  # seconds between two lines of a log


@dataclass(slots=True, kw_only=True)
class Rows:
    """Reports rows done: how many of how many, how many of them quarantined, rows a second, seconds left."""

    live: bool = field(default_factory=lambda: sys.stdout.isatty())
    clock: Callable[[], float] = time.monotonic
    _began: float | None = None
    _shown: float = -_LOG_S
    _bar: Progress | None = None

    def __call__(self, what: str, done: int, total: int, *, exact: bool = True, quarantined: int = 0) -> None:
        """total: all rows, 0 if unknown, an estimate unless `exact`; a call with total equal to done is the last."""
        now = self.clock()
        self._began = now if self._began is None else self._began
        is_over = done == total
        if self.live:
            self._bar = self._bar or _bar(what, " rows")
            _advance(self._bar, what, done, total, exact=exact, quarantined=quarantined)
            if is_over:
                self._bar.stop()
                self._bar = None
        elif is_over or now - self._shown >= _LOG_S:
            self._shown = now
            print(_line(what, done, total, now - self._began, exact=exact, quarantined=quarantined), flush=True)


@dataclass(slots=True, kw_only=True)
class Steps:
    """Reports steps of work, one after another: each has its own bar, or its own lines."""

    live: bool = field(default_factory=lambda: sys.stdout.isatty())
    clock: Callable[[], float] = time.monotonic
    _began: dict[str, float] = field(default_factory=dict)
    _shown: dict[str, float] = field(default_factory=dict)
    _bars: dict[str, Progress] = field(default_factory=dict)

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self.clock()
        began = self._began.setdefault(what, now)
        if self.live:
            bar = self._bars[what] if what in self._bars else self._bars.setdefault(what, _bar(what, ""))
            _advance(bar, what, done, total, exact=True)
            if done == total:
                bar.stop()
        elif done == total or now - self._shown.get(what, -_LOG_S) >= _LOG_S:
            self._shown[what] = now
            left = f"  {(now - began) / done * (total - done):,.0f} s left" if 0 < done < total else ""
            took = f"  {now - began:,.1f} s" if done == total else ""
            print(f"{what}: {done:,}/{total:,}{left}{took}", flush=True)


def _line(what: str, done: int, total: int, seconds: float, *, exact: bool, quarantined: int) -> str:
    of = f" of {'' if exact else 'about '}{total:,}" if total else ""
    line = f"{what} {done:,}{of} rows{_aside(quarantined)}"
    if done and seconds > 0:
        rate = done / seconds
        line += f", {rate:,.0f} a second"
        line += f", {(total - done) / rate:,.0f} s left" if total > done else ""
    return line


def _aside(quarantined: int) -> str:
    return f", {quarantined:,} quarantined" if quarantined else ""


def _bar(what: str, unit: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    bar = Progress(*columns, console=Console(highlight=False), refresh_per_second=5)
    bar.add_task(what, total=None, count=f"0{unit}", unit=unit)
    bar.start()
    return bar


def _advance(bar: Progress, what: str, done: int, total: int, *, exact: bool, quarantined: int = 0) -> None:
    task = bar.tasks[0]
    rate = f", {task.speed:,.0f} a second" if task.speed else ""
    about = "" if exact or done == total else "about "
    count = f"{done:,}{f'/{about}{total:,}' if total else ''}{task.fields['unit']}{_aside(quarantined)}{rate}"
    bar.update(task.id, description=what, completed=done, total=total or None, count=count)
