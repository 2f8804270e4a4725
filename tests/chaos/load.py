"""Clients of the service. Open loop: each request is sent when it is due. Closed loop: each of N clients waits for its response."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

WAIT_S = 30.0  # longer than any deadline of the service; a request without a response after this time hangs


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    index: int  # of the body
    due_s: float  # when the request was due, since the start of the load
    took_s: float  # from due_s to the last byte; a late start counts, so a stall shows in every request that it delayed
    status: int  # 0: no response
    body: bytes
    headers: dict[str, str]
    error: str  # why there was no response


class Load:
    """Send requests from a separate thread while the `with` block runs. Afterwards `replies` has all replies, and `took_s` the time."""

    def __init__(self, url: str, bodies: Sequence[bytes], *, per_s: float = 0.0, num_clients: int = 0, num_requests: int | None = None):
        """Use either per_s (open loop) or num_clients (closed loop). num_requests: the load ends after this number of requests."""
        self.replies: list[Reply] = []
        self.took_s = 0.0
        self._url, self._bodies, self._per_s, self._num_clients, self._num_requests = url, bodies, per_s, num_clients, num_requests
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()), daemon=True)

    def __enter__(self) -> Load:
        self.began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._num_requests is None:
            self._over.set()
        self._thread.join()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def since_s(self) -> float:
        return time.monotonic() - self.began_s

    async def _send(self) -> None:
        # shorter than the server's keep-alive: the server may close a connection while a request is on its way
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=5)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=WAIT_S)) as session:
            await (self._open(session) if self._per_s else self._closed(session))
        self.took_s = self.since_s()

    async def _open(self, session: aiohttp.ClientSession) -> None:
        numbers = itertools.count() if self._num_requests is None else range(self._num_requests)
        waiting = []
        for number in numbers:
            due_s = number / self._per_s
            await asyncio.sleep(due_s - self.since_s())
            if self._over.is_set():
                break
            waiting.append(asyncio.create_task(self._one(session, number, due_s)))
        await asyncio.gather(*waiting)

    async def _closed(self, session: aiohttp.ClientSession) -> None:
        numbers = iter(itertools.count() if self._num_requests is None else range(self._num_requests))

        async def client() -> None:
            for number in numbers:
                if self._over.is_set():
                    return
                await self._one(session, number, self.since_s())

        await asyncio.gather(*(client() for _ in range(self._num_clients)))

    async def _one(self, session: aiohttp.ClientSession, number: int, due_s: float) -> None:
        index = number % len(self._bodies)
        status, body, headers, error = 0, b"", {}, ""
        try:
            async with session.post(self._url, data=self._bodies[index], headers={"content-type": "application/json"}) as response:
                body = await response.read()
                status, headers = response.status, {name.lower(): value for name, value in response.headers.items()}
        except (aiohttp.ClientError, TimeoutError) as failure:
            error = type(failure).__name__
        took_s = self.since_s() - due_s
        self.replies.append(Reply(index=index, due_s=due_s, took_s=took_s, status=status, body=body, headers=headers, error=error))


def by_status(replies: Sequence[Reply]) -> str:
    """Counts by status, like `200:2390,504:10`. A request without a response is counted by the name of its error."""
    counts = Counter(str(reply.status) if reply.status else reply.error for reply in replies)
    return ",".join(f"{status}:{number}" for status, number in sorted(counts.items())) or "none"


def percentile_ms(replies: Sequence[Reply], percent: float) -> float:
    """A percentile of the latency, as the nearest measured value; 0 without replies."""
    times = sorted(reply.took_s for reply in replies)
    return 1e3 * times[min(len(times) - 1, int(percent / 100 * len(times)))] if times else 0.0


def longest_stall_s(replies: Sequence[Reply]) -> float:
    """The longest time between two responses."""
    ends = sorted(reply.due_s + reply.took_s for reply in replies)
    return max((later - earlier for earlier, later in itertools.pairwise(ends)), default=0.0)
