"""The service with a model that ends its process on one text and returns NaN for another, for tests on Serve."""

# No `from __future__ import annotations` here: Serve reads the annotation of `build`, as in serve/app.py.
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from han.score.scorer import Scored, Scorer
from han.types import EffectDetail
from serve import app, replica
from serve.options import Options

FATAL = "This text ends the process that scores it."
INVALID = "This text has no probability."


class Model(replica.Model):
    def __init__(self, options: Options, coordinator: DeploymentHandle[Any]) -> None:
        super().__init__(options, coordinator)
        self._scorer: Any = _Broken(self._scorer)


class _Broken:
    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.labels, self.fingerprint = scorer, scorer.labels, scorer.fingerprint

    def score_flat(self, texts: Sequence[str], *, effects: EffectDetail = "none") -> Scored:
        if FATAL in texts:
            os._exit(1)
        scored = self._scorer.score_flat(texts, effects=effects)
        probabilities = scored.probabilities.copy()
        probabilities[[texts[index] == INVALID for index in scored.kept]] = np.nan
        return dataclasses.replace(scored, probabilities=probabilities)


def build(options: Options) -> Application:
    app.Model = Model  # type: ignore[misc]  # this process builds nothing else
    return app.build(options)
