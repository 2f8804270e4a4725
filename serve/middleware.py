"""What every request gets: an id, a deadline, a bounded body, the key check, security headers, one line of log, one count.

Plain ASGI around the whole app, so it holds whatever the routes do and whatever a client's headers ask of Serve's proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from serve.admission import Admission
from serve.errors import INTERNAL, Problem
from serve.keys import Keys
from serve.metrics import Metrics
from serve.options import Options

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

CLIENT_LEFT = 499  # in logs and metrics only
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Paths that need no API key. Every other path does, also one that does not exist.
_PUBLIC = frozenset(
    {"/", "/docs", "/openapi.json", "/healthz", "/readyz"}
    | {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/han", "/v2/models/han/ready"}
)
_PUBLIC_FOLDER = "/static/"
_METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS")
_SCORES = ("/v1/score", "/v2/models/han/infer")
_CONTENT_SECURITY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_DOCS_IMAGES = "; img-src 'self' data:"  # arrows of Swagger UI
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
log = logging.getLogger("han.serve")


class Middleware:
    """An ASGI app around an ASGI app."""

    def __init__(
        self, app: App, options: Options, metrics: Metrics, admission: Admission, *, paths: frozenset[str], replica: str, behind_proxy: bool
    ) -> None:
        """paths: all routes of `app`. behind_proxy: Serve's proxy adds the request id that it received to the answer."""
        self._app, self._options, self._metrics, self._admission = app, options, metrics, admission
        self._paths, self._replica, self._behind_proxy = paths, replica, behind_proxy
        self._keys = Keys(Path(options.api_keys_file)) if options.api_keys_file else None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        headers, path = _headers(scope), route_path(scope)
        request_id = headers.get("x-request-id", "")
        keeps_id = bool(_REQUEST_ID.fullmatch(request_id))
        request_id = request_id if keeps_id else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        response = _Response(send, path, request_id, adds_id=not (self._behind_proxy and keeps_id))
        self._metrics.add("han_requests_in_flight", 1)
        try:
            await self._respond(scope, path, headers, receive, response)
        finally:
            took_s = time.perf_counter() - began_s
            # any other path is the client's text, which is not logged
            route = path if path in self._paths else "/static" if path.startswith(_PUBLIC_FOLDER) else "other"
            self._metrics.add("han_requests_in_flight", -1)
            self._metrics.count("han_requests_total", route=route, code=str(response.status))
            self._metrics.observe("han_request_seconds", took_s, route=route)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            line = {"request_id": request_id, "method": method, "route": route, "code": response.status, "ms": round(took_s * 1e3, 1)}
            sizes = {name: state[name] for name in ("texts", "tokens", "retries") if name in state}
            log.info(json.dumps({**line, **sizes, **response.fault, "replica": self._replica}))

    async def _respond(
        self, scope: MutableMapping[str, Any], path: str, headers: dict[str, str], receive: Receive, response: _Response
    ) -> None:
        late = Problem(408, "slow_upload", f"the body was not complete after {self._options.deadline_s:g} s")
        try:
            async with asyncio.timeout(self._options.deadline_s):
                if self._keys and not (path in _PUBLIC or path.startswith(_PUBLIC_FOLDER)):
                    self._keys.check(headers.get("authorization", ""))
                if path in _SCORES:
                    self._admission.check()  # before the body is read: a refusal has to cost little
                body = await _read_body(headers, receive, self._options.max_body_bytes)
                late = Problem(504, "deadline", f"no answer within {self._options.deadline_s:g} s; the work was cancelled")
                await _run_until_disconnect(self._app(scope, _replay(body), response), receive, response)
        except TimeoutError:
            await response.fail(late)
        except Problem as problem:
            await response.fail(problem)
        except _ClientLeft:
            response.status = CLIENT_LEFT
        except Exception as error:  # a message may quote what was sent, so only the type is logged
            at = traceback.extract_tb(error.__traceback__)[-1]
            response.fault = {"fault": type(error).__name__, "at": f"{Path(at.filename).name}:{at.lineno}"}
            await response.fail(INTERNAL)


class _ClientLeft(Exception):
    pass


class _Response:
    """Passes on what the app sends, adds the headers of every answer and remembers the status."""

    def __init__(self, send: Send, path: str, request_id: str, *, adds_id: bool) -> None:
        self._send, self._path, self.request_id, self._adds_id = send, path, request_id, adds_id
        self.status, self.is_complete = CLIENT_LEFT, False  # until something is sent
        self.fault: dict[str, str] = {}  # for the log

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            request_id = ((b"x-request-id", self.request_id.encode()),) if self._adds_id else ()
            policy = _CONTENT_SECURITY + _DOCS_IMAGES if self._path == "/docs" else _CONTENT_SECURITY
            headers = [*message.get("headers", ()), *request_id, (b"content-security-policy", policy.encode()), *_SECURITY_HEADERS]
            message = {**message, "headers": headers}
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)

    async def fail(self, problem: Problem) -> None:
        """Answer with a problem, unless an answer has begun."""
        if self.status == CLIENT_LEFT:
            headers, body = problem.response(self.request_id, self._path)
            await self({"type": "http.response.start", "status": problem.status, "headers": headers})
            await self({"type": "http.response.body", "body": body})


async def _read_body(headers: dict[str, str], receive: Receive, max_bytes: int) -> bytes:
    too_large = Problem(413, "too_large", f"the body is over {max_bytes:,} bytes: send several requests")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeft
        parts.append(message.get("body", b""))
        num_bytes += len(parts[-1])
        if num_bytes > max_bytes:
            raise too_large
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes) -> Receive:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        for message in messages:
            return message
        await asyncio.Event().wait()  # a client that leaves cancels the app
        raise AssertionError

    return receive


async def _run_until_disconnect(work: Awaitable[None], receive: Receive, response: _Response) -> None:
    """Do the work, but cancel it when the client leaves before its answer is complete."""

    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and not response.is_complete:
            raise _ClientLeft
        await working
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


def route_path(scope: MutableMapping[str, Any]) -> str:
    """The path below the application's prefix, as the routes see it. Serve's proxy leaves the prefix in `path`."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] or "/" if root and (path == root or path.startswith(f"{root}/")) else path


def _headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """By lower-case name. The first of two equal headers counts, as in Serve."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reversed(scope["headers"])}
