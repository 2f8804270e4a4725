"""The parts behind the HTTP door without Ray: batches, retries, counts, keys, and what may listen where."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from han.model import artifact
from han.score.scorer import Scored, Scorer, as_json
from han.types import AttentionDetail, Mistake, Refusal, Score
from serve.answers import answers
from serve.app import build
from serve.backend import LONG_TOKENS, Answer, Answers
from serve.bundles import MAX_CALLS, Bundles
from serve.errors import Problem
from serve.ingress import Replicas, check_door
from serve.keys import Keys
from serve.lanes import BULK_WAIT_S, Item, Lanes
from serve.metrics import Metrics, Total, text
from serve.options import Options
from serve.replica import joined, pieces

ROOT = Path(__file__).parents[2]
LONG = "long " * LONG_TOKENS


# Answers as bytes


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(artifact.load(tiny_model))


@pytest.mark.parametrize("label", ['a "quoted"\nlabel', "\u00e9toile"])
def test_answers_are_the_json_of_the_scores(scorer: Scorer, label: str) -> None:
    texts = ["The film was good.", "...", "Not dull! I loved it, the film.", "bad"]
    details: list[AttentionDetail] = ["words", "words", "sentences", "none"]
    labels = (label, "positive")
    found = answers(scorer.score_flat(texts), labels=labels, fingerprint=scorer.fingerprint, attention=details)
    for text_, detail, answer in zip(texts, details, found, strict=True):
        (score,) = scorer.score([text_], attention=detail)
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


# Lanes


class Bench:
    """Scores by noting batches; waits in the thread until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.let_go = threading.Event()
        self.holds = threading.Event()
        self.metrics = Metrics()

    def __call__(self, items: Sequence[Item]) -> list[Answer]:
        self.batches.append([item.text for item in items])
        self.holds.set()
        assert self.let_go.wait(10)
        return [item.text.encode() for item in items]

    def lanes(self, batch_tokens: int = 100) -> Lanes:
        return Lanes(self, batch_tokens=batch_tokens, metrics=self.metrics)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_texts_gather_while_a_batch_is_scored_and_go_together() -> None:
    bench = Bench()

    async def main() -> None:
        lanes = bench.lanes()
        first = asyncio.create_task(lanes.score(["first"], ["words"]))
        await until(bench.holds.is_set)
        others = [asyncio.create_task(lanes.score([f"text {number}"], ["words"])) for number in range(5)]
        await until(lambda: bench.metrics.gauges["han_queue_texts"] == 5)
        bench.let_go.set()
        assert await first == [b"first"]
        assert await asyncio.gather(*others) == [[f"text {number}".encode()] for number in range(5)]

    asyncio.run(main())
    assert bench.batches == [["first"], [f"text {number}" for number in range(5)]]


def test_a_batch_holds_no_more_tokens_than_fit_unless_a_text_has_more() -> None:
    bench = Bench()
    bench.let_go.set()
    texts = ["a" * 160, "b" * 160, "c" * 160, "d" * 800, "e" * 40]
    assert asyncio.run(bench.lanes().score(texts, ["none"] * len(texts))) == [text_.encode() for text_ in texts]
    assert [[text_[0] for text_ in batch] for batch in bench.batches] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_short_texts_do_not_wait_for_a_long_one() -> None:
    bench = Bench()
    held = threading.Event()

    def score(items: Sequence[Item]) -> list[Answer]:
        if items[0].text == LONG:
            held.set()
            assert bench.let_go.wait(10)
        return [b"" for _ in items]

    async def main() -> None:
        lanes = Lanes(score, batch_tokens=100, metrics=bench.metrics)
        long = asyncio.create_task(lanes.score([LONG], ["none"]))
        await until(held.is_set)
        await asyncio.gather(*(lanes.score(["short"], ["none"]) for _ in range(20)))
        assert not long.done()
        bench.let_go.set()
        await long

    asyncio.run(main())


def test_a_text_whose_caller_has_left_is_not_scored() -> None:
    bench = Bench()

    async def main() -> None:
        lanes = bench.lanes()
        first = asyncio.create_task(lanes.score(["first"], ["words"]))
        await until(bench.holds.is_set)
        gone = asyncio.create_task(lanes.score(["gone"], ["words"]))
        stays = asyncio.create_task(lanes.score(["stays"], ["words"]))
        await until(lambda: bench.metrics.gauges["han_queue_texts"] == 2)
        gone.cancel()
        await asyncio.wait({gone})
        bench.let_go.set()
        await asyncio.gather(first, stays)

    asyncio.run(main())
    assert bench.batches == [["first"], ["stays"]]
    assert bench.metrics.gauges["han_queue_texts"] == 0


def test_a_fault_in_one_batch_is_told_to_its_callers_and_the_next_is_scored() -> None:
    def score(items: Sequence[Item]) -> list[Answer]:
        if items[0].text == "bad":
            raise RuntimeError("a fault")
        return [b"" for _ in items]

    async def main() -> None:
        lanes = Lanes(score, batch_tokens=100, metrics=Metrics())
        with pytest.raises(RuntimeError, match="a fault"):
            await lanes.score(["bad"], ["none"])
        assert await lanes.score(["good"], ["none"]) == [b""]

    asyncio.run(main())


def test_a_batch_that_does_not_end_is_known() -> None:
    bench = Bench()

    async def main() -> None:
        lanes = bench.lanes()
        assert lanes.stuck_s() == 0
        task = asyncio.create_task(lanes.score(["first"], ["words"]))
        await until(lambda: lanes.stuck_s() > 0.02)
        bench.let_go.set()
        await task
        await until(lambda: lanes.stuck_s() == 0)

    asyncio.run(main())


def test_a_batch_job_waits_for_requests_but_not_for_ever() -> None:
    bench = Bench()

    async def main() -> float:
        lanes = bench.lanes()
        online = asyncio.create_task(lanes.score(["online"], ["words"]))
        await until(bench.holds.is_set)
        began = asyncio.get_running_loop().time()
        assert await lanes.bulk([["bulk"], ["more"]], lambda texts: texts[0]) == ["bulk", "more"]
        waited_s = asyncio.get_running_loop().time() - began
        bench.let_go.set()
        await online
        return waited_s

    assert asyncio.run(main()) >= 2 * BULK_WAIT_S


def test_one_chunk_of_a_batch_job_runs_at_a_time() -> None:
    running = []

    def work(texts: Sequence[str]) -> int:
        running.append(1)
        count = len(running)
        running.pop()
        return count

    async def main() -> list[list[int]]:
        lanes = Bench().lanes()
        return await asyncio.gather(*(lanes.bulk([["a"], ["b"]], work) for _ in range(8)))

    assert asyncio.run(main()) == [[1, 1]] * 8


def test_pieces_of_a_chunk_are_all_its_texts_in_order() -> None:
    texts = ["a" * 40, "b" * 40, "c" * 4_000, "d", "e"]
    cut = pieces(texts, 24)
    assert [text_ for piece in cut for text_ in piece] == texts
    assert [len(piece) for piece in cut] == [2, 1, 2]
    assert pieces([], 24) == [[]]


def test_joined_pieces_are_the_answer_to_the_whole(scorer: Scorer) -> None:
    texts = ["The film was good.", "...", "Not dull!", "I loved it. The film was bad.", "!", "good"]
    whole = scorer.score_flat(texts)
    parts = joined([scorer.score_flat(texts[:2]), scorer.score_flat(texts[2:3]), scorer.score_flat(texts[3:])])
    assert parts.refused == whole.refused
    for name in set(Scored.__dataclass_fields__) - {"refused"}:
        assert getattr(parts, name).dtype == getattr(whole, name).dtype
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-6)


# Bundles


class Calls:
    """Notes calls, and answers each when it is let go."""

    def __init__(self) -> None:
        self.texts: list[list[str]] = []
        self.let_go = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, texts: Sequence[str], attention: Sequence[AttentionDetail]) -> Answers:
        self.texts.append(list(texts))
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "bad" in texts:
            raise Problem(503, "unavailable", "")
        return Answers(results=[f"{text_} {detail}".encode() for text_, detail in zip(texts, attention, strict=True)], model="one")


async def send(bundles: Bundles, *texts: str, attention: AttentionDetail = "none") -> asyncio.Task[Answers]:
    task = asyncio.create_task(bundles.score(texts, attention))
    await asyncio.sleep(0)
    return task


def test_while_few_calls_are_under_way_a_request_is_a_call_and_then_they_gather() -> None:
    async def main() -> None:
        calls = Calls()
        bundles = Bundles(calls)
        first = [await send(bundles, f"first {number}") for number in range(MAX_CALLS)]
        others = [await send(bundles, "a", "b", attention="words"), await send(bundles, "c")]
        await asyncio.sleep(0)
        assert len(calls.texts) == MAX_CALLS
        calls.let_go.set()
        await asyncio.gather(*first)
        assert [each.results for each in await asyncio.gather(*others)] == [[b"a words", b"b words"], [b"c none"]]
        assert len(calls.texts) == MAX_CALLS + 1

    asyncio.run(main())


def test_a_call_that_fails_is_told_to_all_its_requests_and_the_next_goes_on() -> None:
    async def main() -> None:
        calls = Calls()
        calls.let_go.set()
        bundles = Bundles(calls)
        with pytest.raises(Problem):
            await bundles.score(["bad"], "none")
        assert (await bundles.score(["good"], "none")).results == [b"good none"]

    asyncio.run(main())


def test_what_gathers_is_one_call_and_a_long_request_goes_by_itself() -> None:
    async def main() -> list[list[str]]:
        calls = Calls()
        bundles = Bundles(calls)
        tasks = [await send(bundles, "first") for _ in range(MAX_CALLS)]
        tasks += [await send(bundles, text_) for text_ in ("a", "b", LONG, "c")]
        gone = await send(bundles, "gone")
        gone.cancel()
        calls.let_go.set()
        await asyncio.gather(*tasks)
        return calls.texts[MAX_CALLS:]

    assert asyncio.run(main()) == [["a", "b"], [LONG], ["c"]]


def test_a_call_stops_only_when_all_its_requests_are_gone() -> None:
    async def main() -> None:
        calls = Calls()
        bundles = Bundles(calls)
        first = [await send(bundles, "first") for _ in range(MAX_CALLS)]
        one, two = await send(bundles, "one"), await send(bundles, "two")
        first[0].cancel()
        await until(lambda: calls.texts[MAX_CALLS:] == [["one", "two"]])
        assert calls.cancelled == 1
        one.cancel()
        await asyncio.wait({one})
        await asyncio.sleep(0)
        assert calls.cancelled == 1
        two.cancel()
        await until(lambda: calls.cancelled == 2)
        calls.let_go.set()
        await asyncio.gather(*first[1:])

    asyncio.run(main())


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
    """A deployment's handle whose calls end as told, one after the other."""

    def __init__(self, *outcomes: Any) -> None:
        self.score = self.about = self
        self.responses = [FakeResponse(outcome) for outcome in outcomes]
        self.asked = 0

    def remote(self, *arguments: Any) -> FakeResponse:
        self.asked += 1
        return self.responses[self.asked - 1]


ANSWERS = Answers(results=[b"{}"], model="one")
DIED, AWAY = ActorDiedError(), ActorUnavailableError("away", None)


def call(handle: FakeHandle, *, retries: int = 2) -> tuple[Answers | tuple[int, int | None], Metrics]:
    """The answers, or status and Retry-After of the problem; and what was counted."""
    metrics = Metrics()
    replicas = Replicas(handle, handle, metrics, Options(retries=retries, deadline_s=0.1), source="test")  # type: ignore[arg-type]
    try:
        return asyncio.run(replicas.score(["good"], "words")), metrics
    except Problem as problem:
        return (problem.status, problem.retry_after_s), metrics


@pytest.mark.parametrize("outcomes", [(DIED, ANSWERS), (AWAY, DIED, ANSWERS)])
def test_a_request_whose_replica_died_is_sent_again(outcomes: tuple[Any, ...]) -> None:
    answer, metrics = call(FakeHandle(*outcomes))
    assert answer == Answers(results=[b"{}"], model="one", retries=len(outcomes) - 1)
    assert metrics.counts["han_retries_total"] == len(outcomes) - 1


def test_a_request_whose_replica_says_nothing_is_sent_to_another_beside_it() -> None:
    handle = FakeHandle("never", ANSWERS)
    answer, metrics = call(handle)
    assert answer == Answers(results=[b"{}"], model="one", retries=1)
    assert metrics.counts["han_retries_total"] == 1
    assert handle.responses[0].cancelled


def test_few_requests_are_sent_beside_others_that_say_nothing() -> None:
    handle = FakeHandle(*["never"] * 20)

    async def main() -> None:
        replicas = Replicas(handle, handle, Metrics(), Options(deadline_s=0.05), source="test")  # type: ignore[arg-type]
        calls = [asyncio.create_task(replicas.about()) for _ in range(10)]
        await asyncio.sleep(0.3)
        for one in calls:
            one.cancel()

    asyncio.run(main())
    assert handle.asked == 10 + MAX_CALLS


def test_after_the_last_retry_it_is_503() -> None:
    handle = FakeHandle(DIED, DIED, DIED, ANSWERS)
    answer, metrics = call(handle)
    assert (answer, handle.asked, metrics.counts["han_retries_total"]) == ((503, 1), 3, 2)


def test_with_retries_off_a_death_is_503() -> None:
    handle = FakeHandle(DIED, ANSWERS)
    assert call(handle, retries=0)[0] == (503, 1)
    assert handle.asked == 1


def test_a_fault_is_not_tried_again() -> None:
    handle = FakeHandle(RuntimeError("a fault"), ANSWERS)
    with pytest.raises(RuntimeError):
        call(handle)
    assert handle.asked == 1


def test_a_full_queue_is_429() -> None:
    answer, metrics = call(FakeHandle(BackPressureError(1, 1)))
    assert (answer, metrics.counts["han_shed_total"]) == ((429, 1), 1)


def test_a_call_whose_caller_has_left_is_cancelled() -> None:
    handle = FakeHandle("never")

    async def main() -> None:
        replicas = Replicas(handle, handle, Metrics(), Options(), source="test")  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(replicas.score(["good"], "words"), 0.05)

    asyncio.run(main())
    assert handle.responses[0].cancelled


# Counts


def counted(number: int, *, in_flight: int = 0) -> Metrics:
    metrics = Metrics()
    for _ in range(number):
        metrics.count("han_requests_total", route="/v1/score", code="200")
        metrics.observe("han_request_seconds", 0.03, route="/v1/score")
    metrics.add("han_requests_in_flight", in_flight)
    return metrics


def read(told: str) -> dict[str, float]:
    """Prometheus's own reader's view of it, samples by name and labels."""
    families = list(text_string_to_metric_families(told))
    return {f"{sample.name}{sorted(sample.labels.items())}": sample.value for family in families for sample in family.samples}


def test_the_sum_is_over_all_processes_and_reads_as_prometheus() -> None:
    total = Total()
    total.put("a", counted(3, in_flight=1).state())
    total.put("b", counted(4, in_flight=2).state())
    found = read(total.text(silent_s=60))
    assert found["han_requests_total[('code', '200'), ('route', '/v1/score')]"] == 7
    assert found["han_requests_in_flight[]"] == 3
    assert found["han_request_seconds_bucket[('le', '0.02'), ('route', '/v1/score')]"] == 0
    assert found["han_request_seconds_bucket[('le', '0.05'), ('route', '/v1/score')]"] == 7
    assert found["han_request_seconds_bucket[('le', '+Inf'), ('route', '/v1/score')]"] == 7
    assert found["han_request_seconds_sum[('route', '/v1/score')]"] == pytest.approx(0.21)


def test_a_state_that_comes_twice_counts_once() -> None:
    total = Total()
    for number in (1, 3, 3):
        total.put("a", counted(number).state())
    assert read(total.text(silent_s=60))["han_requests_total[('code', '200'), ('route', '/v1/score')]"] == 3


def test_counts_of_a_dead_process_stay_and_its_gauges_go() -> None:
    total = Total()
    total.put("dead", counted(5, in_flight=5).state())
    found = read(total.text(silent_s=-1))
    assert found["han_requests_total[('code', '200'), ('route', '/v1/score')]"] == 5
    assert not any(name.startswith("han_requests_in_flight") for name in found)


def test_refusals_and_second_attempts_are_told_before_there_is_one_so_that_the_first_is_a_rise() -> None:
    found = read(Total().text(silent_s=60))
    assert found == {"han_shed_total[]": 0, "han_retries_total[]": 0}


def test_every_series_belongs_to_a_family_that_is_described() -> None:
    metrics = counted(1, in_flight=1)
    told = text(metrics.state())
    for series in (*metrics.counts, *metrics.gauges):
        assert f"\n{series} " in told


# Keys and doors


@pytest.mark.parametrize("content", ["", "\n \n", "short\n", "long-enough-for-a-key\nshort\n", None])
def test_a_file_without_good_keys_is_a_mistake(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Mistake, match="api_keys_file"):
        Keys(path)


def test_a_file_of_keys_that_is_half_written_leaves_the_old_ones_in_force(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("long-enough-for-a-key\n")
    keys = Keys(path)
    path.write_text("")
    keys.check("Bearer long-enough-for-a-key")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost", None])
def test_on_this_machine_no_key_is_asked_for(host: str | None) -> None:
    check_door(host, Options())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "", "example.org"])  # noqa: S104 - to be refused
def test_beyond_this_machine_there_is_a_key_or_a_decision(host: str) -> None:
    with pytest.raises(Mistake, match="api_keys_file"):
        check_door(host, Options())
    check_door(host, Options(api_keys_file="keys"))
    check_door(host, Options(insecure=True))


@pytest.mark.parametrize(
    "wrong", [{"deadline_s": 31}, {"deadline_s": 0}, {"retries": -1}, {"max_texts": 0}, {"modle": "imdb"}, {"cpus": 0}]
)
def test_options_out_of_range_or_unknown_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)


def test_serve_sees_the_type_of_the_options() -> None:
    assert inspect.signature(build).parameters["options"].annotation is Options


def test_a_model_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(Mistake, match="no model at"):
        build(Options(model="nowhere"))


def test_every_option_is_described() -> None:
    assert [name for name, field in Options.model_fields.items() if not field.description] == []


def test_values_from_a_command_line_are_taken() -> None:
    assert Options.model_validate({"retries": "0", "deadline_s": "2.5", "insecure": "true"}) == Options(
        retries=0, deadline_s=2.5, insecure=True
    )


def test_a_score_has_all_its_fields_in_the_document() -> None:
    document = json.loads((ROOT / "serve" / "openapi.json").read_text())
    assert set(document["components"]["schemas"]["Score"]["properties"]) == set(Score.__dataclass_fields__)
