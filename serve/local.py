"""The service in one process, without Ray: `uvicorn --factory serve.local:imdb`, for work on the page and for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from han.model import artifact
from han.score.scorer import Scorer
from han.types import AttentionDetail
from serve.answers import answers
from serve.api import make_app
from serve.backend import About, Answers
from serve.guard import Guard
from serve.metrics import Metrics, text
from serve.options import Options


def imdb() -> Guard:
    """The shipped model with the limits it has on Serve."""
    return app(artifact.load(artifact.find("imdb")), Options())


def app(model: artifact.Artifact, options: Options) -> Guard:
    metrics = Metrics()
    return make_app(Local(model, metrics), options, metrics, replica="local", behind_proxy=False)


class Local:
    """A `Backend` that scores here and now, a request at a time."""

    def __init__(self, model: artifact.Artifact, metrics: Metrics) -> None:
        self._scorer, self._metrics = Scorer(model), metrics
        self._about = About(
            model=model.fingerprint,
            labels=model.labels,
            metrics=model.metrics,
            max_characters=model.encoder.tokeniser.config.max_characters,
        )

    async def score(self, texts: Sequence[str], attention: AttentionDetail) -> Answers:
        scored = await asyncio.to_thread(self._scorer.score_flat, texts)
        results = answers(scored, labels=self._scorer.labels, fingerprint=self._scorer.fingerprint, attention=[attention] * len(texts))
        return Answers(results=results, model=self._scorer.fingerprint)

    async def about(self) -> About:
        return self._about

    async def self_test(self) -> None:
        return

    async def metrics(self) -> str:
        return text(self._metrics.state())
