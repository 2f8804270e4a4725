"""Something that is looked at again and again while something else happens."""

from __future__ import annotations

import threading
from typing import Self


class Repeated:
    """Calls `look` every `every_s` seconds, in a thread of its own, for as long as the body of its `with` runs."""

    every_s = 0.25

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._over.wait(self.every_s):
            self.look()

    def look(self) -> None:
        raise NotImplementedError
