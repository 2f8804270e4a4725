"""Requests that have to wait anyway share a call: a call to a replica costs 2 ms of a CPU, as much as half a review.

While few calls are under way a request is sent at once, by itself. Beyond that requests gather, and the next call takes all that fit.
A long request goes by itself, since a call is answered as a whole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from han.types import AttentionDetail
from serve.backend import CHARACTERS_A_TOKEN, LONG_TOKENS, Answers

MAX_CALLS = 6  # under way at once: two batches ahead for each of three replicas

Call = Callable[[Sequence[str], Sequence[AttentionDetail]], Awaitable[Answers]]


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request, and the call that it is part of once there is one."""

    texts: Sequence[str]
    attention: AttentionDetail
    tokens: int
    answer: asyncio.Future[Answers]
    bundle: list[_Waiting] | None = None
    call: asyncio.Task[None] | None = None


class Bundles:
    """Between requests and calls."""

    def __init__(self, call: Call) -> None:
        """call: score texts, each with its own detail of attention."""
        self._call = call
        self._waiting: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def score(self, texts: Sequence[str], attention: AttentionDetail) -> Answers:
        """A request's answers. A call stops when all its requests are gone."""
        tokens = sum(map(len, texts)) // CHARACTERS_A_TOKEN
        request = _Waiting(texts, attention, tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._send()
        try:
            return await request.answer
        finally:
            if request.call and request.bundle and all(each.answer.done() for each in request.bundle):
                request.call.cancel()

    def _send(self) -> None:
        while len(self._calls) < MAX_CALLS and (bundle := self._take()):
            call = asyncio.create_task(self._answer(bundle))
            for request in bundle:
                request.bundle, request.call = bundle, call
            self._calls.add(call)
            call.add_done_callback(self._done)

    def _done(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._send()

    def _take(self) -> list[_Waiting]:
        """The next requests that fit one call, without those that are gone."""
        bundle: list[_Waiting] = []
        total = 0
        while self._waiting and (not bundle or total + self._waiting[0].tokens <= LONG_TOKENS):
            request = self._waiting.popleft()
            if not request.answer.done():
                bundle.append(request)
                total += request.tokens
        return bundle

    async def _answer(self, bundle: list[_Waiting]) -> None:
        texts = [text for request in bundle for text in request.texts]
        details = [request.attention for request in bundle for _ in request.texts]
        try:
            answers = await self._call(texts, details)
        except Exception as error:
            for request in bundle:
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        first = 0
        for request in bundle:
            own = answers.results[first : first + len(request.texts)]
            first += len(request.texts)
            if not request.answer.done():
                request.answer.set_result(Answers(results=own, model=answers.model, retries=answers.retries))
