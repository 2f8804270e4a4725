"""Charts as SVG, without a script: scales, axes and marks. The style of the page colours the marks by their class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

Value: TypeAlias = bool | int | float | str | None
Place: TypeAlias = tuple[float, float]  # x, y in units of the chart; y grows downwards


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values to 0..1: numbers from low to high, or choices side by side."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    percent: bool = False  # ticks are written as percentages
    whole: bool = False  # ticks are whole numbers
    choices: tuple[str, ...] = ()

    def place(self, value: Value) -> float:
        """Returns where the value lies, from 0 (low) to 1 (high)."""
        if self.choices:
            return (self.choices.index(str(value)) + 0.5) / len(self.choices)
        low, high, number = (math.log(each) if self.log else each for each in (self.low, self.high, float(value or 0)))
        return (number - low) / (high - low)

    def ticks(self, at_most: int) -> list[tuple[float, str]]:
        """Returns the ticks of an axis, each its place from 0 to 1 and its label."""
        if self.choices:
            return [(self.place(choice), clip(choice, 16)) for choice in self.choices]
        if self.log:
            return [(self.place(value), f"{value:.3g}") for value in _log_ticks(self.low, self.high, at_most)]
        step = _step(max((self.high - self.low) / at_most, 1 if self.whole else 0))
        values = [number * step for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        decimals = max(0, -math.floor(math.log10(step * (100 if self.percent else 1)) + 1e-9))
        return [(self.place(value), f"{value:.{decimals}%}" if self.percent else f"{value:,.{decimals}f}") for value in values]


def scale(values: Iterable[float], *, log: bool = False, percent: bool = False, whole: bool = False, room: float = 0.06) -> Scale:
    """Returns a scale that contains all finite `values`. `room` is the free space at each end, as a share of their range."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    log = log and low > 0
    if log:
        factor = (high / low) ** room if high > low else 2.0
        return Scale(low=low / factor, high=high * factor, log=True)
    space = (high - low) * room if high > low else abs(high) * 0.1 or 1.0
    return Scale(low=low - space, high=high + space, percent=percent, whole=whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A chart with an x axis below and a y axis to the left."""

    x: Scale
    y: Scale
    width: int
    height: int
    left: int = 56
    right: int = 14
    top: int = 16
    bottom: int = 40

    def at(self, x: Value, y: Value) -> Place:
        """Returns the place of a point in the chart."""
        across, down = self.width - self.left - self.right, self.height - self.top - self.bottom
        return self.left + across * self.x.place(x), self.top + down * (1 - self.y.place(y))

    def axes(self, x_name: str, y_name: str, *, x_ticks: int = 8, y_ticks: int = 5) -> str:
        across, base = self.width - self.left - self.right, self.height - self.bottom
        drawn = []
        for place, label in self.y.ticks(y_ticks):
            y = self.top + (base - self.top) * (1 - place)
            drawn += [line([(self.left, y), (self.width - self.right, y)], "grid"), text(self.left - 8, y + 4, label, "tick end")]
        for place, label in self.x.ticks(x_ticks):
            drawn.append(text(self.left + across * place, base + 16, label, "tick middle"))
        drawn += [text(self.left + across / 2, self.height - 4, x_name, "name middle"), text(self.left, self.top - 5, y_name, "name")]
        return "".join(drawn)


def svg(width: int, height: int, drawn: Iterable[str]) -> str:
    """Returns a figure that screen readers skip. The page must show the same numbers in a table."""
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">{"".join(drawn)}</svg>'


def line(places: Sequence[Place], kind: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{kind}" points="{points}"/>'


def dot(place: Place, kind: str, radius: float = 4) -> str:
    return f'<circle class="{kind}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius}"/>'


def cross(place: Place, kind: str) -> str:
    x, y = place
    return f'<path class="{kind}" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"/>'


def bar(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" rx="2"/>'


def text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{safe(words)}</text>'


def link(anchor: str, tooltip: str, drawn: str) -> str:
    """Returns `drawn` as a link within the page, with a tooltip."""
    return f'<a href="#{anchor}" tabindex="-1">{drawn}<title>{safe(tooltip)}</title></a>'


def safe(words: str) -> str:
    """Returns the text as HTML. Invisible characters (controls, direction marks) become spaces."""
    return escape("".join(letter if letter.isprintable() else " " for letter in words))


def clip(words: str, length: int) -> str:
    """Returns the last `length` characters, because paths differ at their ends."""
    return words if len(words) <= length else "…" + words[1 - length :]


def _step(at_least: float) -> float:
    """Returns the smallest 1, 2 or 5 times a power of ten that is at least `at_least`."""
    power: float = 10.0 ** math.floor(math.log10(at_least))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= at_least * (1 - 1e-9))


def _log_ticks(low: float, high: float, at_most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for times in ((1, 2, 5), (1, 3), (1,)):
        values = [time * 10.0**power for power in powers for time in times if low <= time * 10.0**power <= high]
        if len(values) <= at_most:
            break
    return values if len(values) > 1 else [low, high]
