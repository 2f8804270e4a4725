"""From a body to texts, or to a `Problem`: whatever the bytes are, in time that grows with their number alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

from han.types import AttentionDetail
from serve.errors import Problem

DETAILS: tuple[AttentionDetail, ...] = get_args(AttentionDetail)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    texts: list[str]
    fields: list[str]  # how each text is called in an error
    attention: AttentionDetail


def read_score_request(body: bytes, *, max_texts: int) -> ScoreRequest:
    """`{"inputs": text or [texts], "attention": "none" | "sentences" | "words"}`."""
    values = read_object(body, required={"inputs"}, optional={"attention"})
    attention = values.get("attention", "words")
    if attention not in DETAILS:
        raise Problem(422, "invalid_request", f"attention is one of {', '.join(DETAILS)}", field="attention")
    inputs = values["inputs"]
    if isinstance(inputs, str):
        return ScoreRequest(texts=[_text(inputs, "inputs")], fields=["inputs"], attention=attention)
    if not isinstance(inputs, list):
        raise Problem(422, "invalid_request", "inputs is a text or a list of texts", field="inputs")
    texts = read_texts(inputs, "inputs", max_texts=max_texts)
    return ScoreRequest(texts=texts, fields=[f"inputs[{place}]" for place in range(len(texts))], attention=attention)


def read_texts(values: list[Any], field: str, *, max_texts: int) -> list[str]:
    """1 to `max_texts` texts."""
    if not values:
        raise Problem(422, "invalid_request", "the list of texts is empty", field=field)
    if len(values) > max_texts:
        raise Problem(413, "too_many", f"{len(values):,} texts; a request may have {max_texts:,}: send several", field=field)
    return [_text(value, f"{field}[{place}]") for place, value in enumerate(values)]


def read_object(body: bytes, *, required: set[str], optional: set[str]) -> dict[str, Any]:
    """A JSON object with these keys. The standard parser, told to refuse what it would let pass: NaN, and a key named twice."""
    try:
        values = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError):  # not UTF-8, no JSON, a number of too many digits; nested too deep
        raise Problem(400, "invalid_json", "the body is not JSON in UTF-8 with each key once") from None
    if not isinstance(values, dict):
        raise Problem(422, "invalid_request", "the body is not a JSON object")
    for name in sorted(required - values.keys()):
        raise Problem(422, "invalid_request", f"{name} is missing", field=name)
    if values.keys() - required - optional:
        names = ", ".join(sorted(required | optional))
        raise Problem(422, "invalid_request", f"the body has a key that is not known; there are {names}")
    return values


def check_content_type(content_type: str, content_encoding: str) -> None:
    """Plain JSON only: neither a form that a browser sends across sites unasked, nor a compressed bomb."""
    kind, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8") or content_encoding not in ("", "identity"):
        raise Problem(415, "unsupported_media_type", "send Content-Type: application/json, UTF-8, without Content-Encoding")


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise Problem(422, "invalid_request", "a text is a string", field=field)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Problem(422, "invalid_utf8", "the text has half of a surrogate pair", field=field) from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
