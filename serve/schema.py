"""The shapes of requests and answers: they check what is sent, and they are the schemas of the OpenAPI document.

Any bytes are read in time linear in their number.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from han.types import AttentionDetail, Score
from serve.backend import AnswerDetail
from serve.errors import MEANINGS, Problem

T = TypeVar("T", bound=BaseModel)
MAX_EXACT_CHARACTERS = 10_000  # of a text with exact effects of words: their time grows with the words times the sentences
MAX_CHARACTERS, MAX_TEXTS = 50_000, 32  # defaults, for the document; the limits in force are the model's and the options'


def _check_number(texts: Any, info: ValidationInfo) -> Any:
    """Check the number of texts before any of them, so that a million elements cost little."""
    most = (info.context or {}).get("max_texts", MAX_TEXTS)
    if isinstance(texts, list) and len(texts) > most:
        field = "inputs" if info.field_name == "inputs" else f"inputs[0].{info.field_name}"
        raise Problem(413, "too_many", f"{len(texts):,} texts; a request may have {most:,}: send several requests", field=field)
    if isinstance(texts, list) and not texts:
        raise PydanticCustomError("invalid", "the list of texts is empty")
    return texts


def _check_text(text: Any) -> Any:
    if not isinstance(text, str):
        raise PydanticCustomError("invalid", "a text is a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("invalid_utf8", "the text has half of a surrogate pair") from None
    return text


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # JSON has one kind of number


Text = Annotated[str, BeforeValidator(_check_text), Field(json_schema_extra={"maxLength": MAX_CHARACTERS})]
Texts = Annotated[list[Text], BeforeValidator(_check_number), Field(json_schema_extra={"minItems": 1, "maxItems": MAX_TEXTS})]
TextOrTexts = Annotated[
    Annotated[Text, Tag("one")] | Annotated[Texts, Tag("many")],
    Discriminator(
        lambda value: "one" if isinstance(value, str) else "many" if isinstance(value, list) else None,
        custom_error_type="invalid",
        custom_error_message="inputs is a text or a list of texts",
    ),
]
Size = Annotated[int, Field(ge=1), BeforeValidator(_as_integer)]


class ScoreRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"inputs": "I loved it. Not dull for a minute!", "attention": "words"}]}
    )

    inputs: TextOrTexts = Field(description="a review, or a list of them")
    attention: AttentionDetail = Field("words", description="how much attention an answer has")
    effects: Literal["sentences", "exact_words"] = Field(
        "sentences",
        description='effects of the sentences, or of every word too, exactly; "exact_words" takes one review '
        f'of at most {MAX_EXACT_CHARACTERS:,} characters, and attention "words"',
    )

    @model_validator(mode="after")
    def _check_effects(self) -> ScoreRequest:
        if self.effects == "exact_words" and (self.attention != "words" or len(self.texts) > 1):
            raise PydanticCustomError("invalid", 'effects "exact_words" takes one review, and attention "words"')
        if self.effects == "exact_words" and len(self.texts[0]) > MAX_EXACT_CHARACTERS:
            raise PydanticCustomError("invalid", f'effects "exact_words" takes at most {MAX_EXACT_CHARACTERS:,} characters')
        return self

    @property
    def detail(self) -> AnswerDetail:
        """What an answer contains."""
        return "exact_words" if self.effects == "exact_words" else self.attention

    @property
    def texts(self) -> list[str]:
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @property
    def fields(self) -> list[str]:
        """The name of each text in an error."""
        return ["inputs"] if isinstance(self.inputs, str) else [f"inputs[{place}]" for place in range(len(self.inputs))]


class ScoreAnswer(BaseModel):
    # also of the dataclasses in `Score`: their docstrings are the descriptions
    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_serialization_defaults_required=True)

    results: list[Score] = Field(description="one for each text, in the order of the request")
    model: str = Field(description="fingerprint of the model that scored all of them")
    request_id: str


class Limits(BaseModel):
    max_body_bytes: int
    max_texts: int = Field(description="in a request")
    max_characters: int = Field(description="of a text")
    deadline_s: float


class ModelAnswer(BaseModel):
    model: str = Field(description="fingerprint: equal means the same answer to every text")
    labels: list[str]
    metrics: dict[str, Any] = Field(description="metrics on the development split and, if measured, on the test split")
    limits: Limits
    request_id: str


class Sample(BaseModel):
    review_id: str
    text: str
    label: str | None


class Error(BaseModel):
    code: str = Field(description="for programs")
    message: str = Field(description="for people; never repeats what was sent")
    field: str | None = Field(description="the part of the request, e.g. inputs[3]")


class ErrorAnswer(BaseModel):
    error: Error
    request_id: str


class TextTensor(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Literal["text"]
    shape: Annotated[list[Size], Field(fail_fast=True, min_length=1, max_length=2, description="[n] or [n, 1] for n texts, else 422")]
    datatype: Literal["BYTES"]
    data: Texts
    parameters: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_shape(self) -> TextTensor:
        if self.shape not in ([len(self.data)], [len(self.data), 1]):
            raise PydanticCustomError("invalid", "shape is [n] or [n, 1] for n texts")
        return self


class InferRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["I loved it."]}]}]},
    )

    inputs: Annotated[list[TextTensor], Field(fail_fast=True, min_length=1, max_length=1)]
    id: Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None
    parameters: dict[str, Any] | None = None
    outputs: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = Field(
        None, description="accepted; all outputs are sent anyway"
    )


class Tensor(BaseModel):
    name: Literal["label", "probability", "score"]
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    data: list[Any] = Field(description="score: the JSON of a Score, in a string")


class InferAnswer(BaseModel):
    model_name: Literal["han"]
    model_version: str = Field(description="fingerprint")
    id: str
    outputs: list[Tensor]


class InferError(BaseModel):
    error: str
    request_id: str


ALWAYS = (408, 413, 500, 504)
SCORING = (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)


def documented(*statuses: int, body: type[BaseModel] | None = None, error: type[BaseModel] = ErrorAnswer) -> dict[str, Any]:
    """What a route says of itself: its failures (404 and 405 belong to no route), its API key, and the body that it reads by itself."""
    failures = {status: {"model": error, "description": MEANINGS[status]} for status in sorted({*ALWAYS, *statuses})}
    extra: dict[str, Any] = {"security": [{}, {"key": []}]} if 401 in statuses else {}
    if body:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
        extra["requestBody"] = {"required": True, "content": content}
    return {"responses": failures, "openapi_extra": extra}


def read_request(request: Request, kind: type[T], *, max_texts: int) -> T:
    """The body, which the middleware has read, as a `kind`, checked by the model that the OpenAPI document describes."""
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
