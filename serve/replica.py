"""The deployment that scores: one artifact behind one queue."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from han.model import artifact
from han.score.scorer import Scored, Scorer, concatenate
from han.types import EffectDetail, UserError
from serve.backend import About, Answer, AnswerDetail, Answers, estimate_tokens
from serve.batching import BatchQueue, Item
from serve.coordinator import keep_reporting, report_begin
from serve.errors import InvalidScoreError
from serve.metrics import Metrics
from serve.options import Options
from serve.score_json import score_json

GOLDEN = "I loved this film. The plot is thin, but the actors are wonderful, and I was never bored!"
_NICE = 10
_STUCK_S = 20.0  # a batch takes a second at most: after this long its thread does not return
_JOB_PIECE_TOKENS = 4_096  # of a batch job, scored at a time: about 70 ms on a CPU


class Model:
    def __init__(self, options: Options, coordinator: DeploymentHandle[Any]) -> None:
        os.nice(_NICE)  # also for the threads that start later: on a busy machine the ingress runs first, so that it refuses in time
        resources = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
        loaded = artifact.load(artifact.find(options.model))
        self._scorer = Scorer(loaded, device="cuda" if resources.get("GPU") else "cpu")
        self._about = About.of(loaded)
        self._golden = float(self._scorer.score_flat([GOLDEN]).probabilities.max())
        if not 0 <= self._golden <= 1:
            raise UserError(f"the model {loaded.fingerprint} computes no probability for a fixed review: train it again")
        self._metrics, self._coordinator, self._is_invalid = Metrics(), coordinator, False
        self._metrics.add("han_model_info", 1, model=loaded.fingerprint)
        self._queue = BatchQueue(self._score_items, batch_tokens=options.batch_tokens, metrics=self._metrics)
        process = serve.get_replica_context().replica_id.unique_id
        self._reporting = asyncio.get_running_loop().create_task(keep_reporting(coordinator, self._metrics, process))

    async def score(self, texts: Sequence[str], attention: AnswerDetail, *, ticket: str | None = None) -> Answers:
        """The JSON of each text's `Score`. ticket: score the texts isolated, and tell the coordinator just before.

        Raises `InvalidScoreError`.
        """
        isolated = (lambda: report_begin(self._coordinator, ticket)) if ticket else None
        return Answers(results=await self._queue.score(texts, attention, isolated=isolated), model=self._scorer.fingerprint)

    async def score_flat(self, texts: Sequence[str], *, model: str, effects: EffectDetail = "none") -> Scored:
        """Score texts of a batch job, as arrays; requests go first. Raises `UserError` unless `model` is this model's fingerprint."""
        if model != self._scorer.fingerprint:
            raise UserError(f"the application now scores with {self._scorer.fingerprint}, the job began with {model}: start the job again")
        self._metrics.count("han_bulk_texts_total", len(texts))
        score = functools.partial(self._scorer.score_flat, effects=effects)
        return concatenate(await self._queue.score_job(pieces(texts, _JOB_PIECE_TOKENS), score))

    async def about(self) -> About:
        return self._about

    async def self_test(self) -> None:
        """Score a fixed review through the queue. Raises `RuntimeError` if the score has changed since the model was loaded."""
        (answer,) = await self._queue.score([GOLDEN], "none")
        if not isinstance(answer, bytes) or not abs(json.loads(answer)["probability"] - self._golden) <= 1e-6:
            raise RuntimeError("the score of a fixed review has changed since the model was loaded")

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        if self._is_invalid:
            raise RuntimeError("the model computed a probability that is not a number from 0 to 1")
        if self._queue.stuck_s() > _STUCK_S:
            raise RuntimeError(f"a batch has been scored for {self._queue.stuck_s():.0f} s")

    def _score_items(self, items: Sequence[Item]) -> list[Answer | Exception]:
        details = [item.attention for item in items]
        scored = self._scorer.score_flat([item.text for item in items], effects=effects_of(details))
        answers: list[Answer | Exception] = [*score_json(scored, self._scorer.labels, self._scorer.fingerprint, details)]
        is_valid = ((scored.probabilities >= 0) & (scored.probabilities <= 1)).all(axis=1)  # false for NaN
        for place in scored.kept[~is_valid].tolist():
            answers[place], self._is_invalid = InvalidScoreError(), True
        return answers


def effects_of(details: Sequence[AnswerDetail]) -> EffectDetail:
    """The effects that a batch of answers needs."""
    if "exact_words" in details:
        return "exact_words"
    return "none" if all(detail == "none" for detail in details) else "sentences"


def pieces(texts: Sequence[str], max_tokens: int) -> list[list[str]]:
    """The texts in order, cut into runs of at most `max_tokens`; a longer text is a run of its own."""
    runs: list[list[str]] = [[]]
    total = 0
    for text in texts:
        total += estimate_tokens(text)
        if total > max_tokens and runs[-1]:
            runs.append([])
            total = estimate_tokens(text)
        runs[-1].append(text)
    return runs
