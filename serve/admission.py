"""Between the routes and the backend: texts are checked, and only so many tokens admitted as are scored well before the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from starlette.requests import Request

from han.types import Refusal
from serve.backend import AnswerDetail, Answers, Backend, estimate_tokens
from serve.errors import Problem, refused, too_many_requests, unavailable
from serve.metrics import Metrics
from serve.options import Options

_DEADLINE_SHARE = 0.5  # a request may be expected to wait for half its deadline: the rate is an estimate
_FRESH_S = 10.0  # an older rate is ignored
_WEIGHT = 0.2  # of the newest rate in the moving average
_SELF_TEST_S = 2.0
_READY_FOR_S = 1.0  # /readyz needs no key, so any number of callers share one self test a second


class Admission:
    """Counts the tokens that one ingress has accepted and not answered."""

    def __init__(self, options: Options, metrics: Metrics) -> None:
        self._options, self._metrics = options, metrics
        self._pending_tokens = 0
        self._tokens_per_s: float | None = None
        self._measured_s = 0.0

    def check(self) -> None:
        """Raise `Problem` 429 if a new request would wait too long."""
        rate = self._fresh_rate()
        in_time = float("inf") if rate is None else rate * self._options.deadline_s * _DEADLINE_SHARE
        if self._pending_tokens > min(self._options.max_waiting_tokens, in_time):
            self._metrics.count("han_shed_total")
            raise too_many_requests()

    @contextmanager
    def pending(self, tokens: int) -> Iterator[int]:
        """Count `tokens` as pending, and yield all that are. Raises `Problem` 429."""
        self.check()
        self._pending_tokens += tokens
        self._metrics.add("han_tokens_in_flight", tokens)
        try:
            yield self._pending_tokens
        finally:
            self._pending_tokens -= tokens
            self._metrics.add("han_tokens_in_flight", -tokens)

    @contextmanager
    def scored(self, tokens: int) -> Iterator[None]:
        """`pending` while `tokens` are scored, which measures the rate."""
        began_s, answered, pending = time.monotonic(), False, 0
        try:
            with self.pending(tokens) as pending:
                yield
            answered = True
        finally:
            took_s = time.monotonic() - began_s
            # Little's law: rate = tokens in the system / time in it. A client that left early says nothing about the rate.
            if pending > self._options.batch_tokens and (answered or took_s > self._options.deadline_s / 2):
                rate = self._fresh_rate()
                self._tokens_per_s = pending / took_s if rate is None else (1 - _WEIGHT) * rate + _WEIGHT * pending / took_s
                self._measured_s = time.monotonic()

    def _fresh_rate(self) -> float | None:
        return self._tokens_per_s if time.monotonic() - self._measured_s <= _FRESH_S else None


class Scoring:
    def __init__(self, backend: Backend, metrics: Metrics, admission: Admission) -> None:
        self._backend, self._metrics, self._admission = backend, metrics, admission
        self._max_characters: int | None = None
        self._self_test: asyncio.Task[Problem | None] | None = None
        self._tested_s = 0.0

    async def score(self, texts: Sequence[str], fields: Sequence[str], attention: AnswerDetail, request: Request) -> list[bytes]:
        """The JSON of each text's `Score`; `request.state.model` gets the fingerprint.

        fields: the name of each text in an error. Raises `Problem` for the first text that cannot be scored.
        """
        if self._max_characters is None:
            self._max_characters = (await self._backend.about()).max_characters
        for text, field in zip(texts, fields, strict=True):
            if len(text) > self._max_characters:  # the model's own limit, checked before anything is sent to a replica
                message = f"{len(text):,} characters; max_characters is {self._max_characters:,}"
                raise refused(Refusal(reason="too_long", message=message), field)
        request.state.texts, request.state.tokens = len(texts), sum(map(estimate_tokens, texts))
        with self._admission.scored(request.state.tokens):
            answers: Answers = await self._backend.score(texts, attention)
        request.state.retries, request.state.model = answers.retries, answers.model
        results: list[bytes] = []
        for result, field in zip(answers.results, fields, strict=True):
            if isinstance(result, Refusal):
                raise refused(result, field)
            results.append(result)
        self._metrics.count("han_texts_total", len(texts), attention=attention)
        return results

    async def check_ready(self) -> None:
        """Raise `Problem` 503 unless the self test of the last second passed."""
        if self._self_test is None or (self._self_test.done() and time.monotonic() - self._tested_s > _READY_FOR_S):
            self._self_test = asyncio.create_task(self._run_self_test())
        problem = await asyncio.shield(self._self_test)
        if problem:
            raise problem

    async def _run_self_test(self) -> Problem | None:
        try:
            async with asyncio.timeout(_SELF_TEST_S):
                await self._backend.self_test()
        except TimeoutError:
            return unavailable(f"no model answered within {_SELF_TEST_S:g} s")
        except Exception as error:
            return error if isinstance(error, Problem) else unavailable()
        finally:
            self._tested_s = time.monotonic()
        return None
