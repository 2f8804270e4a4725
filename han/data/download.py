"""Download one file over HTTP: resumable, verified by checksums, and renamed to its final name only when it is complete and valid."""

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

from han.types import UserError

# Pennington et al., EMNLP 2014. The publisher gives no checksum; a dozen independent projects use this one.
GLOVE_URL = "https://downloads.cs.stanford.edu/nlp/data/glove.6B.zip"
GLOVE_CHECKSUMS = {"sha256": "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"}

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30  # without receiving a byte

Progress: TypeAlias = Callable[[int, int | None], None]  # bytes received, and bytes in total (None if the server does not say)


def download(url: str, path: Path, checksums: Mapping[str, str], *, progress: Progress, instead: str) -> Path:
    """Download `url` to `path` and return `path`. A file that exists already is only verified.

    checksums: hex digests by hashlib's names; all must match. instead: what to do without a connection, e.g. "give its path with --input".
    Bytes are written to <path>.part, and an interrupted download resumes there. Raises `UserError` if there is no connection, if the server
    refuses, or if a checksum is wrong; a download with a wrong checksum is deleted.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url} cannot be fetched: only http and https are allowed")
    if path.exists():
        if wrong := _wrong_checksum(path, checksums):
            raise UserError(f"{path} differs from {url}: {wrong}. Delete it to download it again")
        return path
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(url, part, progress)
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(
            f"{url} cannot be fetched: the server answers {error.code} {error.reason}. Download it by hand and {instead}"
        ) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        host = urllib.parse.urlsplit(url).hostname
        raise UserError(f"no connection to {host} ({reason}): run it again to resume, or download {url} by hand and {instead}") from None
    if wrong := _wrong_checksum(part, checksums):
        part.unlink()
        raise UserError(f"the download of {url} is damaged or changed: {wrong}. Run it again, or download it by hand and {instead}")
    return part.replace(path)


def _wrong_checksum(path: Path, checksums: Mapping[str, str]) -> str | None:
    for name, expected in checksums.items():
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, name).hexdigest()
        if actual != expected:
            return f"its {name} is {actual}, not {expected}"
    return None


def _fetch(url: str, part: Path, progress: Progress) -> None:
    """Append the missing bytes to `part`. If the server ignores ranges, the whole file is downloaded again."""
    received = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, received)
    except urllib.error.HTTPError as error:
        if not received or error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{received}":  # complete, but the checksum was not verified yet
            return
        received, response = 0, _open(url, 0)
    with response:
        resumed = re.match(rf"bytes {received}-\d+/", response.headers.get("Content-Range", "")) if received else None
        received = received if resumed else 0
        length = response.headers.get("Content-Length")
        total = received + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            progress(received, total)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
                progress(received, total)
    if total is not None and received < total:
        raise ConnectionError(f"interrupted after {received:,} of {total:,} bytes")


def _open(url: str, start: int) -> http.client.HTTPResponse:
    """Open the URL with handlers for http and https only, so that no redirect leads to a file or to FTP."""
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
