"""Which records killed a worker or raised an error, kept on disk, and what follows from that.

A worker writes a marker before it reads or scores. A marker that a later worker finds shows where the earlier one died. After a death the
records of the batch are scored one at a time. A record that killed its worker twice on its own is poison, and is quarantined; so is a
record that raised an error each time. If workers die again and again and no record explains it, the job ends with a `UserError`.
"""

from __future__ import annotations

import json
from collections import Counter
from enum import Enum
from typing import Any

from han.storage import Folder
from han.types import UserError

SINGLE_TRIES = 2  # of a record on its own, after one try in its batch
BATCH_DEATHS = 3  # of workers at one batch, after which its records are always scored one at a time
OTHER_DEATHS = 10  # of workers at one place, in one run


class BatchState(Enum):
    """How a batch is scored next. It never moves back up this list."""

    TOGETHER = "together"  # no worker died and nothing was raised: score all records in one call
    SIFT = "sift"  # a worker died: try each record on its own, then score the rest in one call
    SINGLY = "singly"  # an error was raised, or workers died repeatedly: try each record on its own, then score the rest one at a time


class RecordState(Enum):
    """The state of a record that is scored on its own."""

    UNTRIED = "untried"  # it has tries left
    POISON = "poison"  # it killed its worker in every try
    FAILED = "failed"  # it raised an error, and has no tries left


def batch_state(*, deaths: int, failures: int) -> BatchState:
    """From the deaths of workers at the batch, and the errors that scoring it raised."""
    if not deaths and not failures:
        return BatchState.TOGETHER
    return BatchState.SIFT if deaths < BATCH_DEATHS and not failures else BatchState.SINGLY


def record_state(*, deaths: int, failures: int) -> RecordState:
    """From the deaths and errors of a record that was scored on its own."""
    if deaths + failures < SINGLE_TRIES:
        return RecordState.UNTRIED
    return RecordState.FAILED if failures else RecordState.POISON


class Attempts:
    """The earlier attempts at one shard. Rows are those of its file."""

    def __init__(self, staging: Folder, name: str, *, run: str) -> None:
        """run: the driver's process. Deaths that no record explains count within one run only."""
        self._staging, self._file, self._run = staging, f"attempts/{name}.json", run
        state = _state(staging.read(self._file)) or {"run": run, "doing": None, "deaths": {}}
        self._deaths: Counter[str] = Counter(state["deaths"])
        self._failures: Counter[str] = Counter(state.get("failures", {}))
        if state["doing"]:
            self._deaths[state["doing"]] += 1
        if state["run"] != run:
            self._deaths = Counter({key: deaths for key, deaths in self._deaths.items() if not key.startswith("reading")})
        for key, deaths in self._deaths.items():
            if deaths >= OTHER_DEATHS:
                raise UserError(
                    f"{name}: the worker died {deaths} times at {key}, and no record is to blame: give fewer --num-actors, a smaller "
                    f"--batch-tokens, or more memory"
                )
        self._write(None)

    def reading(self, row: int) -> None:
        """Mark that the worker is about to read the records from `row` on."""
        self._write(f"reading from row {row}")

    def scoring(self, first: int, last: int) -> None:
        """Mark that the worker is about to score the records of rows `first` to `last`."""
        self._write(_key(first, last))

    def clear(self) -> None:
        """Remove the marker: nothing that follows can kill a worker by itself."""
        self._write(None)

    def failed(self, first: int, last: int) -> None:
        """Note that scoring the records of rows `first` to `last` raised an error."""
        self._failures[_key(first, last)] += 1
        self._write(None)

    def deaths(self, first: int, last: int) -> int:
        return self._deaths[_key(first, last)]

    def failures(self, first: int, last: int) -> int:
        return self._failures[_key(first, last)]

    def _write(self, doing: str | None) -> None:
        state = {"run": self._run, "doing": doing, "deaths": dict(self._deaths), "failures": dict(self._failures)}
        self._staging.write(self._file, json.dumps(state).encode(), durable=False)


def _state(content: bytes | None) -> dict[str, Any] | None:
    """The marker and the counts of earlier attempts. A file that a power failure damaged counts as none: it is written without a sync."""
    try:
        state = json.loads(content or b"null")
        if {"run", "doing", "deaths"} <= state.keys():
            return dict(state)
    except (ValueError, AttributeError):
        pass
    return None


def _key(first: int, last: int) -> str:
    return f"rows {first} to {last}"
