"""API keys from a file with one key a line: no key is on a command line, and keys change while the service runs."""

from __future__ import annotations

import hmac
from contextlib import suppress
from pathlib import Path

from han.types import UserError
from serve.errors import Problem

_SHORTEST = 16  # characters: shorter keys can be guessed


class Keys:
    """The keys of a file. A change of the file takes effect at once."""

    def __init__(self, path: Path) -> None:
        """Raises `UserError` if the file cannot be read or has no good keys."""
        self._path, self._version = path, (0, 0)
        self._read_if_changed()

    def check(self, authorization: str) -> None:
        """Raise `Problem` 401 unless the header has one of the keys. Compares in constant time."""
        with suppress(UserError):  # the file is half written or gone: the old keys stay valid
            self._read_if_changed()
        scheme, _, sent = authorization.partition(" ")
        matches = [hmac.compare_digest(sent.strip().encode("utf-8", "surrogatepass"), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise Problem(401, "unauthorized", "send Authorization: Bearer and an API key of this service")

    def _read_if_changed(self) -> None:
        try:
            stat = self._path.stat()
            if (version := (stat.st_mtime_ns, stat.st_size)) == self._version:
                return
            keys = [line.strip().encode() for line in self._path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise UserError(f"api_keys_file {self._path} cannot be read: give a text file with one key a line") from None
        if not keys or min(map(len, keys)) < _SHORTEST:
            raise UserError(f"api_keys_file {self._path}: needs at least one key, one a line, each of {_SHORTEST} characters or more")
        self._version, self._keys = version, keys
