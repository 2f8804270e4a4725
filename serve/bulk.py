"""A running application as the scorer of a batch job: `jobs.score --via serve`."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException

from han.score.pool import BatchScorer, Task
from han.score.scorer import Scored
from han.types import Mistake
from serve.backend import About

_ANSWER_S = 120.0  # for a batch of the pool, behind requests that go first
_BACK_S = 120.0  # for a replica to come back
_PAUSE_S = 0.5


class Deployed:
    """Passes texts on to the replicas that answer requests too: one batch a caller at a time, and after those that wait at the door."""

    def __init__(self, application: str) -> None:
        """Without such an application it is a `Mistake`."""
        self._application = application
        try:
            self._handle: Any = serve.get_deployment_handle("Model", application)
            about = self._about()
        except RayServeException:
            raise Mistake(
                f"no application {application} runs on this Ray: start it, set RAY_ADDRESS to its cluster, or leave out --via serve"
            ) from None
        self.labels, self.fingerprint = about.labels, about.model

    def score_flat(self, texts: Sequence[str]) -> Scored:
        """As `Scorer.score_flat`, by this object's model or not at all: another one is a `Mistake`.

        A replica that dies under the texts raises, once another is ready: the pool then finds out which text it was.
        """
        try:
            scored: Scored = self._handle.score_flat.remote(list(texts), model=self.fingerprint).result(timeout_s=_ANSWER_S)
        except RayTaskError as error:
            if isinstance(error.cause, Mistake):
                raise error.cause from None
            raise
        except RayActorError:
            self._wait()
            raise
        return scored

    def _wait(self) -> None:
        end = time.monotonic() + _BACK_S
        while True:
            try:
                self._about()
                return
            except (RayActorError, RayServeException, TimeoutError):
                if time.monotonic() > end:
                    told = f"no replica of {self._application} answers: see serve status"
                    raise ConnectionRefusedError(errno.ECONNREFUSED, told) from None
                time.sleep(_PAUSE_S)

    def _about(self) -> About:
        about: About = self._handle.about.remote().result(timeout_s=_BACK_S)
        return about


def ask(task: Task, *, application: str) -> BatchScorer:
    """For `ray_score.score`."""
    return Deployed(application)
