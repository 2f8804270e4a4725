"""A running application as the scorer of a batch job: `han score --via serve`."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from han.score.scorer import Scored
from han.score.worker import BatchScorer, Task
from han.types import EffectDetail, UserError
from serve.backend import About

ANSWER_S = 120.0  # then the service is asked whether it still answers
OUTAGE_S = 600.0  # the job fails if the application answers nothing for so long
_PAUSE_S = 0.5


class Deployed:
    """Scores through the replicas that also answer requests."""

    def __init__(self, application: str) -> None:
        """Raises `UserError` if no such application runs."""
        self._application = application
        try:
            self._handle: Any = serve.get_deployment_handle("Model", application)
        except RayServeException:
            raise UserError(
                f"no application {application} runs on this Ray: start it, set RAY_ADDRESS to its cluster, or leave out --via serve"
            ) from None
        about = self._about()
        self.labels, self.fingerprint = about.labels, about.model

    def score_flat(self, texts: Sequence[str], *, effects: EffectDetail = "none") -> Scored:
        """As `Scorer.score_flat`, by the model that the job began with; raises `UserError` if another one is deployed.

        A call waits behind those of all other actors, however long that takes: if it were sent again, its texts would be scored twice. It
        cannot be lost while the service answers, because a replica that dies or hangs is replaced and Ray raises the error of its death.
        That error is raised once another replica is ready: the pool then isolates the text. A call that is refused is sent again.
        """
        call = functools.partial(self._handle.score_flat.remote, [*texts], model=self.fingerprint, effects=effects)
        response = call()
        while True:
            try:
                scored: Scored = response.result(timeout_s=ANSWER_S)
                return scored
            except TimeoutError:
                try:
                    self._about()
                except ConnectionRefusedError:
                    response.cancel()
                    raise
            except (BackPressureError, RayServeException):
                time.sleep(_PAUSE_S)
                self._about()
                response = call()
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            except RayActorError:
                self._about()
                raise

    def _about(self) -> About:
        """What the first replica says that is ready. Raises `ConnectionRefusedError` after `OUTAGE_S`."""
        end_s = time.monotonic() + OUTAGE_S
        while True:
            response = self._handle.about.remote()
            try:
                about: About = response.result(timeout_s=ANSWER_S)
                return about
            except (TimeoutError, BackPressureError, RayServeException, RayActorError):
                response.cancel()
                if time.monotonic() > end_s:
                    message = f"no replica of {self._application} answers: see serve status"
                    raise ConnectionRefusedError(errno.ECONNREFUSED, message) from None
                time.sleep(_PAUSE_S)


def ask(task: Task, *, application: str) -> BatchScorer:
    """A scorer for the workers of a batch job."""
    return Deployed(application)
