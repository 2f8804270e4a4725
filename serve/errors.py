"""Failures as HTTP: a status, a code for programs and a message for people. No message repeats what the client sent."""

from __future__ import annotations

import json

from starlette.responses import Response

from han.types import Refusal

# Every status of a failure, with the text of the OpenAPI document.
MEANINGS = {
    400: "invalid_json: the body is not JSON, not UTF-8, nested too deep, or names a key twice",
    401: "unauthorized: the API key is missing or wrong",
    404: "not_found: there is no such path",
    405: "method_not_allowed: the path does not take this method",
    408: "slow_upload: the body was not complete within the deadline",
    413: "too_large (the body), too_many (texts) or too_long (a text, see field)",
    415: "unsupported_media_type: the body is not plain application/json",
    422: "invalid_request (see field), empty_text (no word in a text) or invalid_utf8 (a lone surrogate)",
    429: "too_many_requests: the queue is full; retry after Retry-After seconds",
    500: "internal, model_crashed (these texts ended the scoring process twice) or invalid_score (the model gave no probability)",
    503: "unavailable: no model is ready to score; retry after Retry-After seconds",
    504: "deadline: no answer within the deadline; the work was cancelled",
}


class Problem(Exception):
    """A failure that is answered with `status` and `code`."""

    def __init__(self, status: int, code: str, message: str, *, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.field, self.retry_after_s = status, code, message, field, retry_after_s

    def response(self, request_id: str, path: str) -> Response:
        """The answer to a request. Below /v2 the error is a string, as KServe's protocol requires."""
        error: object = {"code": self.code, "message": self.message, "field": self.field}
        if path.startswith("/v2"):
            error = f"{self.message} ({self.code}{f', {self.field}' if self.field else ''})"
        headers = {"cache-control": "no-store"}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read
        return Response(json.dumps({"error": error, "request_id": request_id}), self.status, headers, "application/json")


class InvalidScoreError(Exception):
    """The model computed a probability that is not a number from 0 to 1. Raised in a replica, answered by an ingress."""


def refused(refusal: Refusal, field: str) -> Problem:
    """A text that cannot be scored refuses its whole request; `field` names the text."""
    return Problem(413 if refusal.reason == "too_long" else 422, refusal.reason, refusal.message, field=field)


def too_many_requests() -> Problem:
    return Problem(429, "too_many_requests", "the queue is full: retry in a second", retry_after_s=1)


def unavailable(message: str = "no model is ready to score: retry in a second") -> Problem:
    return Problem(503, "unavailable", message, retry_after_s=1)


INTERNAL = Problem(500, "internal", "a fault of the server: quote the request id")
MODEL_CRASHED = Problem(
    500, "model_crashed", "scoring these texts ended the scoring process twice; they are not retried: send them one by one"
)
INVALID_SCORE = Problem(500, "invalid_score", "the model computed a probability that is not a number from 0 to 1")
