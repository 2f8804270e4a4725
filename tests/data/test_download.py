"""Downloads are resumed, checked and renamed. The server runs on this machine."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from han.data import download as module
from han.data.download import download
from han.types import UserError

CONTENT = bytes(range(256)) * 40
CHECKSUMS = {"md5": hashlib.md5(CONTENT, usedforsecurity=False).hexdigest(), "sha256": hashlib.sha256(CONTENT).hexdigest()}


class Server(ThreadingHTTPServer):
    """One file, /file; the attributes say how the server behaves."""

    knows_ranges = True
    breaks_after: int | None = None
    says_length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []  # of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/file")
            self.end_headers()
            return
        if self.path != "/file":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.knows_ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if self.server.says_length:
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.server.breaks_after])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "CHUNK_BYTES", 1000)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server: Server, path: Path, checksums: dict[str, str] = CHECKSUMS) -> list[tuple[int, int | None]]:
    seen: list[tuple[int, int | None]] = []
    assert download(server.url, path, checksums, progress=lambda done, total: seen.append((done, total)), instead="give it") == path
    return seen


def test_a_download_leaves_only_the_complete_file(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path / "new" / "file")
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {"file": CONTENT}


@pytest.mark.parametrize("says_length", [True, False])
def test_progress_goes_from_zero_to_the_size_of_the_file(server: Server, tmp_path: Path, says_length: bool) -> None:
    server.says_length = says_length
    seen = fetch(server, tmp_path / "file")
    assert (seen[0][0], seen[-1][0], {total for _, total in seen}) == (0, len(CONTENT), {len(CONTENT) if says_length else None})
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_an_interrupted_download_resumes_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.breaks_after = 4_500
    with pytest.raises(UserError, match=r"interrupted after 4,500 of 10,240 bytes\): run it again to resume"):
        fetch(server, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file.part"]
    server.breaks_after = None
    seen = fetch(server, tmp_path / "file")
    assert (seen[0], seen[-1]) == ((4_500, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    assert (server.ranges, (tmp_path / "file").read_bytes()) == ([None, "bytes=4500-"], CONTENT)


def test_the_download_starts_again_if_the_server_ignores_ranges(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:4_500])
    server.knows_ranges = False
    assert fetch(server, tmp_path / "file")[0] == (0, len(CONTENT))
    assert (server.ranges, (tmp_path / "file").read_bytes()) == (["bytes=4500-"], CONTENT)


def test_a_complete_part_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "file")
    assert (server.ranges, (tmp_path / "file").read_bytes()) == ([f"bytes={len(CONTENT)}-"], CONTENT)


def test_a_part_that_is_too_long_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["md5", "sha256"])
def test_a_wrong_checksum_is_a_mistake_and_the_file_is_deleted(server: Server, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"is damaged or changed: its {name} is {CHECKSUMS[name]}, not 00"):
        fetch(server, tmp_path / "file", CHECKSUMS | {name: "00"})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_detected(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"\0" * 4_500)
    with pytest.raises(UserError, match="is damaged or changed"):
        fetch(server, tmp_path / "file")
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_an_existing_file_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "file") == []
    assert server.ranges == []


def test_an_existing_file_with_other_content_is_a_mistake_and_is_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"file differs from http://127.0.0.1:\d+/file: its md5 is .* Delete it to download it again"):
        fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"


def refuse(url: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        download(url, folder / "file", {}, progress=lambda done, total: None, instead="give its path with --input")
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []
    return str(caught.value)


def test_without_a_connection_the_mistake_names_the_alternative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        message = refuse(url, tmp_path)
    assert message.startswith("no connection to 127.0.0.1 (")
    assert message.endswith(f"or download {url} by hand and give its path with --input")


def test_an_http_error_is_a_mistake(server: Server, tmp_path: Path) -> None:
    assert "the server answers 404" in refuse(server.url + "s", tmp_path)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/file", "file:///etc/passwd", "/etc/passwd"])
def test_only_http_and_https_are_allowed(tmp_path: Path, url: str) -> None:
    assert refuse(url, tmp_path) == f"{url} cannot be fetched: only http and https are allowed"


def test_a_redirect_to_another_scheme_is_a_mistake(server: Server, tmp_path: Path) -> None:
    assert "ftp" in refuse(server.url.replace("file", "elsewhere"), tmp_path)
