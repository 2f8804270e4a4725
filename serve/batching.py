"""The one queue of a replica. It batches by length: short texts never wait for a long one, batch jobs give way to both.

One thread scores short texts, one long texts. Texts gather while their thread is busy; all that fit are its next batch. When the thread
is idle a text does not wait. `@serve.batch` cannot do this: without a timeout it makes a batch of every request, busy or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serve.backend import Answer, AnswerDetail, estimate_tokens
from serve.metrics import Metrics

T = TypeVar("T")
LONG_TOKENS = 2_048  # a longer text takes 40 ms and more, a median review 6 ms
JOB_WAIT_S = 0.25  # longest wait of a batch job's piece for a moment without requests: the job advances under endless load


@dataclass(slots=True, eq=False)
class Item:
    text: str
    attention: AnswerDetail
    answer: asyncio.Future[Answer]
    tokens: int
    since_s: float = field(default_factory=time.perf_counter)


ScoreItems = Callable[[Sequence[Item]], Sequence[Answer | Exception]]


class BatchQueue:
    """Texts of requests in batches, pieces of batch jobs between them, isolated requests with nothing beside them."""

    def __init__(self, score: ScoreItems, *, batch_tokens: int, metrics: Metrics) -> None:
        """score: called in a thread; returns an answer or an exception for each item."""
        self._score, self._batch_tokens, self._metrics = score, batch_tokens, metrics
        self._short, self._long = (_Line(ThreadPoolExecutor(1, name)) for name in ("short", "long"))
        self._job_thread = ThreadPoolExecutor(1, "job")
        self._job, self._isolation = asyncio.Lock(), asyncio.Lock()
        self._num_open, self._quiet = 0, asyncio.Event()  # texts of requests without an answer
        self._quiet.set()
        self._began_s: dict[asyncio.Future[Any], float] = {}  # by batch that a thread scores now

    async def score(
        self, texts: Sequence[str], attention: AnswerDetail, *, isolated: Callable[[], Awaitable[Any]] | None = None
    ) -> list[Answer]:
        """Answers in the order of the texts. Cancelling the call removes the texts that no batch holds yet.

        isolated: score these texts while nothing else runs in this replica; awaited just before.
        """
        loop = asyncio.get_running_loop()
        items = [Item(text, attention, loop.create_future(), estimate_tokens(text)) for text in texts]
        self._num_open += len(items)
        self._quiet.clear()
        try:
            if isolated:
                async with self._isolation:
                    if self._began_s:
                        await asyncio.wait(self._began_s)
                    await isolated()
                    await self._resolve(items, self._start(self._long.thread, self._score, items))
            else:
                for item in items:
                    self._put(item, self._long if item.tokens > LONG_TOKENS or attention == "exact_words" else self._short)
            return await asyncio.gather(*(item.answer for item in items))
        finally:
            self._num_open -= len(items)
            if self._num_open == 0:
                self._quiet.set()

    async def score_job(self, pieces: Sequence[Sequence[str]], score: Callable[[Sequence[str]], T]) -> list[T]:
        """The results of a batch job's pieces, one job at a time. Requests may go first before each piece."""
        results: list[T] = []
        async with self._job:
            for piece in pieces:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._quiet.wait(), JOB_WAIT_S)
                async with self._isolation:
                    running = self._start(self._job_thread, score, piece)
                results.append(await asyncio.shield(running))
        return results

    def stuck_s(self) -> float:
        """Age of the oldest batch that is being scored, a batch job's included; 0 if none is."""
        return time.perf_counter() - min(self._began_s.values()) if self._began_s else 0.0

    def _put(self, item: Item, line: _Line) -> None:
        line.waiting.append(item)
        self._metrics.add("han_queue_texts", 1)
        if line.worker is None:
            line.worker = asyncio.create_task(self._work(line))

    async def _work(self, line: _Line) -> None:
        """Score until nothing waits."""
        while line.waiting:
            async with self._isolation:
                batch = self._next_batch(line.waiting)
                running = self._start(line.thread, self._score, batch) if batch else None
            if running:
                await self._resolve(batch, running)
        line.worker = None

    def _next_batch(self, waiting: deque[Item]) -> list[Item]:
        """At least one item and no more tokens than fit, without the items whose caller has left."""
        batch: list[Item] = []
        total = 0
        while waiting and (not batch or total + waiting[0].tokens <= self._batch_tokens):
            item = waiting.popleft()
            self._metrics.add("han_queue_texts", -1)
            if not item.answer.done():
                batch.append(item)
                total += item.tokens
        return batch

    async def _resolve(self, batch: Sequence[Item], running: asyncio.Future[Sequence[Answer | Exception]]) -> None:
        """Give each item of a running batch its answer."""
        began_s = time.perf_counter()
        try:
            results = await asyncio.shield(running)
        except Exception as error:
            results = [error] * len(batch)
        for item, result in zip(batch, results, strict=True):
            self._metrics.observe("han_queue_seconds", began_s - item.since_s)
            if item.answer.done():
                continue
            if isinstance(result, Exception):
                item.answer.set_exception(result)
            else:
                item.answer.set_result(result)
        self._metrics.observe("han_batch_seconds", time.perf_counter() - began_s)
        self._metrics.observe("han_batch_texts", len(batch))
        self._metrics.observe("han_batch_tokens", sum(item.tokens for item in batch))

    def _start(self, thread: ThreadPoolExecutor, function: Callable[[Any], T], argument: Any) -> asyncio.Future[T]:
        """Run in a thread, and note since when: the note stays while the thread works, even if the caller leaves."""
        running = asyncio.get_running_loop().run_in_executor(thread, function, argument)
        self._began_s[running] = time.perf_counter()
        running.add_done_callback(self._began_s.pop)
        return running


@dataclass(slots=True, eq=False)
class _Line:
    """The waiting texts of one thread, first come, first served."""

    thread: ThreadPoolExecutor
    waiting: deque[Item] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None
