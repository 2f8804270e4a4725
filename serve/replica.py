"""The deployment that scores: one artifact, loaded once, behind lanes for requests and for batch jobs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from han.model import artifact
from han.score.scorer import Scored, Scorer
from han.types import AttentionDetail, Mistake
from serve.answers import answers
from serve.backend import CHARACTERS_A_TOKEN, About, Answer, Answers
from serve.lanes import Item, Lanes
from serve.metrics import Metrics
from serve.options import Options
from serve.totals import keep_sending

GOLDEN = "I loved this film. The plot is thin, but the actors are wonderful, and I was never bored!"
_NICE = 10
_STUCK_S = 20.0  # a batch takes a second at most, so after this long its thread will not come back
_BULK_TOKENS = 4_096  # of a batch job scored at a time: about 70 ms on a CPU


class Model:
    """One process that scores."""

    def __init__(self, options: Options, totals: DeploymentHandle[Any]) -> None:
        os.nice(_NICE)  # and with it every thread that it starts: on a busy machine who speaks HTTP goes first, to refuse in time
        resources = ray.get_runtime_context().get_assigned_resources()
        torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
        loaded = artifact.load(artifact.find(options.model))
        self._scorer = Scorer(loaded, device="cuda" if resources.get("GPU") else "cpu")
        self._about = About(
            model=loaded.fingerprint,
            labels=loaded.labels,
            metrics=loaded.metrics,
            max_characters=loaded.encoder.tokeniser.config.max_characters,
        )
        self._golden = self._scorer.score_flat([GOLDEN]).logits
        self._metrics = Metrics()
        self._metrics.add("han_model_info", 1, model=loaded.fingerprint)
        self._lanes = Lanes(self._answers, batch_tokens=options.batch_tokens, metrics=self._metrics)
        self._sending = asyncio.get_running_loop().create_task(
            keep_sending(totals, self._metrics, serve.get_replica_context().replica_id.unique_id)
        )

    async def score(self, texts: Sequence[str], attention: Sequence[AttentionDetail]) -> Answers:
        """Ready JSON for each text, with as much attention as is asked for it."""
        return Answers(results=await self._lanes.score(texts, attention), model=self._scorer.fingerprint)

    async def score_flat(self, texts: Sequence[str], *, model: str) -> Scored:
        """A chunk of a batch job, as arrays. Requests go first. model: the fingerprint that the job began with; another is a `Mistake`."""
        if model != self._scorer.fingerprint:
            raise Mistake(f"the application scores with {self._scorer.fingerprint} by now, the job began with {model}: start the job anew")
        self._metrics.count("han_bulk_texts_total", len(texts))
        return joined(await self._lanes.bulk(pieces(texts, _BULK_TOKENS), self._scorer.score_flat))

    async def about(self) -> About:
        return self._about

    async def self_test(self) -> None:
        """Score the golden review by the way that requests take, and compare with when the model was loaded."""
        await self._lanes.score([GOLDEN], ["none"])
        await asyncio.to_thread(self._compare)

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        if self._lanes.stuck_s() > _STUCK_S:
            raise RuntimeError(f"a batch has been scored for {self._lanes.stuck_s():.0f} s")

    def _compare(self) -> None:
        if not np.allclose(self._scorer.score_flat([GOLDEN]).logits, self._golden, atol=1e-6):
            raise RuntimeError("the golden review scores otherwise than when the model was loaded")

    def _answers(self, items: Sequence[Item]) -> list[Answer]:
        scored = self._scorer.score_flat([item.text for item in items])
        details = [item.attention for item in items]
        return answers(scored, labels=self._scorer.labels, fingerprint=self._scorer.fingerprint, attention=details)


def pieces(texts: Sequence[str], max_tokens: int) -> list[Sequence[str]]:
    """The texts in order, cut into runs of about `max_tokens`; a text of more is a run of its own."""
    runs: list[Sequence[str]] = []
    first = total = 0
    for place, text in enumerate(texts):
        tokens = len(text) // CHARACTERS_A_TOKEN + 1
        if place > first and total + tokens > max_tokens:
            runs.append(texts[first:place])
            first, total = place, 0
        total += tokens
    return [*runs, texts[first:]]


def joined(parts: Sequence[Scored]) -> Scored:
    """The answers to runs of texts as the answer to all of them."""
    offsets = np.cumsum([0, *(len(part.kept) + len(part.refused) for part in parts)]).tolist()
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in Scored.__dataclass_fields__
        if name not in ("kept", "refused")
    }
    return Scored(
        kept=np.concatenate([part.kept + offset for part, offset in zip(parts, offsets, strict=False)]),
        refused=tuple((place + offset, why) for part, offset in zip(parts, offsets, strict=False) for place, why in part.refused),
        **arrays,
    )
