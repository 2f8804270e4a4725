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

from serve.router import SILENT_S, Acknowledgements, ResponsiveRouter

MODEL = DeploymentID("Model", "han")
ONE, TWO, THREE = (ReplicaID(name, MODEL) for name in ("one", "two", "three"))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def owed(clock: Clock) -> Acknowledgements:
    return Acknowledgements(clock)


def test_a_replica_without_a_call_is_not_silent(owed: Acknowledgements, clock: Clock) -> None:
    clock.now_s += 1_000
    assert not owed.is_silent(ONE)


def test_a_replica_is_silent_if_it_does_not_acknowledge_a_call_in_time(owed: Acknowledgements, clock: Clock) -> None:
    owed.sent(ONE)
    clock.now_s += SILENT_S
    assert not owed.is_silent(ONE)
    clock.now_s += 0.01
    assert owed.is_silent(ONE)
    assert not owed.is_silent(TWO)


def test_further_calls_do_not_give_a_replica_more_time(owed: Acknowledgements, clock: Clock) -> None:
    owed.sent(ONE)
    clock.now_s += SILENT_S - 0.1
    owed.sent(ONE)
    clock.now_s += 0.2
    assert owed.is_silent(ONE)


def test_one_acknowledgement_is_enough(owed: Acknowledgements, clock: Clock) -> None:
    owed.sent(ONE)
    clock.now_s += SILENT_S + 1
    owed.received(ONE)
    assert not owed.is_silent(ONE)
    owed.sent(ONE)
    assert not owed.is_silent(ONE)


def test_removed_replicas_are_forgotten(owed: Acknowledgements, clock: Clock) -> None:
    owed.sent(ONE)
    owed.sent(TWO)
    clock.now_s += SILENT_S + 1
    owed.keep({TWO, THREE})
    assert not owed.is_silent(ONE)
    assert owed.is_silent(TWO)


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


Case = Callable[[ResponsiveRouter, Clock], Awaitable[None]]


def run(case: Case, *replicas: Replica) -> None:
    """Run a case with a router that knows all these replicas."""

    async def main() -> None:
        clock = Clock()
        router = ResponsiveRouter(
            deployment_id=MODEL, handle_source=DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True, self_node_id="node"
        )
        router.initialize_state()
        router._acknowledgements = Acknowledgements(clock)
        router.update_replicas(replicas)  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        for replica in replicas:
            replica.num_probes = 0
        await case(router, clock)

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


def test_all_replicas_that_answer_are_chosen() -> None:
    async def case(router: ResponsiveRouter, clock: Clock) -> None:
        assert await chosen(router) == {"one", "two", "three"}

    run(case, Replica(ONE), Replica(TWO), Replica(THREE))


def test_a_silent_replica_is_avoided_and_probed_once_until_it_answers() -> None:
    awake, stuck = asyncio.Event(), Replica(ONE)

    async def case(router: ResponsiveRouter, clock: Clock) -> None:
        stuck.answer = awake
        router.on_send_request(ONE)
        router.on_send_request(TWO)
        router.on_new_queue_len_info(TWO, 1)
        clock.now_s += SILENT_S + 0.1
        assert await chosen(router) == {"two", "three"}
        await asyncio.sleep(0.01)
        assert await chosen(router) == {"two", "three"}
        assert stuck.num_probes == 1
        awake.set()
        await asyncio.sleep(0.01)
        assert await chosen(router) == {"one", "two", "three"}

    run(case, stuck, Replica(TWO), Replica(THREE))


def test_an_acknowledgement_ends_the_silence() -> None:
    async def case(router: ResponsiveRouter, clock: Clock) -> None:
        router.on_send_request(ONE)
        clock.now_s += SILENT_S + 0.1
        router.on_new_queue_len_info(ONE, 1)
        assert await chosen(router) == {"one", "two"}

    run(case, Replica(ONE), Replica(TWO))


def test_all_replicas_are_chosen_if_all_are_silent() -> None:
    never = asyncio.Event()

    async def case(router: ResponsiveRouter, clock: Clock) -> None:
        for replica in router.curr_replicas.values():
            replica.answer = never  # type: ignore[attr-defined]
            router.on_send_request(replica.replica_id)
        clock.now_s += SILENT_S + 0.1
        assert await chosen(router) == {"one", "two"}

    run(case, Replica(ONE), Replica(TWO))


def test_a_dead_replica_is_replaced_by_its_successor() -> None:
    dead = Replica(ONE)

    async def case(router: ResponsiveRouter, clock: Clock) -> None:
        dead.answer = ActorDiedError()
        router.on_send_request(ONE)
        clock.now_s += SILENT_S + 0.1
        assert await chosen(router) == {"two"}
        await asyncio.sleep(0.01)
        assert await chosen(router) == {"two"}
        router.update_replicas([Replica(TWO), Replica(THREE)])  # type: ignore[list-item]
        assert await chosen(router) == {"two", "three"}

    run(case, dead, Replica(TWO))


def test_a_complete_request_finds_a_replica() -> None:
    async def case(router: ResponsiveRouter, clock: Clock) -> None:
        router.on_send_request(ONE)
        clock.now_s += SILENT_S + 0.1
        metadata = RequestMetadata(request_id="r", internal_request_id="i", call_method="score")
        replica = await router._choose_replica_for_request(PendingRequest(args=[], kwargs={}, metadata=metadata))
        assert replica.replica_id == TWO

    run(case, Replica(ONE, asyncio.Event()), Replica(TWO))
