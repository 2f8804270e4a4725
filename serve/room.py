"""How much may wait: so many tokens, and no more than are scored well before the deadline of who comes last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import too_many_requests
from serve.metrics import Metrics
from serve.options import Options

_SHARE = 0.5  # of the deadline, that a request may be expected to wait: an estimate is not a measurement
_FRESH_S = 10.0  # a rate seen longer ago says nothing
_WEIGHT = 0.2  # of the newest rate


class Room:
    """What one ingress has taken on and not answered."""

    def __init__(self, options: Options, metrics: Metrics) -> None:
        self._options, self._metrics = options, metrics
        self._waiting_tokens = 0
        self._tokens_per_s: float | None = None  # while so much waited that it was the replicas that were waited for
        self._seen_s = 0.0

    def check(self) -> None:
        """A `Problem` (429) if a request would have to wait too long."""
        if self._waiting_tokens > min(self._options.max_waiting_tokens, self._in_time()):
            self._metrics.count("han_shed_total")
            raise too_many_requests()

    def _in_time(self) -> float:
        """Tokens that are scored within the part of the deadline that a request may wait."""
        known = self._known_per_s()
        return float("inf") if known is None else known * self._options.deadline_s * _SHARE

    @contextmanager
    def taken(self, tokens: int) -> Iterator[None]:
        """Around the work for a request of so many tokens, once there is room."""
        self.check()
        self._waiting_tokens += tokens
        self._metrics.add("han_tokens_in_flight", tokens)
        ahead, began = self._waiting_tokens, time.monotonic()
        answered = False
        try:
            yield
            answered = True
        finally:
            self._waiting_tokens -= tokens
            self._metrics.add("han_tokens_in_flight", -tokens)
            took_s = time.monotonic() - began
            # By Little's law, what was ahead over the time it took is the rate. Of a client that left soon it is not known.
            if ahead > self._options.batch_tokens and (answered or took_s > self._options.deadline_s / 2):
                self._learn(ahead / took_s)

    def _learn(self, tokens_per_s: float) -> None:
        known = self._known_per_s()
        self._tokens_per_s = tokens_per_s if known is None else (1 - _WEIGHT) * known + _WEIGHT * tokens_per_s
        self._seen_s = time.monotonic()

    def _known_per_s(self) -> float | None:
        return self._tokens_per_s if time.monotonic() - self._seen_s <= _FRESH_S else None
