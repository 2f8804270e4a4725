"""Which replica gets a call: the less busy of two, among those that respond.

Serve's own router counts the calls of a replica. A stuck replica has few, because a call that is given up counts as ended, so a hedged
call would meet it again. A replica acknowledges each call at once, busy or not; one that does not is avoided here. Serve pickles this
module by value into every process that calls, so it imports nothing else of this package.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from ray.exceptions import RayError
from ray.serve.request_router import FIFOMixin, LocalityMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

SILENT_S = 0.5  # an acknowledgement takes milliseconds, a tenth of a second on a busy machine


class ResponsiveRouter(FIFOMixin, LocalityMixin, RequestRouter):
    """A silent replica gets no call until it answers a probe, unless all replicas are silent."""

    def initialize_state(self, **_: Any) -> None:
        self._owed_since_s: dict[ReplicaID, float] = {}  # by replica that owes an acknowledgement
        self._probes: dict[ReplicaID, asyncio.Task[None]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """At most two; Serve takes the one with fewer calls."""
        near = self.apply_locality_routing(pending_request)
        now_s = time.monotonic()
        silent = [replica for replica in candidate_replicas if now_s - self._owed_since_s.get(replica.replica_id, now_s) > SILENT_S]
        for replica in silent:
            self._probe(replica)
        choice = [replica for replica in candidate_replicas if replica.replica_id in near]
        choice = [replica for replica in choice if replica not in silent] or choice
        return [random.sample(choice, min(2, len(choice)))]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._owed_since_s.setdefault(replica_id, time.monotonic())

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._owed_since_s.pop(replica_id, None)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        known = {replica.replica_id for replica in replicas}
        self._owed_since_s = {replica: since_s for replica, since_s in self._owed_since_s.items() if replica in known}

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
