"""What stands behind the HTTP door: something that scores. On Serve it is the replicas, in a test it is whatever the test needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from han.types import AttentionDetail, Refusal
from serve.errors import Problem

Answer: TypeAlias = bytes | Refusal  # ready JSON of a `Score`, or why there is none
CHARACTERS_A_TOKEN = 4  # of IMDB 4.3: near enough to bound work before a text is cut into words
_SELF_TEST_S = 2.0
LONG_TOKENS = 2_048  # a text of more never holds up others: it takes 40 ms and more, a median review 6 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one replica says of a request's texts."""

    results: list[Answer]  # one for each text, in their order
    model: str  # fingerprint of the artifact that scored all of them
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What `GET /v1/model` tells."""

    model: str  # fingerprint
    labels: tuple[str, ...]
    metrics: dict[str, Any]
    max_characters: int  # of a text


class Backend(Protocol):
    """All calls may raise `Problem`; a call that is cancelled stops its work."""

    async def score(self, texts: Sequence[str], attention: AttentionDetail) -> Answers: ...

    async def about(self) -> About: ...

    async def self_test(self) -> None:
        """Return if a fixed review scores as it did when the model was loaded."""

    async def metrics(self) -> str:
        """Everything counted by all processes, as Prometheus reads it."""


async def ready(backend: Backend) -> None:
    """Return if something scores as it should, soon; a `Problem` otherwise."""
    try:
        async with asyncio.timeout(_SELF_TEST_S):
            await backend.self_test()
    except TimeoutError:
        raise Problem(503, "unavailable", f"no model answered within {_SELF_TEST_S:g} s", retry_after_s=1) from None
