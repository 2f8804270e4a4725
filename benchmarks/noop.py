"""The service without scoring: the same ingress, schema and calls, but each answer is computed once and then served from memory.

It measures the cost of HTTP and of Serve. `build` keeps the call to a replica of Model; `build_cached` answers in the ingress.
"""

# No `from __future__ import annotations` here: Serve reads the annotations of `build`, as in serve/app.py.
from collections.abc import Sequence
from typing import Any

from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from han.types import AttentionDetail
from serve import app, dispatch, ingress, replica
from serve.backend import Answers
from serve.options import Options


class Model(replica.Model):
    """Scores a text once."""

    def __init__(self, options: Options, coordinator: DeploymentHandle[Any]) -> None:
        super().__init__(options, coordinator)
        self._cache: dict[tuple[str, AttentionDetail], Any] = {}

    async def score(self, texts: Sequence[str], attention: AttentionDetail, *, ticket: str | None = None) -> Answers:
        keys = [(text, attention) for text in texts]
        if not all(key in self._cache for key in keys):
            self._cache |= zip(keys, (await super().score(texts, attention)).results, strict=True)
        return Answers(results=[self._cache[key] for key in keys], model=self._scorer.fingerprint)


class Replicas(dispatch.Replicas):
    """Calls a replica once for each request."""

    async def score(self, texts: Sequence[str], attention: AttentionDetail) -> Answers:
        cache: dict[tuple[str, ...], Answers] = self.__dict__.setdefault("cache", {})
        key = (attention, *texts)
        if key not in cache:
            cache[key] = await super().score(texts, attention)
        return cache[key]


class Ingress(ingress.Ingress):
    """Keeps the answers of its replicas."""

    def __init__(self, model: DeploymentHandle[Any], coordinator: DeploymentHandle[Any], options: Options) -> None:
        ingress.Replicas = Replicas  # type: ignore[misc]  # this process has no other ingress
        super().__init__(model, coordinator, options)


def build(options: Options) -> Application:
    app.Model = Model  # type: ignore[misc]  # this process builds nothing else
    return app.build(options)


def build_cached(options: Options) -> Application:
    app.Ingress = Ingress  # type: ignore[misc]
    return app.build(options)
