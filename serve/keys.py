"""API keys from a file with one key a line: no key is on a command line, and keys change while the service runs."""

from __future__ import annotations

import hmac
from pathlib import Path

from han.types import Mistake
from serve.errors import Problem

_SHORTEST = 16  # characters: shorter keys can be guessed


class Keys:
    """The keys of a file. A change of the file takes effect at once."""

    def __init__(self, path: Path) -> None:
        """Raises `Mistake` if the file cannot be read or has no good keys."""
        self._path = path
        self._version, self._keys = self._read()

    def check(self, authorization: str) -> None:
        """Raise `Problem` 401 unless the header has one of the keys. Compares in constant time."""
        try:
            if self._stat() != self._version:
                self._version, self._keys = self._read()
        except (Mistake, OSError):
            pass  # the file is half written or gone: the old keys stay valid
        scheme, _, sent = authorization.partition(" ")
        matches = [hmac.compare_digest(sent.strip().encode("utf-8", "surrogatepass"), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise Problem(401, "unauthorized", "send Authorization: Bearer and an API key of this service")

    def _stat(self) -> tuple[int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size

    def _read(self) -> tuple[tuple[int, int], list[bytes]]:
        try:
            version = self._stat()
            keys = [line.strip().encode() for line in self._path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise Mistake(f"api_keys_file {self._path} cannot be read: give a text file with one key a line") from None
        if not keys or min(map(len, keys)) < _SHORTEST:
            raise Mistake(f"api_keys_file {self._path}: needs at least one key, one a line, each of {_SHORTEST} characters or more")
        return version, keys
