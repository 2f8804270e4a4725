"""Misbehaving clients: they disconnect early, send one byte at a time, or send malformed headers."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from dataclasses import dataclass

HEAD = b"POST /v1/score HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BODY = b'{"inputs": "I loved it."}'
STALLED = HEAD + b"Content-Length: 30\r\n\r\n{"  # the rest never comes
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """The response to some bytes."""

    status: int  # 0: no response, or no HTTP
    head: bytes
    took_s: float

    @property
    def is_ours(self) -> bool:
        """Whether the ingress answered instead of Serve's proxy. Only the ingress adds this header."""
        return b"content-security-policy" in self.head.lower()


def exchange(port: int, request: bytes, *, wait_s: float) -> Received:
    """Send a request and read the head of the first response."""
    began, received = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection, contextlib.suppress(OSError):
        connection.sendall(request)
        while b"\r\n\r\n" not in received and (more := connection.recv(65_536)):
            received = (received + more).removeprefix(CONTINUE)
    return Received(status=_status(received), head=received.partition(b"\r\n\r\n")[0], took_s=time.monotonic() - began)


def leave(port: int, request: bytes, *, after_s: float) -> None:
    """Send a request, then reset the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        time.sleep(after_s)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Slow:
    """Connections that send one byte at each call of `drip`."""

    def __init__(self, port: int, start: bytes, number: int) -> None:
        self.statuses: list[int] = []  # of the answered connections; 0: closed
        self.cut_s: list[float] = []  # when they were cut, since the start
        self._open = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(number)]
        self._began = time.monotonic()
        for connection in self._open:
            connection.sendall(start)

    def drip(self) -> None:
        ready, _, _ = select.select(self._open, [], [], 0)
        for connection in list(self._open):
            received = b""
            with contextlib.suppress(OSError):
                if connection not in ready:
                    connection.sendall(b"x")
                    continue
                received = connection.recv(65_536)
            self.statuses.append(_status(received))
            self.cut_s.append(time.monotonic() - self._began)
            connection.close()
            self._open.remove(connection)

    def close(self) -> None:
        for connection in self._open:
            connection.close()


def _status(received: bytes) -> int:
    parts = received.split(b" ", 2)
    return int(parts[1]) if received.startswith(b"HTTP/1.") and parts[1].isdigit() else 0


def _with(*lines: bytes) -> bytes:
    return HEAD + b"".join(line + b"\r\n" for line in lines) + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


_SOCKET = (
    HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
)

# Complete requests. Each must be answered at once and without a fault of the service.
ODD: dict[str, bytes] = {
    "id of an invalid byte": _with(b"x-request-id: \xff"),
    "id of 10,000 letters": _with(b"x-request-id: " + b"a" * 10_000),
    "id with a line end and a header": _with(b"x-request-id: a\r\nx-evil: 1"),
    "id with a bare CR": _with(b"x-request-id: a\rx-evil: 1"),
    "id with a bare LF": _with(b"x-request-id: a\nx-evil: 1"),
    "folded id": _with(b"x-request-id: a\r\n b"),
    "two ids": _with(b"x-request-id: a", b"x-request-id: b"),
    "64 KB in one header": _with(b"x-long: " + b"a" * 65_536),
    "64 KB in 1,000 headers": _with(*(b"x-%d: " % number + b"a" * 60 for number in range(1_000))),
    "timeout 0": _with(b"x-request-timeout-seconds: 0"),
    "negative timeout": _with(b"x-request-timeout-seconds: -1"),
    "timeout that is not a number": _with(b"x-request-timeout-seconds: soon"),
    "timeout NaN": _with(b"x-request-timeout-seconds: nan"),
    "timeout of an invalid byte": _with(b"x-request-timeout-seconds: \xff"),
    "disconnect disabled": _with(b"x-request-disconnect-disabled: ?1"),
    "model id": _with(b"serve_multiplexed_model_id: x"),
    "trace id of an invalid byte": _with(b"traceparent: \xff"),
    "content type with an invalid byte": WHOLE.replace(b"application/json", b"application/\xff"),
    "length that is not a number": WHOLE.replace(b"Content-Length: 25", b"Content-Length: many"),
    "negative length": WHOLE.replace(b"Content-Length: 25", b"Content-Length: -1"),
    "length of 30 digits": WHOLE.replace(b"Content-Length: 25", b"Content-Length: " + b"9" * 30),
    "two lengths": _with(b"Content-Length: 3"),
    "length and chunks": _with(b"Transfer-Encoding: chunked"),
    "unknown coding": WHOLE.replace(b"Content-Length: 25", b"Transfer-Encoding: gzip, x"),
    "host of an invalid byte": WHOLE.replace(b"Host: test", b"Host: \xff"),
    "no host": WHOLE.replace(b"Host: test\r\n", b""),
    "HTTP/1.0": WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/9.9": WHOLE.replace(b"HTTP/1.1", b"HTTP/9.9"),
    "unknown method": WHOLE.replace(b"POST", b"BREW"),
    "path with an invalid byte": WHOLE.replace(b"/v1/score", b"/v1/\xff"),
    "path with invalid escapes": WHOLE.replace(b"/v1/score", b"/v1/%ff%00"),
    "path of 10,000 letters": WHOLE.replace(b"/v1/score", b"/" + b"a" * 10_000),
    "path with ..": WHOLE.replace(b"/v1/score", b"/static/../../../etc/passwd"),
    "query with an invalid byte": WHOLE.replace(b"/v1/score", b"/v1/score?\xff=%ff"),
    "upgrade to a web socket": _SOCKET.replace(b"POST", b"GET") + b"\r\n",
    "upgrade to a web socket, with a body": _SOCKET + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "Expect: 100-continue": _with(b"Expect: 100-continue"),
}
# Requests whose body stops. The deadline must hold with any of these headers.
STALLED_WITH_HEADERS: dict[str, bytes] = {
    name: STALLED.replace(b"Content-Length", line + b"\r\nContent-Length")
    for name, line in {
        "no header": b"x-none: 1",
        "timeout 0": b"x-request-timeout-seconds: 0",
        "timeout of an hour": b"x-request-timeout-seconds: 3600",
        "disconnect disabled": b"x-request-disconnect-disabled: ?1",
    }.items()
}
