"""What goes wrong, as HTTP: a status, a code for programs, a message for people, and never a word of what was sent."""

from __future__ import annotations

import json

from han.types import Refusal

# Every answer that is not a success. The text is what the OpenAPI document says of it.
MEANINGS = {
    400: "invalid_json: the body is no JSON, not UTF-8, nested too deep, or names a key twice",
    401: "unauthorized: the API key is missing or wrong",
    404: "not_found: there is no such path",
    405: "method_not_allowed: the path does not take this method",
    408: "slow_upload: the body was not complete within the deadline",
    413: "too_large (the body), too_many (texts) or too_long (a text, see field)",
    415: "unsupported_media_type: the body is not plain application/json",
    422: "invalid_request (see field), empty_text (no word in a text) or invalid_utf8 (a lone surrogate)",
    429: "too_many_requests: as much is waiting as may wait; try again after Retry-After seconds",
    500: "internal: a fault of the server; the log has its cause by the request id",
    503: "unavailable: no model is ready to score; try again after Retry-After seconds",
    504: "deadline: no answer within the deadline; the work was cancelled",
}


class Problem(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, code: str, message: str, *, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.field, self.retry_after_s = status, code, message, field, retry_after_s

    def answer(self, request_id: str, path: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and JSON; paths of KServe's protocol want a string."""
        told: object = {"code": self.code, "message": self.message, "field": self.field}
        if path.startswith("/v2"):
            told = f"{self.message} ({self.code}{f', {self.field}' if self.field else ''})"
        body = json.dumps({"error": told, "request_id": request_id}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "cache-control": "no-store"}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status in (408, 413):
            headers["connection"] = "close"  # what is left of the body is not read
        return [(name.encode(), value.encode()) for name, value in headers.items()], body


def refused(refusal: Refusal, field: str) -> Problem:
    """One text that cannot be scored refuses the request: who sends a list finds out which one, and nothing is left out silently."""
    return Problem(413 if refusal.reason == "too_long" else 422, refusal.reason, refusal.message, field=field)


def too_many_requests() -> Problem:
    """As much is under way as may be."""
    return Problem(429, "too_many_requests", "as much is waiting as may wait: try again in a second", retry_after_s=1)


FAULT = Problem(500, "internal", "a fault of the server: quote the request id")
