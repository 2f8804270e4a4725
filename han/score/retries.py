"""Which records a worker was at when it died: kept on disk, since the worker cannot say.

A worker writes down what it is about to do; whoever finds such a line from a worker before it knows where that one ended. A batch that
ended a worker is next tried a record at a time, and a record that ended a worker twice when it was alone is poison: tried three times, it
is set aside. So is a record that raises: those tries are on disk as well, since its worker may die of something else. What ends workers
again and again without a record to blame is a `Mistake`.
"""

from __future__ import annotations

import json
from collections import Counter

from han.storage import Folder
from han.types import Mistake

ALONE_TRIES = 2  # of a record on its own, after one in company
BATCH_DEATHS = 3  # after which a batch is scored a record at a time, for good
OTHER_DEATHS = 10  # in one run, at one place


class Attempts:
    """What happened to earlier attempts at one shard. Rows are those of its file."""

    def __init__(self, staging: Folder, name: str, *, run: str) -> None:
        """run: names the driver's process; deaths that no record is to blame for count only within one."""
        self._staging, self._file, self._run = staging, f"attempts/{name}.json", run
        content = staging.read(self._file)
        state = json.loads(content) if content else {"run": run, "doing": None, "deaths": {}}
        self._deaths: Counter[str] = Counter(state["deaths"])
        self._failures: Counter[str] = Counter(state.get("failures", {}))
        if state["doing"]:
            self._deaths[state["doing"]] += 1
        if state["run"] != run:
            self._deaths = Counter({key: deaths for key, deaths in self._deaths.items() if not key.startswith("reading")})
        for key, deaths in self._deaths.items():
            if deaths >= OTHER_DEATHS:
                raise Mistake(
                    f"{name} ended its worker {deaths} times at {key}, and no record is to blame: give fewer --num-actors, a smaller "
                    f"--batch-tokens, or more memory"
                )
        self._write(None)

    def reading(self, row: int) -> None:
        """About to read the records from `row` on."""
        self._write(f"reading from row {row}")

    def scoring(self, first: int, last: int) -> None:
        """About to score the records of rows `first` to `last`."""
        self._write(_key(first, last))

    def over(self) -> None:
        """About to do nothing that could end a worker by itself."""
        self._write(None)

    def failed(self, first: int, last: int) -> None:
        """Scoring the records of rows `first` to `last` raised, and ended nothing."""
        self._failures[_key(first, last)] += 1
        self._write(None)

    def deaths(self, first: int, last: int) -> int:
        return self._deaths[_key(first, last)]

    def failures(self, first: int, last: int) -> int:
        return self._failures[_key(first, last)]

    def _write(self, doing: str | None) -> None:
        state = {"run": self._run, "doing": doing, "deaths": dict(self._deaths), "failures": dict(self._failures)}
        self._staging.write(self._file, json.dumps(state).encode(), durable=False)


def _key(first: int, last: int) -> str:
    return f"rows {first} to {last}"
