"""Around every request: an id, a deadline, a bounded body, the key, the headers of every answer, one line of log, one count.

Pure ASGI, outermost, so that it holds whatever the routes do, and whatever a client's headers ask of Serve's proxy.
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

from serve.errors import FAULT, Problem
from serve.keys import Keys
from serve.metrics import Metrics
from serve.options import Options
from serve.room import Room

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

CLIENT_LEFT = 499  # in logs and counts only: nobody is there to be told
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What needs no API key; every other path does, those that do not exist included.
_PUBLIC = frozenset(
    {"/", "/docs", "/openapi.json", "/healthz", "/readyz"}
    | {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/han", "/v2/models/han/ready"}
)
_PUBLIC_FOLDER = "/static/"
_SCORES = ("/v1/score", "/v2/models/han/infer")
_CONTENT_SECURITY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_DOCS_IMAGES = "; img-src 'self' data:"  # Swagger UI's style draws its arrows so
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
log = logging.getLogger("han.serve")


class Guard:
    """An ASGI app around an ASGI app."""

    def __init__(
        self, app: App, options: Options, metrics: Metrics, room: Room, *, paths: frozenset[str], replica: str, behind_proxy: bool
    ) -> None:
        """paths: all that `app` has. behind_proxy: Serve's proxy gives a request an id if it has none, and puts its id into the answer."""
        self._app, self._options, self._metrics, self._room = app, options, metrics, room
        self._paths, self._replica, self._behind_proxy = paths, replica, behind_proxy
        self._keys = Keys(Path(options.api_keys_file)) if options.api_keys_file else None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers, path = _headers(scope), route_path(scope)
        request_id = headers.get("x-request-id", "")
        is_known = bool(_REQUEST_ID.fullmatch(request_id))
        request_id = request_id if is_known else secrets.token_hex(8)
        facts = scope.setdefault("state", {})
        facts["request_id"] = request_id
        answer = _Answer(send, path, request_id, adds_id=not (self._behind_proxy and is_known))
        self._metrics.add("han_requests_in_flight", 1)
        try:
            await self._answered(scope, path, headers, receive, answer)
        finally:
            took_s = time.perf_counter() - began
            route = self._route(path)
            self._metrics.add("han_requests_in_flight", -1)
            self._metrics.count("han_requests_total", route=route, code=str(answer.status))
            self._metrics.observe("han_request_seconds", took_s, route=route)
            told = {name: facts[name] for name in ("texts", "tokens", "retries") if name in facts}
            line = {"request_id": request_id, "method": _method(scope), "route": route, "code": answer.status, "ms": round(took_s * 1e3, 1)}
            log.info(json.dumps({**line, **told, "replica": self._replica}))

    def _route(self, path: str) -> str:
        """The path if it is one of ours: any other would be a client's text in our logs."""
        return path if path in self._paths else "/static" if path.startswith(_PUBLIC_FOLDER) else "other"

    async def _answered(
        self, scope: MutableMapping[str, Any], path: str, headers: dict[str, str], receive: Receive, answer: _Answer
    ) -> None:
        try:
            slow = Problem(408, "slow_upload", f"the body was not complete after {self._options.deadline_s:g} s")
            async with asyncio.timeout(self._options.deadline_s):
                if self._keys and not (path in _PUBLIC or path.startswith(_PUBLIC_FOLDER)):
                    self._keys.check(headers.get("authorization", ""))
                if path in _SCORES:
                    self._room.check()  # before the body is read: to refuse has to cost little
                body = await _read_body(headers, receive, self._options.max_body_bytes)
                slow = Problem(504, "deadline", f"no answer within {self._options.deadline_s:g} s; the work was cancelled")
                await _until_gone(self._app(scope, _replay(body), answer), receive, answer)
        except TimeoutError:
            await answer.problem(slow)
        except Problem as problem:
            await answer.problem(problem)
        except _Gone:
            answer.status = CLIENT_LEFT
        except Exception as error:  # a message may quote what was sent, so only the kind is logged
            at = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(at.filename).name}:{at.lineno}"
            fault = {"request_id": answer.request_id, "fault": type(error).__name__, "at": place, "replica": self._replica}
            log.error(json.dumps(fault))
            await answer.problem(FAULT)


class _Gone(Exception):
    """The client has left."""


class _Answer:
    """Sends on what the app sends, with the headers that every answer has, and remembers the status."""

    def __init__(self, send: Send, path: str, request_id: str, *, adds_id: bool) -> None:
        self._send, self._path, self.request_id, self._adds_id = send, path, request_id, adds_id
        self.status = CLIENT_LEFT  # until something is sent
        self.over = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = ((b"x-request-id", self.request_id.encode()),) if self._adds_id else ()
            policy = _CONTENT_SECURITY + _DOCS_IMAGES if self._path == "/docs" else _CONTENT_SECURITY
            headers = [*message.get("headers", ()), *own, (b"content-security-policy", policy.encode()), *_SECURITY_HEADERS]
            message = {**message, "headers": headers}
        self.over = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)

    async def problem(self, problem: Problem) -> None:
        if self.status != CLIENT_LEFT:
            return  # too late: an answer has begun
        headers, body = problem.answer(self.request_id, self._path)
        await self({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


async def _read_body(headers: dict[str, str], receive: Receive, max_bytes: int) -> bytes:
    too_large = Problem(413, "too_large", f"the body is over {max_bytes:,} bytes: send less, or several requests")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
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
        await asyncio.Event().wait()  # nothing more comes; a client that leaves cancels the app
        raise AssertionError

    return receive


async def _until_gone(work: Awaitable[None], receive: Receive, answer: _Answer) -> None:
    """Do the work, but stop it when the client leaves before its answer is complete."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and not answer.over:
            raise _Gone
        await working
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def route_path(scope: MutableMapping[str, Any]) -> str:
    """The path below the prefix that the application is deployed under, as the routes see it: Serve's proxy leaves the prefix in it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] or "/" if root and (path == root or path.startswith(f"{root}/")) else path


def _headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """By lower-case name; of headers that come twice the first, as Serve takes it."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reversed(scope["headers"])}


def _method(scope: MutableMapping[str, Any]) -> str:
    return scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS") else "other"
