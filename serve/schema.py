"""The shapes of requests and answers, for the OpenAPI document. `request` reads what is sent; tests hold the two together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from han.types import AttentionDetail
from serve.errors import MEANINGS

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=50_000)]


class ScoreRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"inputs": "I loved it. Not dull for a minute!", "attention": "words"}]}
    )

    inputs: Text | Annotated[list[Text], Field(min_length=1, max_length=32)] = Field(description="a review, or a list of them")
    attention: AttentionDetail = Field("words", description="how much of the attention is told")


class Word(BaseModel):
    start: int = Field(description="code point in the text that was sent")
    end: int = Field(description="exclusive")
    attention: Share = Field(description="share of its sentence")


class Sentence(BaseModel):
    start: int = Field(description="start of its first word, a code point in the text that was sent")
    end: int = Field(description="end of its last word, exclusive")
    attention: Share = Field(description="share of its review")
    words: list[Word] | None = Field(description='null unless attention is "words"')


class Score(BaseModel):
    label: str
    probability: Share = Field(description="of the label")
    probabilities: dict[str, Share] = Field(description="of each label; they sum to 1")
    sentences: list[Sentence] | None = Field(description='in reading order; null if attention is "none"')
    num_tokens: int
    num_unknown: int = Field(description="tokens that are not in the model's vocabulary")
    num_characters_cut: int = Field(description="code points that the model's limits left out")
    model: str = Field(description="fingerprint of the model")


class ScoreAnswer(BaseModel):
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
    metrics: dict[str, Any] = Field(description="figures on the development split and, if it was ever opened, on the test split")
    limits: Limits
    request_id: str


class Sample(BaseModel):
    review_id: str
    text: str
    label: str | None


class Status(BaseModel):
    status: Literal["ok"]


class Error(BaseModel):
    code: str = Field(description="for programs")
    message: str = Field(description="for people; it does not repeat what was sent")
    field: str | None = Field(description="what it is about, e.g. inputs[3]")


class ErrorAnswer(BaseModel):
    error: Error
    request_id: str


class TextTensor(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Literal["text"]
    shape: list[int] = Field(description="[n] or [n, 1]")
    datatype: Literal["BYTES"]
    data: Annotated[list[Text], Field(min_length=1, max_length=32)]
    parameters: dict[str, Any] | None = None


class InferRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["I loved it."]}]}]},
    )

    inputs: Annotated[list[TextTensor], Field(min_length=1, max_length=1)]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[dict[str, Any]] | None = Field(None, description="taken, and all outputs are sent")


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


class Metadata(BaseModel):
    name: str
    versions: list[str] | None = None
    platform: str | None = None
    inputs: list[dict[str, Any]] | None = None
    outputs: list[dict[str, Any]] | None = None


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


ALWAYS = (408, 413, 500, 504)
SCORING = (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)


def responses(*statuses: int, error: type[BaseModel] = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """What FastAPI is to tell of a route's failures. 404 and 405 belong to no route."""
    return {status: {"model": error, "description": MEANINGS[status], **_headers(status)} for status in sorted({*ALWAYS, *statuses})}


def body(kind: type[BaseModel]) -> dict[str, Any]:
    """The body of a route that reads it by itself."""
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}}
    }


def _headers(status: int) -> dict[str, Any]:
    named = {401: ("WWW-Authenticate", "string"), 429: ("Retry-After", "integer"), 503: ("Retry-After", "integer")}
    if status not in named:
        return {}
    name, kind = named[status]
    return {"headers": {name: {"schema": {"type": kind}}}}
