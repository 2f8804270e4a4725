"""Named points at which a process can kill itself, so that tests can stop it exactly there. Off by default."""

from __future__ import annotations

import os
import signal
from collections import Counter

from han.storage import Folder

OF_A_PART = ("read", "staged", "synced", "renamed", "quarantined", "recorded")
OF_THE_DRIVER = ("gathered", "verified", "set-aside", "published", "manifest", "success")
OF_A_PROMOTION = ("copied", "renamed", "pointed")

_reached: Counter[tuple[str, str]] = Counter()  # times that this process reached a point, by folder and point


class Failpoint:
    """Kills its process by SIGKILL at one of the points above, once for each folder. Without a spec it does nothing."""

    def __init__(self, spec: str | None, folder: Folder) -> None:
        """spec: name, or name:n for the n-th time that the process reaches the point."""
        self._name, _, times = (spec or "").partition(":")
        self._times = int(times or 1)
        self._folder = folder

    def reach(self, name: str) -> None:
        if name != self._name:
            return
        _reached[self._folder.place, name] += 1
        fired = f".{name}.failpoint"
        if _reached[self._folder.place, name] == self._times and not self._folder.exists(fired):
            self._folder.write(fired, b"", durable=True)
            os.kill(os.getpid(), signal.SIGKILL)
