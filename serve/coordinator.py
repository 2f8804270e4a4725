"""One small process that all others report to: it sums their metrics and remembers which isolated requests have begun."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.metrics import Metrics, Series, TotalMetrics

REPORT_S = 0.2  # between two reports: a process that is killed loses the counts since its last one
_NUM_TICKETS = 10_000  # a ticket is needed for seconds
log = logging.getLogger("han.serve")


class Coordinator:
    """If it dies, the living processes report their totals again; the counts of processes that ended are lost."""

    def __init__(self) -> None:
        self._total = TotalMetrics()
        self._begun: deque[str] = deque(maxlen=_NUM_TICKETS)

    async def put(self, process: str, state: tuple[Series, Series]) -> None:
        self._total.put(process, state)

    async def metrics(self, process: str, state: tuple[Series, Series]) -> str:
        """The sums over all processes in Prometheus's text format, with the caller's newest state."""
        self._total.put(process, state)
        return self._total.text()

    async def begin(self, ticket: str) -> None:
        """A replica scores the isolated request of this ticket now, and nothing else."""
        self._begun.append(ticket)

    async def has_begun(self, ticket: str) -> bool:
        return ticket in self._begun


async def keep_reporting(coordinator: DeploymentHandle[Any], metrics: Metrics, process: str) -> None:
    """Report the metrics of this process until it ends."""
    while True:
        try:
            await coordinator.put.remote(process, metrics.state())
        except (RayError, RayServeException) as error:
            log.warning("metrics could not be reported: %s", type(error).__name__)
        await asyncio.sleep(REPORT_S)


async def report_begin(coordinator: DeploymentHandle[Any], ticket: str) -> None:
    """Tell the coordinator that an isolated request begins; without a coordinator it begins all the same."""
    with contextlib.suppress(RayError, RayServeException):
        await coordinator.begin.remote(ticket)
