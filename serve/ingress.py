"""The deployment that speaks HTTP: the routes of `api`, scored by the replicas of `Model`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import sys
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE  # there is no public way to the HTTP options in force
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from han.types import AttentionDetail, Mistake
from serve.api import make_app
from serve.backend import About, Answers
from serve.bundles import MAX_CALLS, Bundles
from serve.errors import Problem, too_many_requests
from serve.guard import Guard
from serve.metrics import Metrics
from serve.options import Options
from serve.totals import keep_sending

# A request that a replica has taken on dies with it; Serve does not send it to another one. Scoring is pure, so this may.
GONE = (RayActorError, ReplicaUnavailableError, TaskCancelledError)
# A replica that says nothing may be stuck, or may have much to do: so few calls are sent a second time beside the first. All that are
# under way at once may meet one that has just become stuck.
_PATIENCE, _SPARE, _SPARE_A_CALL = 0.4, float(MAX_CALLS), 0.1  # share of the deadline; calls at once, and for each that was answered
_PAUSE_S = 0.05  # before a first retry, twice that before the second, and so on, times 0.5 to 1.5 at random


class Ingress:
    """One process that speaks HTTP."""

    def __init__(self, model: DeploymentHandle[Any], totals: DeploymentHandle[Any], options: Options) -> None:
        controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        check_door(ray.get(controller.get_http_config.remote()).host, options)
        _log_to_stdout()
        self._options, self._replica = options, serve.get_replica_context().replica_id.unique_id
        self._metrics = Metrics()
        self._replicas = Replicas(model, totals, self._metrics, options, source=self._replica)
        self._sending = asyncio.get_running_loop().create_task(keep_sending(totals, self._metrics, self._replica))

    def __serve_build_asgi_app__(self) -> Guard:
        return make_app(self._replicas, self._options, self._metrics, replica=self._replica, behind_proxy=True)


class Replicas:
    """A `Backend` whose replicas may die at any moment."""

    def __init__(
        self, model: DeploymentHandle[Any], totals: DeploymentHandle[Any], metrics: Metrics, options: Options, *, source: str
    ) -> None:
        self._model, self._totals, self._metrics, self._source = model, totals, metrics, source
        self._retries, self._patience_s, self._spare = options.retries, _PATIENCE * options.deadline_s, _SPARE
        self._bundles = Bundles(self._score)

    async def score(self, texts: Sequence[str], attention: AttentionDetail) -> Answers:
        return await self._bundles.score(texts, attention)

    async def about(self) -> About:
        about: About = (await self._call(self._model.about))[0]
        return about

    async def self_test(self) -> None:
        await self._call(self._model.self_test)

    async def metrics(self) -> str:
        told: str = (await self._call(self._totals.text, self._source, self._metrics.state()))[0]
        return told

    async def _score(self, texts: Sequence[str], attention: Sequence[AttentionDetail]) -> Answers:
        answers, retries = await self._call(self._model.score, texts, attention)
        return Answers(results=answers.results, model=answers.model, retries=retries)

    async def _call(self, method: Any, *arguments: Any) -> tuple[Any, int]:
        """What a replica answers, and how often the call was sent again: after a death, or beside one that says nothing for too long."""
        attempt, calls = 0, {self._sent(method, arguments)}
        try:
            while calls:
                more = attempt < self._retries
                patience_s = self._patience_s if more and self._spare >= 1 else None
                done, calls = await asyncio.wait(calls, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for call in sorted(done, key=lambda call: call.exception() is not None):
                    try:
                        answer = call.result()
                        self._spare = min(_SPARE, self._spare + _SPARE_A_CALL)
                        return answer, attempt
                    except GONE:
                        continue
                    except BackPressureError:
                        self._metrics.count("han_shed_total")
                        raise too_many_requests() from None
                    except DeploymentUnavailableError:
                        more = False
                if more and (done or self._spare >= 1):  # others that waited as long may have used it up
                    attempt += 1
                    self._metrics.count("han_retries_total")
                    if done:
                        await asyncio.sleep(_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
                    else:
                        self._spare -= 1
                    calls.add(self._sent(method, arguments))
        finally:
            for call in calls:
                call.cancel()
        raise Problem(503, "unavailable", "no model is ready to score: try again in a second", retry_after_s=1)

    def _sent(self, method: Any, arguments: Sequence[Any]) -> asyncio.Task[Any]:
        return asyncio.create_task(_answer(method.remote(*arguments)))


async def _answer(response: DeploymentResponse[Any]) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def check_door(host: str | None, options: Options) -> None:
    """Whoever reaches the port may use it, Ray's token or not: beyond this machine that asks for a key."""
    if options.api_keys_file or options.insecure or _is_loopback(host):
        return
    raise Mistake(
        f"Serve listens on {host}, so any machine that reaches it may use it, and there is no API key: set http_options.host to "
        "127.0.0.1, or give api_keys_file=FILE with one key a line, or insecure=true"
    )


def _is_loopback(host: str | None) -> bool:
    try:
        return host in (None, "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _log_to_stdout() -> None:
    """A line of JSON for each request, which Ray keeps in its worker-*.out files."""
    logger = logging.getLogger("han.serve")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
