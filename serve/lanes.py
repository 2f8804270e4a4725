"""Texts wait here and are scored together: by tokens, never longer than they must, and no short one behind a long one.

A lane scores in a thread of its own: while it is busy texts gather, and all that fit are its next batch; when it is idle a text does not
wait at all. `@serve.batch` cannot do this: without a wait it makes a batch of every request that arrives, busy or not, and it sends a text
that does not fit to the back of its queue (`ray/serve/batching.py` of 2.60).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from han.types import AttentionDetail
from serve.backend import CHARACTERS_A_TOKEN, LONG_TOKENS, Answer
from serve.metrics import Metrics

T = TypeVar("T")
BULK_WAIT_S = 0.25  # a batch job's piece waits so long for a moment without requests, so that it goes on beside an endless stream of them


@dataclass(slots=True, eq=False)
class Item:
    """One text that waits for its answer."""

    text: str
    attention: AttentionDetail
    answer: asyncio.Future[Answer]
    tokens: int
    since_s: float = field(default_factory=time.perf_counter)


class Lanes:
    """Two lanes for requests, short texts and long ones, and a third for batch jobs that gives way to both."""

    def __init__(self, score: Callable[[Sequence[Item]], list[Answer]], *, batch_tokens: int, metrics: Metrics) -> None:
        """score: is called in a thread, answers each item."""
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._num_open = 0  # texts of requests without an answer
        self._short = _Lane(score, batch_tokens, metrics)
        self._long = _Lane(score, batch_tokens, metrics)
        self._bulk = ThreadPoolExecutor(1, "bulk")
        self._one_chunk = asyncio.Lock()

    async def score(self, texts: Sequence[str], attention: Sequence[AttentionDetail]) -> list[Answer]:
        """Answers in the order of the texts, each with its own detail of attention.

        If the caller is cancelled, what is not being scored yet will not be.
        """
        loop = asyncio.get_running_loop()
        items = [
            Item(text, detail, loop.create_future(), len(text) // CHARACTERS_A_TOKEN + 1)
            for text, detail in zip(texts, attention, strict=True)
        ]
        self._num_open += len(items)
        self._quiet.clear()
        try:
            for item in items:
                (self._long if item.tokens > LONG_TOKENS else self._short).put(item)
            return await asyncio.gather(*(item.answer for item in items))
        finally:
            self._num_open -= len(items)
            if self._num_open == 0:
                self._quiet.set()

    async def bulk(self, pieces: Sequence[Sequence[str]], work: Callable[[Sequence[str]], T]) -> list[T]:
        """A batch job's chunk, piece by piece, one chunk at a time; before each piece requests have the chance to go first."""
        loop = asyncio.get_running_loop()
        done: list[T] = []
        async with self._one_chunk:
            for piece in pieces:
                with contextlib.suppress(TimeoutError):  # requests never stop: it has waited long enough
                    await asyncio.wait_for(self._quiet.wait(), BULK_WAIT_S)
                done.append(await loop.run_in_executor(self._bulk, work, piece))
        return done

    def stuck_s(self) -> float:
        """How long the batch that has been scored for longest is being scored."""
        return max(self._short.busy_s(), self._long.busy_s())


class _Lane:
    """First come, first served, as many together as fit."""

    def __init__(self, score: Callable[[Sequence[Item]], list[Answer]], batch_tokens: int, metrics: Metrics) -> None:
        self._score, self._batch_tokens, self._metrics = score, batch_tokens, metrics
        self._waiting: deque[Item] = deque()
        self._thread = ThreadPoolExecutor(1, "lane")
        self._began_s: float | None = None
        self._worker: asyncio.Task[None] | None = None

    def put(self, item: Item) -> None:
        self._waiting.append(item)
        self._metrics.add("han_queue_texts", 1)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    def busy_s(self) -> float:
        return 0.0 if self._began_s is None else time.perf_counter() - self._began_s

    async def _work(self) -> None:
        """Score until nothing waits."""
        while batch := self._take():
            self._began_s = time.perf_counter()
            for item in batch:
                self._metrics.observe("han_queue_seconds", self._began_s - item.since_s)
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._score, batch)
            except Exception as error:
                for item in batch:
                    if not item.answer.done():
                        item.answer.set_exception(error)
            else:
                for item, answer in zip(batch, answers, strict=True):
                    if not item.answer.done():
                        item.answer.set_result(answer)
            self._metrics.observe("han_batch_seconds", self.busy_s())
            self._metrics.observe("han_batch_texts", len(batch))
            self._metrics.observe("han_batch_tokens", sum(item.tokens for item in batch))
            self._began_s = None
        self._worker = None

    def _take(self) -> list[Item]:
        """The next batch: without those whose caller has left, at least one text, no more tokens than fit."""
        batch: list[Item] = []
        total = 0
        while self._waiting and (not batch or total + self._waiting[0].tokens <= self._batch_tokens):
            item = self._waiting.popleft()
            self._metrics.add("han_queue_texts", -1)
            if not item.answer.done():
                batch.append(item)
                total += item.tokens
        return batch
