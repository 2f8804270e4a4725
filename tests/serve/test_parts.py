"""The parts behind the routes without Ray: batches, retries, metrics, keys, and the check of the address."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from han.model import artifact
from han.score.scorer import Scored, Scorer, as_json, concatenate
from han.types import Refusal, Score, UserError
from jobs import serve as serve_job
from serve import batch_client, replica
from serve import coordinator as coordinator_module
from serve.app import build
from serve.backend import Answer, AnswerDetail, Answers
from serve.batching import JOB_WAIT_S, LONG_TOKENS, BatchQueue, Item
from serve.coordinator import Coordinator
from serve.dispatch import BUDGET, Replicas
from serve.errors import InvalidScoreError, Problem
from serve.ingress import check_exposure
from serve.keys import Keys
from serve.metrics import Metrics, text
from serve.options import Options
from serve.replica import Model, pieces
from serve.score_json import score_json
from tests.conftest import WORDS

ROOT = Path(__file__).parents[2]
LONG = "long " * LONG_TOKENS


# Answers as JSON


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(artifact.load(tiny_model))


@pytest.mark.parametrize("label", ['a "quoted"\nlabel', "\u00e9toile"])
def test_results_are_the_json_of_the_scores(scorer: Scorer, label: str) -> None:
    texts = ["The film was good.", "...", "Not dull! I loved it, the film.", "bad"]
    details: list[AnswerDetail] = ["words", "words", "sentences", "exact_words"]
    labels = (label, "positive")
    found = score_json(scorer.score_flat(texts, effects="exact_words"), labels, scorer.fingerprint, details)
    for text_, detail, answer in zip(texts, details, found, strict=True):
        if detail == "exact_words":
            (score,) = scorer.score([text_], effects="exact_words")
        else:
            (score,) = scorer.score([text_], attention=detail, effects="sentences")
        if isinstance(score, Refusal):
            assert answer == score
            continue
        assert isinstance(answer, bytes)
        expected = as_json(score)
        names = dict(zip(scorer.labels, labels, strict=True))
        expected = {**expected, "label": names[expected["label"]]}
        expected["probabilities"] = {names[name]: value for name, value in expected["probabilities"].items()}
        close(json.loads(answer), expected)


def close(one: Any, other: Any) -> None:
    """The same JSON, floats to 1e-6, keys in the same order."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            close(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            close(each, its)
    else:
        assert one == (pytest.approx(other, abs=1e-6) if isinstance(other, float) else other)


# The queue of a replica


class Bench:
    """Scores by recording batches; the thread waits until it is released."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.release = threading.Event()
        self.is_scoring = threading.Event()
        self.metrics = Metrics()

    def __call__(self, items: Sequence[Item]) -> list[Answer | Exception]:
        self.batches.append([item.text for item in items])
        self.is_scoring.set()
        assert self.release.wait(10)
        return [item.text.encode() for item in items]

    def queue(self, batch_tokens: int = 100) -> BatchQueue:
        return BatchQueue(self, batch_tokens=batch_tokens, metrics=self.metrics)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_texts_that_arrive_during_a_batch_form_the_next_batch() -> None:
    bench = Bench()

    async def main() -> None:
        queue = bench.queue()
        first = asyncio.create_task(queue.score(["first"], "words"))
        await until(bench.is_scoring.is_set)
        others = [asyncio.create_task(queue.score([f"text {number}"], "words")) for number in range(5)]
        await until(lambda: bench.metrics.gauges["han_queue_texts"] == 5)
        bench.release.set()
        assert await first == [b"first"]
        assert await asyncio.gather(*others) == [[f"text {number}".encode()] for number in range(5)]

    asyncio.run(main())
    assert bench.batches == [["first"], [f"text {number}" for number in range(5)]]


def test_a_batch_keeps_its_token_limit_unless_one_text_exceeds_it() -> None:
    bench = Bench()
    bench.release.set()
    texts = ["a" * 160, "b" * 160, "c" * 160, "d" * 800, "e" * 40]
    assert asyncio.run(bench.queue().score(texts, "none")) == [text_.encode() for text_ in texts]
    assert [[text_[0] for text_ in batch] for batch in bench.batches] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_short_texts_do_not_wait_for_long_ones() -> None:
    bench = Bench()
    started = threading.Event()

    def score(items: Sequence[Item]) -> list[Answer | Exception]:
        if items[0].text == LONG:
            started.set()
            assert bench.release.wait(10)
        return [b"" for _ in items]

    async def main() -> None:
        queue = BatchQueue(score, batch_tokens=100, metrics=bench.metrics)
        long = [asyncio.create_task(queue.score([LONG], "none")) for _ in range(12)]
        await until(started.is_set)
        await asyncio.gather(*(queue.score(["short"], "none") for _ in range(20)))
        assert not any(each.done() for each in long)
        bench.release.set()
        await asyncio.gather(*long)

    asyncio.run(main())


def test_a_text_whose_caller_disconnected_is_not_scored() -> None:
    bench = Bench()

    async def main() -> None:
        queue = bench.queue()
        first = asyncio.create_task(queue.score(["first"], "words"))
        await until(bench.is_scoring.is_set)
        gone = asyncio.create_task(queue.score(["gone"], "words"))
        stays = asyncio.create_task(queue.score(["stays"], "words"))
        await until(lambda: bench.metrics.gauges["han_queue_texts"] == 2)
        gone.cancel()
        await asyncio.wait({gone})
        bench.release.set()
        await asyncio.gather(first, stays)

    asyncio.run(main())
    assert bench.batches == [["first"], ["stays"]]
    assert bench.metrics.gauges["han_queue_texts"] == 0


def test_an_error_in_one_batch_reaches_its_callers_and_the_next_batch_is_scored() -> None:
    def score(items: Sequence[Item]) -> list[Answer | Exception]:
        if items[0].text == "bad":
            raise RuntimeError("a fault")
        return [b"" for _ in items]

    async def main() -> None:
        queue = BatchQueue(score, batch_tokens=100, metrics=Metrics())
        with pytest.raises(RuntimeError, match="a fault"):
            await queue.score(["bad"], "none")
        assert await queue.score(["good"], "none") == [b""]

    asyncio.run(main())


def test_a_hanging_batch_is_detected() -> None:
    bench = Bench()

    async def main() -> None:
        queue = bench.queue()
        assert queue.stuck_s() == 0
        task = asyncio.create_task(queue.score(["first"], "words"))
        await until(lambda: queue.stuck_s() > 0.02)
        bench.release.set()
        await task
        await until(lambda: queue.stuck_s() == 0)

    asyncio.run(main())


@pytest.mark.parametrize("leaves", [False, True])
def test_a_hanging_piece_of_a_batch_job_is_detected_even_if_its_caller_leaves(leaves: bool) -> None:
    release = threading.Event()

    async def main() -> None:
        queue = Bench().queue()
        job = asyncio.create_task(queue.score_job([["hangs"]], lambda texts: release.wait(10)))
        await until(lambda: queue.stuck_s() > 0)
        if leaves:
            job.cancel()
            await asyncio.wait({job})
        await until(lambda: queue.stuck_s() > 0.02)
        release.set()
        await until(lambda: queue.stuck_s() == 0)

    asyncio.run(main())


def test_an_isolated_request_is_scored_alone() -> None:
    bench = Bench()
    order: list[str] = []

    async def begin() -> None:
        order.append("begin")

    async def main() -> None:
        queue = bench.queue()
        before = asyncio.create_task(queue.score(["before"], "none"))
        await until(bench.is_scoring.is_set)
        isolated = asyncio.create_task(queue.score(["a", "b"], "none", isolated=begin))
        await asyncio.sleep(0)
        after = [asyncio.create_task(queue.score([text_], "none")) for text_ in ("after", LONG)]
        job = asyncio.create_task(queue.score_job([["job"]], lambda texts: order.append("job")))
        for _ in range(10):
            await asyncio.sleep(0)
        assert (bench.batches, order) == ([["before"]], [])
        bench.release.set()
        assert await isolated == [b"a", b"b"]
        await asyncio.gather(before, *after, job)

    asyncio.run(main())
    assert bench.batches[:2] == [["before"], ["a", "b"]]
    assert order == ["begin", "job"]


def test_a_batch_job_yields_to_requests_for_a_limited_time() -> None:
    bench = Bench()

    async def main() -> float:
        queue = bench.queue()
        online = asyncio.create_task(queue.score(["online"], "words"))
        await until(bench.is_scoring.is_set)
        began = asyncio.get_running_loop().time()
        assert await queue.score_job([["bulk"], ["more"]], lambda texts: texts[0]) == ["bulk", "more"]
        waited_s = asyncio.get_running_loop().time() - began
        bench.release.set()
        await online
        return waited_s

    assert asyncio.run(main()) >= 2 * JOB_WAIT_S


def test_one_batch_job_runs_at_a_time() -> None:
    order: list[str] = []

    async def main() -> None:
        queue = Bench().queue()
        await asyncio.gather(*(queue.score_job([[job], [job], [job]], lambda texts: order.append(texts[0])) for job in "abc"))

    asyncio.run(main())
    assert order == [*"aaabbbccc"]


def test_the_pieces_of_a_chunk_hold_all_its_texts_in_order() -> None:
    texts = ["a" * 40, "b" * 40, "c" * 4_000, "d", "e"]
    cut = pieces(texts, 24)
    assert [text_ for piece in cut for text_ in piece] == texts
    assert [len(piece) for piece in cut] == [2, 1, 2]
    assert pieces([], 24) == [[]]


def test_joined_pieces_equal_the_result_of_the_whole(scorer: Scorer) -> None:
    texts = ["The film was good.", "...", "Not dull!", "I loved it. The film was bad.", "!", "good"]
    whole = scorer.score_flat(texts)
    parts = concatenate([scorer.score_flat(texts[:2]), scorer.score_flat(texts[2:3]), scorer.score_flat(texts[3:])])
    assert parts.refused == whole.refused
    joined = concatenate([scorer.score_flat(texts[:4], effects="words"), scorer.score_flat(texts[4:], effects="words")]).effects
    together = scorer.score_flat(texts, effects="words").effects
    assert joined
    assert together
    np.testing.assert_allclose(joined.sentences, together.sentences, atol=1e-6)
    np.testing.assert_allclose(joined.interaction, together.interaction, atol=1e-6)
    assert joined.words is not None
    np.testing.assert_allclose(joined.words, together.words, atol=1e-6)
    for name in set(Scored.__dataclass_fields__) - {"refused", "effects"}:
        assert getattr(parts, name).dtype == getattr(whole, name).dtype
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-6)


# Retries


class FakeResponse:
    def __init__(self, outcome: Any) -> None:
        self.outcome, self.cancelled = outcome, False

    def __await__(self) -> Any:
        if self.outcome == "never":
            yield from asyncio.sleep(60).__await__()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class FakeHandle:
    """A deployment's handle whose calls have the given outcomes, in order; it is its own coordinator."""

    def __init__(self, *outcomes: Any, begun: bool = False) -> None:
        self.score = self.about = self
        self.responses = [FakeResponse(outcome) for outcome in outcomes]
        self.tickets: list[str | None] = []
        self.has_begun = SimpleNamespace(remote=lambda ticket: FakeResponse(begun and ticket in self.tickets))

    @property
    def num_calls(self) -> int:
        return len(self.tickets)

    def remote(self, *arguments: Any, ticket: str | None = None) -> FakeResponse:
        self.tickets.append(ticket)
        return self.responses[self.num_calls - 1]


ANSWERS = Answers(results=[b"{}"], model="one")
DIED, AWAY = ActorDiedError(), ActorUnavailableError("away", None)


def call(handle: FakeHandle, *, retries: int = 2) -> tuple[Answers | tuple[int, str, int | None], Metrics]:
    """The results, or status, code and Retry-After of the error, and the metrics."""
    metrics = Metrics()
    replicas = Replicas(handle, handle, metrics, Options(retries=retries, deadline_s=0.1), process="test")  # type: ignore[arg-type]
    try:
        return asyncio.run(replicas.score(["good"], "words")), metrics
    except Problem as problem:
        return (problem.status, problem.code, problem.retry_after_s), metrics


@pytest.mark.parametrize("outcomes", [(DIED, ANSWERS), (AWAY, DIED, ANSWERS)])
def test_a_request_whose_replica_died_is_retried(outcomes: tuple[Any, ...]) -> None:
    answer, metrics = call(FakeHandle(*outcomes))
    assert answer == Answers(results=[b"{}"], model="one", retries=len(outcomes) - 1)
    assert metrics.counts["han_retries_total"] == len(outcomes) - 1


def test_a_request_is_isolated_with_a_new_ticket_after_each_death() -> None:
    handle = FakeHandle(DIED, DIED, ANSWERS)
    call(handle)
    first, second, third = handle.tickets
    assert first is None
    assert len({first, second, third}) == 3


def test_a_request_that_kills_its_replica_alone_is_an_error_and_not_retried() -> None:
    handle = FakeHandle(DIED, DIED, ANSWERS, begun=True)
    answer, metrics = call(handle, retries=5)
    assert (answer, handle.num_calls, metrics.counts["han_retries_total"]) == ((500, "model_crashed", None), 2, 1)


def test_a_request_beside_one_that_kills_the_replica_is_retried() -> None:
    handle = FakeHandle(DIED, DIED, ANSWERS, begun=False)
    answer, _ = call(handle)
    assert answer == Answers(results=[b"{}"], model="one", retries=2)


def test_a_slow_request_is_hedged() -> None:
    handle = FakeHandle("never", ANSWERS)
    answer, metrics = call(handle)
    assert answer == Answers(results=[b"{}"], model="one", retries=1)
    assert metrics.counts["han_retries_total"] == 1
    assert handle.responses[0].cancelled
    assert handle.tickets == [None, None]


def test_hedging_stops_when_its_budget_is_used() -> None:
    number = int(BUDGET) + 10
    handle = FakeHandle(*["never"] * 3 * number)

    async def main() -> None:
        replicas = Replicas(handle, handle, Metrics(), Options(deadline_s=0.05), process="test")  # type: ignore[arg-type]
        calls = [asyncio.create_task(replicas.about()) for _ in range(number)]
        await until(lambda: replicas._budget < 1)
        for one in calls:
            one.cancel()
        await asyncio.wait(calls)

    asyncio.run(main())
    assert handle.num_calls == number + BUDGET


def test_responses_refill_the_hedging_budget() -> None:
    replicas = Replicas(FakeHandle(ANSWERS), FakeHandle(), Metrics(), Options(), process="test")  # type: ignore[arg-type]
    replicas._budget = 3.0
    asyncio.run(replicas.score(["good"], "words"))
    assert replicas._budget == pytest.approx(3.1)


def test_a_request_is_503_after_the_last_retry() -> None:
    handle = FakeHandle(DIED, DIED, DIED, ANSWERS)
    answer, metrics = call(handle)
    assert (answer, handle.num_calls, metrics.counts["han_retries_total"]) == ((503, "unavailable", 1), 3, 2)


def test_a_death_is_503_with_retries_off() -> None:
    handle = FakeHandle(DIED, ANSWERS)
    assert call(handle, retries=0)[0] == (503, "unavailable", 1)
    assert handle.num_calls == 1


def test_a_fault_is_not_retried() -> None:
    handle = FakeHandle(RuntimeError("a fault"), ANSWERS)
    with pytest.raises(RuntimeError):
        call(handle)
    assert handle.num_calls == 1


def test_an_invalid_score_has_its_own_code() -> None:
    assert call(FakeHandle(InvalidScoreError()))[0] == (500, "invalid_score", None)


def test_a_full_queue_is_429() -> None:
    answer, metrics = call(FakeHandle(BackPressureError(1, 1)))
    assert (answer, metrics.counts["han_shed_total"]) == ((429, "too_many_requests", 1), 1)


def test_a_call_whose_caller_disconnected_is_cancelled() -> None:
    handle = FakeHandle("never")

    async def main() -> None:
        replicas = Replicas(handle, handle, Metrics(), Options(), process="test")  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(replicas.score(["good"], "words"), 0.05)

    asyncio.run(main())
    assert handle.responses[0].cancelled


# Scores that are no probabilities


@pytest.fixture
def make_replica(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Model]:
    """Makes a `Model` whose network gives NaN for a text with the word dull, and for no other. Call it in an event loop."""
    poisoned = artifact.load(tiny_model)
    poisoned.network.embedding.weight.data[WORDS.index("dull")] = float("nan")
    runtime = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1})
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr(replica.ray, "get_runtime_context", lambda: runtime)
    monkeypatch.setattr(replica.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(replica.os, "nice", lambda _: 0)
    monkeypatch.setattr(replica.artifact, "load", lambda _: poisoned)

    async def put(*_: Any) -> None:
        return

    coordinator: Any = SimpleNamespace(put=SimpleNamespace(remote=put))
    return lambda: Model(Options(model=str(tiny_model)), coordinator)


@pytest.mark.parametrize("detail", ["none", "words", "exact_words"])
def test_only_the_text_whose_probability_is_nan_fails_in_a_batch_and_the_replica_becomes_unhealthy(
    make_replica: Callable[[], Model], detail: AnswerDetail
) -> None:
    async def main() -> tuple[list[Answers | BaseException], Model]:
        model = make_replica()
        model.check_health()
        calls = (model.score([text_], detail) for text_ in ("The film was good.", "The film was dull.", "...", "I loved it! Not bad."))
        return await asyncio.gather(*calls, return_exceptions=True), model

    (good, guilty, refused, loved), model = asyncio.run(main())
    assert isinstance(guilty, InvalidScoreError)
    for innocent in (good, refused, loved):
        assert isinstance(innocent, Answers)
    assert isinstance(good, Answers)
    assert isinstance(good.results[0], bytes)
    assert 0 <= json.loads(good.results[0])["probability"] <= 1
    assert isinstance(refused, Answers)
    assert isinstance(refused.results[0], Refusal)
    assert model._metrics.counts["han_batch_seconds_count"] == 1
    with pytest.raises(RuntimeError, match="not a number from 0 to 1"):
        model.check_health()


# A batch job through the service


class Answering:
    """A handle whose calls of `score_flat` and of `about` end with the given outcomes, in order."""

    def __init__(self, *outcomes: Any, about: Sequence[Any] = ()) -> None:
        self.score_flat = _Calls([*outcomes])
        self.about = _Calls([SimpleNamespace(labels=("a", "b"), model="one"), *about])


class _Calls:
    """Every call has the same outcomes, so a call that is waited for again goes on to the next one."""

    def __init__(self, outcomes: list[Any]) -> None:
        self.outcomes, self.num_calls, self.num_cancelled = outcomes, 0, 0

    def remote(self, *_: Any, **__: Any) -> Any:
        self.num_calls += 1
        return self

    def result(self, timeout_s: float) -> Any:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self) -> None:
        self.num_cancelled += 1


def deployed(monkeypatch: pytest.MonkeyPatch, handle: Any) -> batch_client.Deployed:
    monkeypatch.setattr(batch_client.serve, "get_deployment_handle", lambda *_: handle)
    monkeypatch.setattr(batch_client, "_PAUSE_S", 0.0)
    return batch_client.Deployed("han")


@pytest.mark.parametrize(("error", "num_calls"), [(TimeoutError(), 1), (BackPressureError(1, 1), 3)])
def test_a_batch_job_waits_for_a_busy_service(monkeypatch: pytest.MonkeyPatch, error: Exception, num_calls: int) -> None:
    handle = Answering(error, error, "scored", about=["alive", error, "alive"])
    assert deployed(monkeypatch, handle).score_flat(["good"]) == "scored"
    assert handle.score_flat.num_calls == num_calls  # one that waits for its turn is not sent again


def test_a_service_that_never_answers_ends_a_batch_job_with_a_system_error(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Answering(TimeoutError(), about=[TimeoutError()])
    client = deployed(monkeypatch, handle)
    monkeypatch.setattr(batch_client, "OUTAGE_S", -1.0)
    with pytest.raises(ConnectionRefusedError, match="no replica of han answers") as raised:
        client.score_flat(["good"])
    assert raised.value.errno is not None  # else the pool takes it for a fault
    assert handle.score_flat.num_cancelled == 1


def test_a_death_under_a_batch_job_is_raised_once_a_replica_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Answering(DIED, about=[DIED, TimeoutError(), "ready"])
    client = deployed(monkeypatch, handle)
    with pytest.raises(ActorDiedError):
        client.score_flat(["good"])
    assert handle.about.outcomes == []


class Waiting:
    """A handle to the queue of a replica in another thread. It counts how often each caller was told to wait longer."""

    def __init__(self, queue: BatchQueue, loop: asyncio.AbstractEventLoop, score: Callable[[Sequence[str]], str]) -> None:
        self.num_waits: Counter[str] = Counter()
        about = SimpleNamespace(result=lambda timeout_s: SimpleNamespace(labels=(), model="one"))
        self.about = SimpleNamespace(remote=lambda: about)

        def remote(texts: Sequence[str], **_: Any) -> Any:
            running = asyncio.run_coroutine_threadsafe(queue.score_job([texts], score), loop)

            def result(timeout_s: float) -> Any:
                try:
                    return running.result(timeout_s)
                except TimeoutError:
                    self.num_waits[texts[0]] += 1
                    raise

            return SimpleNamespace(result=result, cancel=running.cancel)

        self.score_flat = SimpleNamespace(remote=remote)


def test_no_call_of_many_actors_is_scored_twice_however_long_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, release = asyncio.new_event_loop(), threading.Event()
    serving = threading.Thread(target=loop.run_forever)
    serving.start()
    scored: list[str] = []
    texts = [f"text {number}" for number in range(16)]

    def score(piece: Sequence[str]) -> str:
        assert release.wait(10)
        scored.extend(piece)
        return piece[0]

    async def make() -> BatchQueue:
        return Bench().queue()

    try:
        handle = Waiting(asyncio.run_coroutine_threadsafe(make(), loop).result(10), loop, score)
        monkeypatch.setattr(batch_client, "ANSWER_S", 0.02)
        client = deployed(monkeypatch, handle)
        with ThreadPoolExecutor(16) as actors:
            answers = [actors.submit(client.score_flat, [text_]) for text_ in texts]
            asyncio.run(until(lambda: min(handle.num_waits[text_] for text_ in texts) >= 3))
            release.set()
            assert [answer.result(10) for answer in answers] == [[text_] for text_ in texts]
        assert sorted(scored) == sorted(texts)
    finally:
        release.set()
        loop.call_soon_threadsafe(loop.stop)
        serving.join()
        loop.close()


# Metrics


def counted(number: int, *, in_flight: int = 0) -> Metrics:
    metrics = Metrics()
    for _ in range(number):
        metrics.count("han_requests_total", route="/v1/score", code="200")
        metrics.observe("han_request_seconds", 0.03, route="/v1/score")
    metrics.add("han_requests_in_flight", in_flight)
    return metrics


def read(exported: str) -> dict[str, float]:
    """The samples by name and labels, as the Prometheus client parses them."""
    families = list(text_string_to_metric_families(exported))
    return {f"{sample.name}{sorted(sample.labels.items())}": sample.value for family in families for sample in family.samples}


def total(*reports: tuple[str, Metrics], last: Metrics | None = None) -> dict[str, float]:
    """The samples of `/metrics` after the reports of some processes, as an ingress receives them that has counted `last`."""

    async def main() -> str:
        coordinator = Coordinator()
        for process, metrics in reports:
            await coordinator.put(process, metrics.state())
        return await coordinator.metrics("ingress", (last or Metrics()).state())

    return read(asyncio.run(main()))


def test_metrics_are_summed_over_all_processes_and_parse_as_prometheus_text() -> None:
    found = total(("a", counted(3, in_flight=1)), ("b", counted(2, in_flight=2)), last=counted(2))
    assert found["han_requests_total[('code', '200'), ('route', '/v1/score')]"] == 7
    assert found["han_requests_in_flight[]"] == 3
    assert found["han_request_seconds_bucket[('le', '0.02'), ('route', '/v1/score')]"] == 0
    assert found["han_request_seconds_bucket[('le', '0.05'), ('route', '/v1/score')]"] == 7
    assert found["han_request_seconds_bucket[('le', '+Inf'), ('route', '/v1/score')]"] == 7
    assert found["han_request_seconds_sum[('route', '/v1/score')]"] == pytest.approx(0.21)


def test_a_repeated_state_counts_once() -> None:
    found = total(*(("a", counted(number)) for number in (1, 3, 3)))
    assert found["han_requests_total[('code', '200'), ('route', '/v1/score')]"] == 3


def test_counters_of_a_dead_process_are_kept_and_its_gauges_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "_SILENT_S", -1.0)
    found = total(("dead", counted(5, in_flight=5)))
    assert found["han_requests_total[('code', '200'), ('route', '/v1/score')]"] == 5
    assert not any(name.startswith("han_requests_in_flight") for name in found)


def test_processes_that_ended_long_ago_are_merged_into_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator, now_s = Coordinator(), 0.0
    monkeypatch.setattr(coordinator_module, "time", SimpleNamespace(monotonic=lambda: now_s))

    async def main() -> str:
        nonlocal now_s
        for number in range(999):
            now_s += 60
            await coordinator.put(f"process {number}", counted(3, in_flight=1).state())
        now_s += 60
        return await coordinator.metrics("process 999", counted(3, in_flight=1).state())

    found = read(asyncio.run(main()))
    assert len(coordinator.states) < 20
    assert found["han_requests_total[('code', '200'), ('route', '/v1/score')]"] == 3_000
    assert found["han_requests_in_flight[]"] == 1


def test_refusals_and_retries_start_at_0() -> None:
    assert total() == {"han_shed_total[]": 0, "han_retries_total[]": 0}


def test_every_series_belongs_to_a_described_family() -> None:
    metrics = counted(1, in_flight=1)
    exported = text(metrics.state())
    for series in (*metrics.counts, *metrics.gauges):
        assert f"\n{series} " in exported


# Keys and addresses


@pytest.mark.parametrize("content", ["", "\n \n", "short\n", "long-enough-for-a-key\nshort\n", None])
def test_a_file_without_valid_keys_is_a_mistake(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="api_keys_file"):
        Keys(path)


def test_a_partly_written_key_file_keeps_the_old_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("long-enough-for-a-key\n")
    keys = Keys(path)
    path.write_text("")
    keys.check("Bearer long-enough-for-a-key")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost", None])
def test_no_key_is_needed_on_loopback(host: str | None) -> None:
    check_exposure(host, Options())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "", "example.org"])  # noqa: S104 - to be refused
def test_a_key_or_insecure_is_needed_outside_loopback(host: str) -> None:
    with pytest.raises(UserError, match="api_keys_file"):
        check_exposure(host, Options())
    check_exposure(host, Options(api_keys_file="keys"))
    check_exposure(host, Options(insecure=True))


@pytest.mark.parametrize(
    "wrong", [{"deadline_s": 31}, {"deadline_s": 0}, {"retries": -1}, {"max_texts": 0}, {"modle": "imdb"}, {"cpus": 0}]
)
def test_options_out_of_range_or_unknown_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)


def test_a_port_in_use_is_an_error_of_one_line_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("sys.argv", ["jobs.serve", f"--port={port}"])
        with pytest.raises(SystemExit) as exited:
            serve_job.run()
    printed = capsys.readouterr()
    assert (exited.value.code, printed.err.count("\n"), "starting Ray" in printed.out) == (2, 1, False)


def test_a_missing_model_is_an_error_of_one_line_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["jobs.serve", "--model", "nowhere", "--port=0"])
    with pytest.raises(SystemExit) as exited:
        serve_job.run()
    printed = capsys.readouterr()
    assert (exited.value.code, printed.err.count("\n"), "starting Ray" in printed.out) == (2, 1, False)


def test_serve_sees_the_type_of_the_options() -> None:
    assert inspect.signature(build).parameters["options"].annotation is Options


def test_a_missing_model_is_a_mistake() -> None:
    with pytest.raises(UserError, match="no model at"):
        build(Options(model="nowhere"))


def test_every_option_is_described() -> None:
    assert [name for name, field in Options.model_fields.items() if not field.description] == []


def test_values_from_the_command_line_are_accepted() -> None:
    assert Options.model_validate({"retries": "0", "deadline_s": "2.5", "insecure": "true"}) == Options(
        retries=0, deadline_s=2.5, insecure=True
    )


def test_the_document_has_all_fields_of_a_score() -> None:
    document = json.loads((ROOT / "serve" / "openapi.json").read_text())
    assert set(document["components"]["schemas"]["Score"]["properties"]) == set(Score.__dataclass_fields__)
