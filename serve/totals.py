"""The deployment that adds up what all processes of the service have counted, so that any of them can tell /metrics."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve.metrics import Metrics, Series, Total

SEND_S = 0.2  # between two messages: what a killed process has counted since the last one is lost
_SILENT_S = 3.0
log = logging.getLogger("han.serve")


class Totals:
    """One small process. If it dies the living send all they have counted again; what the dead had counted is gone."""

    def __init__(self) -> None:
        self._total = Total()

    async def put(self, source: str, state: tuple[Series, Series]) -> None:
        self._total.put(source, state)

    async def text(self, source: str, state: tuple[Series, Series]) -> str:
        """The sum over all, with the newest of who asks."""
        self._total.put(source, state)
        return self._total.text(silent_s=_SILENT_S)


async def keep_sending(totals: DeploymentHandle[Any], metrics: Metrics, source: str) -> None:
    """Send what has been counted, for as long as this process lives."""
    while True:
        try:
            await totals.put.remote(source, metrics.state())
        except (RayError, RayServeException) as error:
            log.warning("counts could not be sent: %s", type(error).__name__)
        await asyncio.sleep(SEND_S)
