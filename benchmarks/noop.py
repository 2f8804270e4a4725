"""The service without its work: the same ingress, schema, requests and responses, but an answer that was given once is given from memory.

What is left is the cost of HTTP and of Serve. `build` keeps the way to a replica of Model; `build_door` answers in the ingress itself.
"""

# No `from __future__ import annotations` here: Serve reads the annotations of `build`, as in serve/app.py.
from collections.abc import Sequence
from typing import Any

from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from han.types import AttentionDetail
from serve import app, ingress, replica
from serve.backend import Answers
from serve.options import Options


class Model(replica.Model):
    """Scores a text once."""

    def __init__(self, options: Options, totals: DeploymentHandle[Any]) -> None:
        super().__init__(options, totals)
        self._answered: dict[tuple[str, AttentionDetail], Any] = {}

    async def score(self, texts: Sequence[str], attention: Sequence[AttentionDetail]) -> Answers:
        asked = list(zip(texts, attention, strict=True))
        if not all(each in self._answered for each in asked):
            self._answered |= zip(asked, (await super().score(texts, attention)).results, strict=True)
        return Answers(results=[self._answered[each] for each in asked], model=self._scorer.fingerprint)


class Replicas(ingress.Replicas):
    """Asks a replica once."""

    async def score(self, texts: Sequence[str], attention: AttentionDetail) -> Answers:
        asked = (attention, *texts)
        answered: dict[tuple[str, ...], Answers] = self.__dict__.setdefault("answered", {})
        if asked not in answered:
            answered[asked] = await super().score(texts, attention)
        return answered[asked]


class Ingress(ingress.Ingress):
    """Keeps the answers of its replicas."""

    def __init__(self, model: DeploymentHandle[Any], totals: DeploymentHandle[Any], options: Options) -> None:
        super().__init__(model, totals, options)
        self._replicas.__class__ = Replicas


def build(options: Options) -> Application:
    app.Model = Model  # type: ignore[misc]  # this process builds nothing else
    return app.build(options)


def build_door(options: Options) -> Application:
    app.Ingress = Ingress  # type: ignore[misc]
    return app.build(options)
