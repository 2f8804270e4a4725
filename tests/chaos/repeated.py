"""Polling until a condition holds, or while a `with` body runs."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Self


def until(holds: Callable[[], bool], deadline_s: float, *, every_s: float = 0.05, despite: tuple[type[Exception], ...] = ()) -> bool:
    """Wait until the condition holds; returns False after the deadline. despite: errors of `holds` that count as false."""
    end = time.monotonic() + deadline_s
    while True:
        with suppress(*despite):
            if holds():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(every_s)


class Repeated(ABC):
    """Call `look` every `every_s` seconds in a thread while the `with` body runs.

    An error of `look` ends the polling and is raised at the end of the body.
    """

    every_s = 0.25

    def __enter__(self) -> Self:
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _repeat(self) -> None:
        try:
            while not self._over.wait(self.every_s):
                self.look()
        except Exception as error:
            self._error = error

    @abstractmethod
    def look(self) -> None:
        """Poll once."""
