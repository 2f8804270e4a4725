"""Applied to every request: an id, a deadline, a bounded body, the key check, security headers, one line of log, one count.

Plain ASGI around the whole app, so it holds whatever the routes do and whatever a client's headers ask of Serve's proxy.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.admission import Admission
from serve.backend import CHARACTERS_A_TOKEN
from serve.errors import INTERNAL, Problem
from serve.keys import Keys
from serve.metrics import Metrics
from serve.options import Options

_UNKNOWN_BYTES = 4_096  # expected of a body that is sent in chunks
_MOST_EXPECTED_TOKENS = 4_096  # of a body; more would let a few slow uploads block all other clients
CLIENT_LEFT = 499  # in logs and metrics only
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Paths that need no API key. Every other path does, also one that does not exist.
_PUBLIC = frozenset(
    {"/", "/docs", "/openapi.json", "/healthz", "/readyz"}
    | {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/han", "/v2/models/han/ready"}
)
_PUBLIC_FOLDER = "/static/"
_PAGES = ("/", "/docs")
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
    def __init__(
        self,
        app: ASGIApp,
        options: Options,
        metrics: Metrics,
        admission: Admission,
        *,
        paths: frozenset[str],
        replica: str,
        behind_proxy: bool,
    ) -> None:
        """paths: all routes of `app`. behind_proxy: Serve's proxy adds the request id that it received to the answer."""
        self._app, self._options, self._metrics, self._admission = app, options, metrics, admission
        self._paths, self._replica, self._behind_proxy = paths, replica, behind_proxy
        self._keys = Keys(Path(options.api_keys_file)) if options.api_keys_file else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, path, request = time.perf_counter(), route_path(scope), Request(scope, receive)
        sent_id = request.headers.get("x-request-id", "")
        keeps_id = bool(_REQUEST_ID.fullmatch(sent_id))
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = sent_id if keeps_id else secrets.token_hex(8)
        response = _Response(request, send, path, adds_id=not (self._behind_proxy and keeps_id))
        self._metrics.add("han_requests_in_flight", 1)
        try:
            await self._respond(request, path, response)
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

    async def _respond(self, request: Request, path: str, response: _Response) -> None:
        late = Problem(408, "slow_upload", f"the body was not complete after {self._options.deadline_s:g} s")
        try:
            async with asyncio.timeout(self._options.deadline_s) as deadline:
                if self._keys and not (path in _PUBLIC or path.startswith(_PUBLIC_FOLDER)):
                    self._keys.check(request.headers.get("authorization", ""))
                expected_bytes = _expected_bytes(request, self._options.max_body_bytes)
                # A body counts before it is read. Under overload reading takes most of the time, and a refusal has to cost little.
                expected_tokens = min(expected_bytes // CHARACTERS_A_TOKEN, _MOST_EXPECTED_TOKENS)
                with self._admission.pending(expected_tokens) if path in _SCORES else nullcontext():
                    request.state.body = await _read_body(request, self._options.max_body_bytes)
                late = Problem(504, "deadline", f"no answer within {self._options.deadline_s:g} s; the work was cancelled")
                watching = asyncio.create_task(_expire_on_disconnect(deadline, request.receive, response))
                try:
                    await self._app(request.scope, request.receive, response)
                finally:
                    watching.cancel()
        except TimeoutError:
            await response.fail(late)
        except Problem as problem:
            await response.fail(problem)
        except ClientDisconnect:
            response.give_up()
        except Exception as error:  # a message may quote what was sent, so only the type is logged
            at = traceback.extract_tb(error.__traceback__)[-1]
            response.fault = {"fault": type(error).__name__, "at": f"{Path(at.filename).name}:{at.lineno}"}
            await response.fail(INTERNAL)


class _Response:
    """Passes on what the app sends, adds the headers of every answer and remembers the status."""

    def __init__(self, request: Request, send: Send, path: str, *, adds_id: bool) -> None:
        self._request, self._send, self._path, self._adds_id = request, send, path, adds_id
        self.status, self._has_begun, self.is_complete = CLIENT_LEFT, False, False  # until something is sent
        self.fault: dict[str, str] = {}  # for the log

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self._has_begun = message["status"], True
            request_id = ((b"x-request-id", self._request.state.request_id.encode()),) if self._adds_id else ()
            policy = _CONTENT_SECURITY + _DOCS_IMAGES if self._path == "/docs" else _CONTENT_SECURITY
            headers = [*message.get("headers", ()), *request_id, (b"content-security-policy", policy.encode()), *_SECURITY_HEADERS]
            if self.status < 400 and (self._path in _PAGES or self._path.startswith(_PUBLIC_FOLDER)):
                headers.append((b"cache-control", b"no-cache"))  # a browser revalidates it each time
            message = {**message, "headers": headers}
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)

    async def fail(self, problem: Problem) -> None:
        """Answer with a problem, unless an answer has begun."""
        if not self._has_begun:
            answer = problem.response(self._request.state.request_id, self._path)
            await answer(self._request.scope, self._request.receive, self)

    def give_up(self) -> None:
        """Send nothing more: the client has left."""
        self.status, self._has_begun = CLIENT_LEFT, True


def _expected_bytes(request: Request, max_bytes: int) -> int:
    length = request.headers.get("content-length", str(_UNKNOWN_BYTES))
    if not length.isdecimal() or len(length) > 18 or int(length) > max_bytes:
        raise _too_large(max_bytes)
    return int(length)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, "too_large", f"the body is over {max_bytes:,} bytes: send several requests")


async def _expire_on_disconnect(deadline: asyncio.Timeout, receive: Receive, response: _Response) -> None:
    """Cancel the work when the client leaves before its answer is complete."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not response.is_complete and not deadline.expired():
        response.give_up()
        deadline.reschedule(0)


def route_path(scope: Scope) -> str:
    """The path below the application's prefix, as the routes see it. Serve's proxy leaves the prefix in `path`."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] or "/" if root and (path == root or path.startswith(f"{root}/")) else path
