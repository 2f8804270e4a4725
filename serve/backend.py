"""The interface between the HTTP routes and the model: replicas on Serve, one process without Ray, or a fake in a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from han.model.artifact import Artifact
from han.types import AttentionDetail, Refusal

Answer: TypeAlias = bytes | Refusal  # the JSON of a `Score`, or the reason why there is none
AnswerDetail: TypeAlias = AttentionDetail | Literal["exact_words"]  # exact_words: attention of words, and their effects
CHARACTERS_A_TOKEN = 4  # 4.3 on IMDB: close enough to bound the work before a text is tokenised


def estimate_tokens(text: str) -> int:
    """Tokens of a text, estimated from its length; at least 1."""
    return len(text) // CHARACTERS_A_TOKEN + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers of one replica to the texts of a request."""

    results: list[Answer]  # one for each text, in the order of the request
    model: str  # fingerprint of the artifact that scored all of them
    retries: int = 0  # times the request was sent again


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The body of `GET /v1/model`."""

    model: str  # fingerprint
    labels: tuple[str, ...]
    metrics: dict[str, Any]
    max_characters: int  # of a text

    @classmethod
    def of(cls, model: Artifact) -> About:
        limit = model.encoder.tokeniser.config.max_characters
        return cls(model=model.fingerprint, labels=model.labels, metrics=model.metrics, max_characters=limit)


class Backend(Protocol):
    """Every call may raise `Problem`. Cancelling a call stops its work."""

    async def score(self, texts: Sequence[str], attention: AnswerDetail) -> Answers: ...

    async def about(self) -> About: ...

    async def self_test(self) -> None:
        """Return if a fixed review scores as it did when the model was loaded."""

    async def metrics(self) -> str:
        """The sums over all processes in Prometheus's text format."""
