"""The choice of a replica, without Ray: a silent replica is avoided until it answers a probe."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve.request_router import PendingRequest, ReplicaID

from serve.router import SILENT_S, ResponsiveRouter

MODEL = DeploymentID("Model", "han")
ONE, TWO, THREE = (ReplicaID(name, MODEL) for name in ("one", "two", "three"))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the router, and of nothing else."""
    clock = Clock()
    monkeypatch.setattr("serve.router.time", clock)
    return clock


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


class Replica:
    """As the router sees it; `answer` is what it says of its queue: a number, an exception, or an event to wait for."""

    def __init__(self, replica_id: ReplicaID, answer: Any = 0) -> None:
        self.replica_id, self.answer, self.num_probes = replica_id, answer, 0
        self.node_id, self.availability_zone, self.max_ongoing_requests = "node", None, 64
        self.multiplexed_model_ids: set[str] = set()

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.num_probes += 1
        if isinstance(self.answer, asyncio.Event):
            await self.answer.wait()
            return 0
        if isinstance(self.answer, Exception):
            raise self.answer
        number: int = self.answer
        return number


Case = Callable[[ResponsiveRouter], Awaitable[None]]


def run(case: Case, *replicas: Replica) -> None:
    """Run a case with a router that knows all these replicas."""

    async def main() -> None:
        router = ResponsiveRouter(
            deployment_id=MODEL, handle_source=DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True, self_node_id="node"
        )
        router.initialize_state()
        router.update_replicas(replicas)  # type: ignore[arg-type]
        await until(lambda: all(replica.num_probes for replica in replicas))  # Serve's own
        for _ in range(10):
            await asyncio.sleep(0)
        for replica in replicas:
            replica.num_probes = 0
        await case(router)

    asyncio.run(main())


async def chosen(router: ResponsiveRouter) -> set[str]:
    """The names of all replicas that are chosen in many choices."""
    found = set()
    for _ in range(30):
        request: Any = SimpleNamespace(routing_context=SimpleNamespace(should_backoff=False))
        (choice,) = await router.choose_replicas(list(router.curr_replicas.values()), request)
        assert request.routing_context.should_backoff  # else Serve would ask again without a pause
        assert len(choice) == len({replica.replica_id for replica in choice}) <= 2
        found |= {replica.replica_id.unique_id for replica in choice}
    return found


def test_all_replicas_without_a_call_are_chosen_however_long_that_lasts(clock: Clock) -> None:
    async def case(router: ResponsiveRouter) -> None:
        clock.now_s += 1_000
        assert await chosen(router) == {"one", "two", "three"}

    run(case, Replica(ONE), Replica(TWO), Replica(THREE))


def test_a_replica_is_avoided_if_it_does_not_acknowledge_a_call_in_time(clock: Clock) -> None:
    async def case(router: ResponsiveRouter) -> None:
        router.on_send_request(ONE)
        clock.now_s += SILENT_S
        assert await chosen(router) == {"one", "two"}
        clock.now_s += 0.01
        assert await chosen(router) == {"two"}

    run(case, Replica(ONE), Replica(TWO))


def test_further_calls_do_not_give_a_replica_more_time(clock: Clock) -> None:
    async def case(router: ResponsiveRouter) -> None:
        router.on_send_request(ONE)
        clock.now_s += SILENT_S - 0.1
        router.on_send_request(ONE)
        clock.now_s += 0.2
        assert await chosen(router) == {"two"}

    run(case, Replica(ONE), Replica(TWO))


def test_one_acknowledgement_ends_the_silence_and_the_next_call_has_its_own_time(clock: Clock) -> None:
    async def case(router: ResponsiveRouter) -> None:
        router.on_send_request(ONE)
        clock.now_s += SILENT_S + 1
        router.on_new_queue_len_info(ONE, 1)
        assert await chosen(router) == {"one", "two"}
        router.on_send_request(ONE)
        assert await chosen(router) == {"one", "two"}

    run(case, Replica(ONE), Replica(TWO))


def test_a_silent_replica_is_avoided_and_probed_once_until_it_answers(clock: Clock) -> None:
    awake, stuck = asyncio.Event(), Replica(ONE)

    async def case(router: ResponsiveRouter) -> None:
        stuck.answer = awake
        router.on_send_request(ONE)
        router.on_send_request(TWO)
        router.on_new_queue_len_info(TWO, 1)
        clock.now_s += SILENT_S + 0.1
        assert await chosen(router) == {"two", "three"}
        await until(lambda: stuck.num_probes == 1)
        assert await chosen(router) == {"two", "three"}
        assert stuck.num_probes == 1
        awake.set()
        await until(lambda: not router._probes)
        assert await chosen(router) == {"one", "two", "three"}

    run(case, stuck, Replica(TWO), Replica(THREE))


def test_all_replicas_are_chosen_if_all_are_silent(clock: Clock) -> None:
    never = asyncio.Event()

    async def case(router: ResponsiveRouter) -> None:
        for replica in router.curr_replicas.values():
            replica.answer = never  # type: ignore[attr-defined]
            router.on_send_request(replica.replica_id)
        clock.now_s += SILENT_S + 0.1
        assert await chosen(router) == {"one", "two"}

    run(case, Replica(ONE), Replica(TWO))


def test_a_dead_replica_is_avoided_until_it_is_replaced_by_its_successor(clock: Clock) -> None:
    dead = Replica(ONE)

    async def case(router: ResponsiveRouter) -> None:
        dead.answer = ActorDiedError()
        router.on_send_request(ONE)
        clock.now_s += SILENT_S + 0.1
        assert await chosen(router) == {"two"}
        await until(lambda: dead.num_probes > 0 and not router._probes)
        assert await chosen(router) == {"two"}
        router.update_replicas([Replica(TWO), Replica(THREE)])  # type: ignore[list-item]
        assert await chosen(router) == {"two", "three"}

    run(case, dead, Replica(TWO))


def test_a_removed_replica_is_forgotten(clock: Clock) -> None:
    async def case(router: ResponsiveRouter) -> None:
        router.on_send_request(ONE)
        router.on_send_request(TWO)
        clock.now_s += SILENT_S + 1
        two = Replica(TWO, asyncio.Event())
        router.update_replicas([two, Replica(THREE)])  # type: ignore[list-item]
        assert await chosen(router) == {"three"}
        router.update_replicas([two, Replica(ONE)])  # type: ignore[list-item]
        assert await chosen(router) == {"one"}

    run(case, Replica(ONE), Replica(TWO, asyncio.Event()))


def test_a_complete_request_finds_a_replica(clock: Clock) -> None:
    async def case(router: ResponsiveRouter) -> None:
        router.on_send_request(ONE)
        clock.now_s += SILENT_S + 0.1
        metadata = RequestMetadata(request_id="r", internal_request_id="i", call_method="score")
        replica = await router._choose_replica_for_request(PendingRequest(args=[], kwargs={}, metadata=metadata))
        assert replica.replica_id == TWO

    run(case, Replica(ONE, asyncio.Event()), Replica(TWO))
