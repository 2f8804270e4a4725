"""The service with a model that ends its process on one text, for tests on Serve."""

# No `from __future__ import annotations` here: Serve reads the annotation of `build`, as in serve/app.py.
import os
from collections.abc import Sequence

from ray.serve import Application

from serve import app, replica
from serve.backend import Answer
from serve.batching import Item
from serve.options import Options

FATAL = "This text ends the process that scores it."


class Model(replica.Model):
    def _score_items(self, items: Sequence[Item]) -> list[Answer | Exception]:
        if any(item.text == FATAL for item in items):
            os._exit(1)
        return super()._score_items(items)


def build(options: Options) -> Application:
    app.Model = Model  # type: ignore[misc]  # this process builds nothing else
    return app.build(options)
