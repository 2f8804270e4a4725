"""From a body to a request, or to a `Problem`. Any bytes are read in time linear in their number."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from serve.errors import Problem

T = TypeVar("T", bound=BaseModel)


def read_request(request: Request, kind: type[T], *, max_texts: int) -> T:
    """The body, which the middleware has read, as a `kind` of `serve.schema`, checked by the model that the OpenAPI document describes."""
    _check_content_type(request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))
    values = _read_json(request.state.body)
    if not isinstance(values, dict):
        raise Problem(422, "invalid_request", "the body is not a JSON object")
    try:
        return kind.model_validate(values, strict=True, context={"max_texts": max_texts})
    except ValidationError as invalid:
        error = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
        error_type, place = error["type"], error["loc"]
        place = place[:-1] if error_type == "extra_forbidden" else place  # the name of an unknown key is the client's text
        names = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place if part not in ("one", "many")]
        field = "".join(names).removeprefix(".") or None
        raise Problem(422, error_type if error_type == "invalid_utf8" else "invalid_request", error["msg"], field=field) from None


def _read_json(body: bytes) -> Any:
    """The standard parser, but NaN and a key that occurs twice are refused."""
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of too many digits; nested too deep
        raise Problem(400, "invalid_json", "the body is not JSON in UTF-8 with each key once") from None


def _check_content_type(content_type: str, content_encoding: str) -> None:
    """Plain JSON only: no form that a browser sends across sites without asking, and no compressed bomb."""
    kind, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8") or content_encoding not in ("", "identity"):
        raise Problem(415, "unsupported_media_type", "send Content-Type: application/json, UTF-8, without Content-Encoding")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
