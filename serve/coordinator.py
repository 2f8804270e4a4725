"""One small process that all others report to: it sums their metrics and remembers which isolated requests have begun."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict, deque
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.metrics import Metrics, Series, text

REPORT_S = 0.2  # between two reports: a process that is killed loses the counts since its last one
_SILENT_S = 3.0  # a process that is silent for longer has no gauges
_ENDED_S = 600.0  # a process that is silent for longer has ended: its counts are kept as one sum
_NUM_TICKETS = 10_000  # a ticket is needed for seconds
log = logging.getLogger("han.serve")


class Coordinator:
    """The counts of a process that ended stay in the sums; its gauges go.

    If the coordinator dies, the living processes report their totals again; the counts of processes that ended are lost.
    """

    def __init__(self) -> None:
        self.states: dict[str, tuple[float, Series, Series]] = {}  # time, counts and gauges of the last report, by process
        self._ended: defaultdict[str, float] = defaultdict(float)
        self._begun: deque[str] = deque(maxlen=_NUM_TICKETS)

    async def put(self, process: str, state: tuple[Series, Series]) -> None:
        """Replace the state of a process."""
        now_s = time.monotonic()
        self.states[process] = (now_s, *state)
        for ended in [name for name, (seen_s, *_) in self.states.items() if now_s - seen_s > _ENDED_S]:
            for key, value in self.states.pop(ended)[1].items():
                self._ended[key] += value

    async def metrics(self, process: str, state: tuple[Series, Series]) -> str:
        """The sums over all processes in Prometheus's text format, with the caller's newest state."""
        await self.put(process, state)
        now_s = time.monotonic()
        gauges = [gauges for seen_s, _, gauges in self.states.values() if now_s - seen_s <= _SILENT_S]
        return text([self._ended, *(counts for _, counts, _ in self.states.values()), *gauges])

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
