"""Admission: one ingress accepts only as many tokens as the replicas can score well before the deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import too_many_requests
from serve.metrics import Metrics
from serve.options import Options

_DEADLINE_SHARE = 0.5  # a request may be expected to wait for half its deadline: the rate is an estimate
_FRESH_S = 10.0  # an older rate is ignored
_WEIGHT = 0.2  # of the newest rate in the moving average


class Admission:
    """Counts the tokens that one ingress has accepted and not answered."""

    def __init__(self, options: Options, metrics: Metrics) -> None:
        self._options, self._metrics = options, metrics
        self._pending_tokens = 0
        self._tokens_per_s: float | None = None
        self._measured_s = 0.0

    def check(self) -> None:
        """Raise `Problem` 429 if a new request would wait too long."""
        rate = self._fresh_rate()
        in_time = float("inf") if rate is None else rate * self._options.deadline_s * _DEADLINE_SHARE
        if self._pending_tokens > min(self._options.max_waiting_tokens, in_time):
            self._metrics.count("han_shed_total")
            raise too_many_requests()

    @contextmanager
    def admitted(self, tokens: int) -> Iterator[None]:
        """Count `tokens` as pending while the body runs. Raises `Problem` 429."""
        self.check()
        self._pending_tokens += tokens
        self._metrics.add("han_tokens_in_flight", tokens)
        pending, began_s, answered = self._pending_tokens, time.monotonic(), False
        try:
            yield
            answered = True
        finally:
            self._pending_tokens -= tokens
            self._metrics.add("han_tokens_in_flight", -tokens)
            took_s = time.monotonic() - began_s
            # Little's law: rate = tokens in the system / time in it. A client that left early says nothing about the rate.
            if pending > self._options.batch_tokens and (answered or took_s > self._options.deadline_s / 2):
                rate = self._fresh_rate()
                self._tokens_per_s = pending / took_s if rate is None else (1 - _WEIGHT) * rate + _WEIGHT * pending / took_s
                self._measured_s = time.monotonic()

    def _fresh_rate(self) -> float | None:
        return self._tokens_per_s if time.monotonic() - self._measured_s <= _FRESH_S else None
