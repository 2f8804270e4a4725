"""Which replica gets a call: the less busy of two, among those that respond.

Serve's own router counts the calls of a replica. A stuck replica has few, because a call that is given up counts as ended, so a hedged
call would meet it again. A replica acknowledges each call at once, busy or not; one that does not is avoided here. Serve pickles this
module by value into every process that calls, so it imports nothing else of this package.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError
from ray.serve.request_router import FIFOMixin, LocalityMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

SILENT_S = 0.5  # an acknowledgement takes milliseconds, a tenth of a second on a busy machine


class Acknowledgements:
    """Since when each replica owes an acknowledgement."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """now: seconds of a monotonic clock."""
        self._now = now
        self._since_s: dict[ReplicaID, float] = {}

    def sent(self, replica: ReplicaID) -> None:
        self._since_s.setdefault(replica, self._now())

    def received(self, replica: ReplicaID) -> None:
        self._since_s.pop(replica, None)

    def is_silent(self, replica: ReplicaID) -> bool:
        since_s = self._since_s.get(replica)
        return since_s is not None and self._now() - since_s > SILENT_S

    def keep(self, replicas: set[ReplicaID]) -> None:
        """Forget all other replicas."""
        self._since_s = {replica: since_s for replica, since_s in self._since_s.items() if replica in replicas}


class ResponsiveRouter(FIFOMixin, LocalityMixin, RequestRouter):
    """A silent replica gets no call until it answers a probe, unless all replicas are silent."""

    def initialize_state(self, **_: Any) -> None:
        self._acknowledgements = Acknowledgements()
        self._probes: dict[ReplicaID, asyncio.Task[None]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """At most two; Serve takes the one with fewer calls."""
        near = self.apply_locality_routing(pending_request)
        silent = [replica for replica in candidate_replicas if self._acknowledgements.is_silent(replica.replica_id)]
        for replica in silent:
            self._probe(replica)
        choice = [replica for replica in candidate_replicas if replica.replica_id in near]
        choice = [replica for replica in choice if replica not in silent] or choice
        return [random.sample(choice, min(2, len(choice)))]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._acknowledgements.sent(replica_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._acknowledgements.received(replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._acknowledgements.keep({replica.replica_id for replica in replicas})

    def _probe(self, replica: RunningReplica) -> None:
        """Ask for the queue length, one probe at a time: calls that were given up bring no acknowledgement."""

        async def probe() -> None:
            try:
                self.on_new_queue_len_info(replica.replica_id, await replica.get_queue_len(deadline_s=SILENT_S))
            except RayError:  # it died: Serve's next update removes it
                return

        if replica.replica_id not in self._probes:
            self._probes[replica.replica_id] = task = asyncio.get_running_loop().create_task(probe())
            task.add_done_callback(lambda _: self._probes.pop(replica.replica_id))
