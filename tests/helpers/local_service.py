"""The service in one process without Ray, for tests and for work on the page: `uvicorn --factory tests.helpers.local_service:imdb`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from han.model import artifact
from han.score.scorer import Scorer
from han.types import EffectDetail
from serve.api import make_app
from serve.backend import About, AnswerDetail, Answers
from serve.metrics import Metrics, text
from serve.middleware import Middleware
from serve.options import Options
from serve.score_json import score_json


def imdb() -> Middleware:
    """The shipped model with the default limits."""
    return app(artifact.load(artifact.find("imdb")), Options())


def app(model: artifact.Artifact, options: Options) -> Middleware:
    metrics = Metrics()
    return make_app(Local(model, metrics), options, metrics, replica="local", behind_proxy=False)


class Local:
    """A `Backend` that scores each request at once."""

    def __init__(self, model: artifact.Artifact, metrics: Metrics) -> None:
        self._scorer, self._metrics, self._about = Scorer(model), metrics, About.of(model)

    async def score(self, texts: Sequence[str], attention: AnswerDetail) -> Answers:
        effects: EffectDetail = "sentences" if attention in ("words", "sentences") else attention
        scored = await asyncio.to_thread(self._scorer.score_flat, texts, effects=effects)
        results = score_json(scored, self._scorer.labels, self._scorer.fingerprint, [attention] * len(texts))
        return Answers(results=results, model=self._scorer.fingerprint)

    async def about(self) -> About:
        return self._about

    async def self_test(self) -> None:
        return

    async def metrics(self) -> str:
        return text(self._metrics.state())
