"""Which replica scores a call: the less busy of two, of those that answer.

Serve's own router goes by how many calls a replica has. A replica that is stuck has few, since a call that is given up counts as ended;
so a call that is sent again beside it meets it again. This router goes by words as well: a replica says of each call at once, busy or not,
that it takes it on. Serve carries this module by value to every process that calls, so it uses no other of this project.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError
from ray.serve.request_router import FIFOMixin, LocalityMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

SILENT_S = 0.5  # a replica says within milliseconds that it takes a call on, within a tenth of a second on a busy machine


class Signs:
    """Since when each replica owes a word."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """now: seconds of a clock that only goes forward."""
        self._now = now
        self._since_s: dict[ReplicaID, float] = {}

    def asked(self, replica: ReplicaID) -> None:
        self._since_s.setdefault(replica, self._now())

    def heard(self, replica: ReplicaID) -> None:
        self._since_s.pop(replica, None)

    def silent(self, replica: ReplicaID) -> bool:
        since_s = self._since_s.get(replica)
        return since_s is not None and self._now() - since_s > SILENT_S

    def keep(self, replicas: set[ReplicaID]) -> None:
        """Forget all others."""
        self._since_s = {replica: since_s for replica, since_s in self._since_s.items() if replica in replicas}


class AnsweringRouter(FIFOMixin, LocalityMixin, RequestRouter):
    """A silent replica gets no call until it has answered a question, unless all are silent: then they are as good as each other."""

    def initialize_state(self, **_: Any) -> None:
        self._signs = Signs()
        self._questions: dict[ReplicaID, asyncio.Task[None]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """At most two, of which Serve takes the one with fewer calls."""
        near = self.apply_locality_routing(pending_request)
        silent = [replica for replica in candidate_replicas if self._signs.silent(replica.replica_id)]
        for replica in silent:
            self._ask(replica)
        choice = [replica for replica in candidate_replicas if replica.replica_id in near]
        choice = [replica for replica in choice if replica not in silent] or choice
        return [random.sample(choice, min(2, len(choice)))]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._signs.asked(replica_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._signs.heard(replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._signs.keep({replica.replica_id for replica in replicas})

    def _ask(self, replica: RunningReplica) -> None:
        """Once at a time, for as long as it takes: the calls that it left without a word have been given up, so no word of them comes."""
        if replica.replica_id not in self._questions:
            question = asyncio.get_running_loop().create_task(self._answered(replica))
            self._questions[replica.replica_id] = question
            question.add_done_callback(lambda _: self._questions.pop(replica.replica_id))

    async def _answered(self, replica: RunningReplica) -> None:
        try:
            self.on_new_queue_len_info(replica.replica_id, await replica.get_queue_len(deadline_s=SILENT_S))
        except RayError:  # it died: Serve says so to the router with the next update
            return
