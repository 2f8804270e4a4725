"""A running application as the scorer of a batch job: `han score --via serve`."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from han.score.scorer import Scored
from han.score.worker import BatchScorer, Task
from han.types import EffectDetail, Mistake
from serve.backend import About

CALL_S = 120.0  # for a batch of the pool, behind the requests that go first
OUTAGE_S = 600.0  # the job fails if the application answers nothing for so long
_PAUSE_S = 0.5


class Deployed:
    """Scores through the replicas that also answer requests."""

    def __init__(self, application: str) -> None:
        """Raises `Mistake` if no such application runs."""
        self._application = application
        try:
            self._handle: Any = serve.get_deployment_handle("Model", application)
        except RayServeException:
            raise Mistake(
                f"no application {application} runs on this Ray: start it, set RAY_ADDRESS to its cluster, or leave out --via serve"
            ) from None
        about: About = self._until_answered(self._handle.about.remote)
        self.labels, self.fingerprint = about.labels, about.model

    def score_flat(self, texts: Sequence[str], *, effects: EffectDetail = "none") -> Scored:
        """As `Scorer.score_flat`, by the model that the job began with; raises `Mistake` if another one is deployed.

        A busy service is retried. If a replica dies, the error is raised once another replica is ready: the pool then isolates the text.
        """
        try:
            scored: Scored = self._until_answered(lambda: self._handle.score_flat.remote([*texts], model=self.fingerprint, effects=effects))
            return scored
        except RayTaskError as error:
            if isinstance(error.cause, Mistake):
                raise error.cause from None
            raise
        except RayActorError:
            self._until_answered(self._handle.about.remote, also=RayActorError)
            raise

    def _until_answered(self, call: Callable[[], Any], also: type[Exception] = TimeoutError) -> Any:
        """The answer of the first call that is not too late or refused. also: another error to retry.

        Raises `ConnectionRefusedError` after `OUTAGE_S`.
        """
        end_s = time.monotonic() + OUTAGE_S
        while True:
            try:
                return call().result(timeout_s=CALL_S)
            except (TimeoutError, BackPressureError, RayServeException, also):
                if time.monotonic() > end_s:
                    message = f"no replica of {self._application} answers: see serve status"
                    raise ConnectionRefusedError(errno.ECONNREFUSED, message) from None
                time.sleep(_PAUSE_S)


def ask(task: Task, *, application: str) -> BatchScorer:
    """A scorer for the workers of a batch job."""
    return Deployed(application)
