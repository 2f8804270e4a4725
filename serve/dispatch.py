"""From an ingress to the replicas, with one retry policy.

A call whose replica died is retried, isolated: nothing else runs in the replica while it is scored, so a text that ends the process is
found and is not retried again. A call without an answer for part of its deadline is hedged: a second call races it, within a retry budget.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Sequence
from typing import Any, TypeAlias

from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.backend import About, AnswerDetail, Answers
from serve.errors import INVALID_SCORE, MODEL_CRASHED, InvalidScoreError, too_many_requests, unavailable
from serve.metrics import Metrics
from serve.options import Options

Response: TypeAlias = Any  # a `DeploymentResponse`: `remote` may also return a generator, as far as its type says
# Serve does not retry a call that a replica had accepted. Scoring changes nothing, so a retry is safe.
DIED = (RayActorError, ReplicaUnavailableError, TaskCancelledError)
HEDGE_AFTER = 0.4  # share of the deadline
BUDGET, BUDGET_PER_ANSWER = 20.0, 0.1  # hedged calls at once, and for each answer: a service that is only slow gets 10% more calls
_BACKOFF_S = 0.05  # before the first retry, doubled for each further one, times 0.5 to 1.5 at random


class Replicas:
    """A `Backend` whose replicas may die at any moment."""

    def __init__(
        self, model: DeploymentHandle[Any], coordinator: DeploymentHandle[Any], metrics: Metrics, options: Options, *, process: str
    ) -> None:
        self._model, self._coordinator, self._metrics, self._process = model, coordinator, metrics, process
        self._retries, self._hedge_after_s, self._budget = options.retries, HEDGE_AFTER * options.deadline_s, BUDGET

    async def score(self, texts: Sequence[str], attention: AnswerDetail) -> Answers:
        try:
            answers, retries = await self._call(self._model.score, texts, attention, isolates=True)
        except InvalidScoreError:
            raise INVALID_SCORE from None
        return Answers(results=answers.results, model=answers.model, retries=retries)

    async def about(self) -> About:
        about: About = (await self._call(self._model.about))[0]
        return about

    async def self_test(self) -> None:
        await self._call(self._model.self_test)

    async def metrics(self) -> str:
        text: str = (await self._call(self._coordinator.metrics, self._process, self._metrics.state()))[0]
        return text

    async def _call(self, method: Any, *arguments: Any, isolates: bool = False) -> tuple[Any, int]:
        """The first answer, and the number of retries and hedges. isolates: a call is isolated after a death, by a new ticket each time."""
        attempts, has_died, calls = 0, False, {_task(method.remote(*arguments))}
        isolation: dict[str, str] = {}
        try:
            while calls:
                may_retry = attempts < self._retries
                hedges = may_retry and not has_died and self._budget >= 1
                done, calls = await asyncio.wait(
                    calls, timeout=self._hedge_after_s if hedges else None, return_when=asyncio.FIRST_COMPLETED
                )
                for call in sorted(done, key=lambda call: call.exception() is not None):
                    try:
                        answer = call.result()
                        self._budget = min(BUDGET, self._budget + BUDGET_PER_ANSWER)
                        return answer, attempts
                    except DIED:
                        has_died = True
                        if isolation and await self._has_begun(**isolation):
                            raise MODEL_CRASHED from None
                    except BackPressureError:
                        self._metrics.count("han_shed_total")
                        raise too_many_requests() from None
                    except DeploymentUnavailableError:
                        may_retry = False
                if not may_retry or (done and calls) or (not done and self._budget < 1):  # others may have spent the budget
                    continue
                attempts += 1
                self._metrics.count("han_retries_total")
                if done:
                    await asyncio.sleep(_BACKOFF_S * 2 ** (attempts - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
                    isolation = {"ticket": secrets.token_hex(8)} if isolates else {}
                else:
                    self._budget -= 1
                calls.add(_task(method.remote(*arguments, **isolation)))
        finally:
            for call in calls:
                call.cancel()
        raise unavailable()

    async def _has_begun(self, ticket: str) -> bool:
        try:
            return bool(await self._coordinator.has_begun.remote(ticket))
        except (RayError, RayServeException):
            return False


def _task(response: Response) -> asyncio.Future[Any]:
    """Wait for a response; cancelling the task cancels the call."""
    task: asyncio.Future[Any] = asyncio.ensure_future(response)
    task.add_done_callback(lambda task: task.cancelled() and response.cancel())
    return task
