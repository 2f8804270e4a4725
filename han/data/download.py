"""Fetch one file over HTTP: resumable, checked against its checksums, and under its name only when it is whole and right."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TypeAlias, cast

from han.types import Mistake

# Pennington et al., EMNLP 2014. Its publisher names no checksum; this one stands, the same, in a dozen independent projects.
GLOVE_URL = "https://downloads.cs.stanford.edu/nlp/data/glove.6B.zip"
GLOVE_CHECKSUMS = {"sha256": "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"}

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30  # without a byte

Progress: TypeAlias = Callable[[int, int | None], None]  # bytes that are here, and in all (None: the server does not say)


def download(url: str, path: Path, checksums: Mapping[str, str], *, progress: Progress, instead: str) -> Path:
    """`path` with the content of `url`; one that is there already is only checked.

    checksums: hex digests by hashlib's names, all of which must fit. instead: what to do without a connection, e.g. "give its path with
    --input". The file grows as <path>.part, from where an earlier call broke off. No connection, a server that refuses, and a wrong
    checksum are a `Mistake`; what had the wrong checksum is deleted if this call fetched it.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise Mistake(f"{url} is not fetched: only http and https are")
    if path.exists():
        if wrong := _wrong_checksum(path, checksums):
            raise Mistake(f"{path} is not what {url} holds: {wrong}. Delete it to fetch it again")
        return path
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(url, part, progress)
    except urllib.error.HTTPError as error:
        error.close()
        raise Mistake(f"{url} cannot be fetched: the server says {error.code} {error.reason}. Download it by hand and {instead}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        host = urllib.parse.urlsplit(url).hostname
        raise Mistake(f"no connection to {host} ({reason}): run it again to go on, or download {url} by hand and {instead}") from None
    if wrong := _wrong_checksum(part, checksums):
        part.unlink()
        raise Mistake(f"{url} came damaged or changed: {wrong}. Run it again, or download it by hand and {instead}")
    return part.replace(path)


def _wrong_checksum(path: Path, checksums: Mapping[str, str]) -> str | None:
    for name, wanted in checksums.items():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, name).hexdigest()
        if found != wanted:
            return f"its {name} is {found}, not {wanted}"
    return None


def _fetch(url: str, part: Path, progress: Progress) -> None:
    """Append to `part` what it still lacks; a server that cannot begin in the middle sends all of it again."""
    here = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, here)
    except urllib.error.HTTPError as error:
        if not here or error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{here}":  # broken off between the last byte and the checksum
            return
        here, response = 0, _open(url, 0)
    with response:
        resumed = re.match(rf"bytes {here}-\d+/", response.headers.get("Content-Range", "")) if here else None
        here = here if resumed else 0
        length = response.headers.get("Content-Length")
        total = here + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            progress(here, total)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                here += len(chunk)
                progress(here, total)
    if total is not None and here < total:
        raise ConnectionError(f"broke off after {here:,} of {total:,} bytes")


def _open(url: str, start: int) -> http.client.HTTPResponse:
    """Through handlers that know http and https alone, so that no redirect leads to a file or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310 - the scheme is checked
    return cast(http.client.HTTPResponse, opener.open(request, timeout=TIMEOUT_S))
