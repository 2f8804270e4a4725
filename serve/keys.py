"""API keys: a file with one a line, so that a key is on no command line and can be changed while the service runs."""

from __future__ import annotations

import hmac
from pathlib import Path

from han.types import Mistake
from serve.errors import Problem

_SHORTEST = 16  # characters: shorter ones can be guessed


class Keys:
    """The keys of a file. A new one is in force, and an old one void, as soon as the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp, self._keys = self._read()

    def check(self, authorization: str) -> None:
        """Return if the header brings one of the keys. The time taken does not tell how much of a key was right."""
        try:
            if self._now() != self._stamp:
                self._stamp, self._keys = self._read()
        except (Mistake, OSError):
            pass  # half written or gone: the keys that were read stay in force
        kind, _, given = authorization.partition(" ")
        matches = [hmac.compare_digest(given.strip().encode("utf-8", "surrogatepass"), key) for key in self._keys]
        if kind.lower() != "bearer" or not any(matches):
            raise Problem(401, "unauthorized", "send Authorization: Bearer and an API key of this service")

    def _now(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size

    def _read(self) -> tuple[tuple[int, int], list[bytes]]:
        try:
            stamp = self._now()
            keys = [line.strip().encode() for line in self._path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise Mistake(f"api_keys_file {self._path} cannot be read: give a text file with one key a line") from None
        short = [place for place, key in enumerate(keys, 1) if len(key) < _SHORTEST]
        if not keys or short:
            found = f"the key of line {short[0]} is short" if short else "it holds no key"
            raise Mistake(f"api_keys_file {self._path}: {found}: give at least one key a line, of {_SHORTEST} characters or more")
        return stamp, keys
