"""The HTTP routes without Ray: requests, refusals, and properties of every response."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from han.model import artifact
from han.score.scorer import Scorer, as_json
from han.types import AttentionDetail, Refusal, Score
from serve import api
from serve.admission import Admission
from serve.api import make_app
from serve.backend import About, Answers
from serve.errors import Problem
from serve.metrics import Metrics, text
from serve.middleware import Middleware
from serve.options import Options
from tests.helpers import local_service

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-32-characters-for-tests"
REVIEW = "The film was good. I loved it! Not dull."
SCORE = "/v1/score"
INFER = "/v2/models/han/infer"
JSON = {"content-type": "application/json"}


def ask(app: Middleware, method: str, path: str, *, prefix: str = "", **request: Any) -> httpx.Response:
    """Send a request. prefix: the route prefix, which Serve's proxy puts into `root_path` and keeps in `path`."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, root_path=prefix)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://test{prefix}") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def problem(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["field"]


def as_float32(value: Any) -> Any:
    """The same JSON with float32 numbers."""
    if isinstance(value, dict):
        return {name: as_float32(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_float32(each) for each in value]
    return np.float32(value) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> artifact.Artifact:
    return artifact.load(tiny_model)


@pytest.fixture(scope="module")
def app(model: artifact.Artifact) -> Middleware:
    return local_service.app(model, Options())


@pytest.fixture(scope="module")
def scorer(model: artifact.Artifact) -> Scorer:
    return Scorer(model)


class Fake:
    """A backend that waits or fails; it counts its calls and the cancelled ones."""

    def __init__(self, *, wait_s: float = 0.0, error: Exception | None = None) -> None:
        self.wait_s, self.error, self.cancelled, self.calls, self.self_tests = wait_s, error, 0, 0, 0
        self.counts = Metrics()

    async def score(self, texts: Sequence[str], attention: AttentionDetail) -> Answers:
        self.calls += 1
        try:
            await asyncio.sleep(self.wait_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        return Answers(results=[b"{}" for _ in texts], model="fake")

    async def about(self) -> About:
        return About(model="fake", labels=("negative", "positive"), metrics={}, max_characters=50_000)

    async def self_test(self) -> None:
        self.self_tests += 1
        if self.error:
            raise self.error

    async def metrics(self) -> str:
        return text(self.counts.state())

    def app(self, **options: Any) -> Middleware:
        return make_app(self, Options(**options), self.counts, replica="test", behind_proxy=False)


# Answers


@pytest.mark.parametrize("attention", ["none", "sentences", "words"])
def test_the_response_has_the_fields_of_the_scorer(app: Middleware, scorer: Scorer, attention: AttentionDetail) -> None:
    (score,) = scorer.score([REVIEW], attention=attention, effects="none" if attention == "none" else "sentences")
    assert isinstance(score, Score)
    answer = ask(app, "POST", SCORE, json={"inputs": REVIEW, "attention": attention}).json()
    assert as_float32(answer["results"]) == [as_float32(as_json(score))]
    assert answer["model"] == score.model


def test_exact_effects_of_words_equal_those_of_the_scorer(app: Middleware, scorer: Scorer) -> None:
    (score,) = scorer.score([REVIEW], effects="exact_words")
    assert isinstance(score, Score)
    answer = ask(app, "POST", SCORE, json={"inputs": REVIEW, "effects": "exact_words"}).json()
    assert as_float32(answer["results"]) == [as_float32(as_json(score))]
    assert answer["results"][0]["effects"]["word_method"] == "leave_one_out"


@pytest.mark.parametrize("body", [{"inputs": [REVIEW, REVIEW]}, {"inputs": REVIEW, "attention": "sentences"}])
def test_exact_effects_of_words_need_one_review_and_word_attention(app: Middleware, body: dict[str, Any]) -> None:
    answer = ask(app, "POST", SCORE, json={**body, "effects": "exact_words"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


def test_results_keep_the_order_of_the_list(app: Middleware, scorer: Scorer) -> None:
    texts = [f"{word} {word}." for word in ("the", "film", "was", "good", "bad", "dull", "not", "i", "loved", "it")]
    results = ask(app, "POST", SCORE, json={"inputs": texts}).json()["results"]
    for result, score in zip(results, scorer.score(texts), strict=True):
        assert isinstance(score, Score)
        assert result["probabilities"] == pytest.approx(score.probabilities, abs=1e-6)


def test_a_response_has_words_by_default(app: Middleware) -> None:
    assert ask(app, "POST", SCORE, json={"inputs": REVIEW}).json()["results"][0]["sentences"][0]["words"]


def test_the_limits_are_part_of_the_model(app: Middleware) -> None:
    assert ask(app, "GET", "/v1/model").json()["limits"] == {
        "max_body_bytes": 2 * 2**20,
        "max_texts": 32,
        "max_characters": 5_000,
        "deadline_s": 5.0,
    }


def test_the_same_seed_draws_the_same_review(app: Middleware) -> None:
    one, two = (ask(app, "GET", "/v1/samples/random", params={"seed": 3}).json() for _ in range(2))
    assert one == two
    assert one.keys() == {"review_id", "text", "label"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/han/ready"])
def test_a_healthy_service_is_ready_and_alive(app: Middleware, path: str) -> None:
    assert ask(app, "GET", path).status_code == 200


def test_a_model_that_fails_its_test_is_not_ready_but_alive() -> None:
    app = Fake(error=Problem(503, "unavailable", "no model", retry_after_s=1)).app()
    assert [ask(app, "GET", path).status_code for path in ("/healthz", "/readyz", "/v2/health/ready")] == [200, 503, 503]


def test_readiness_checks_run_at_most_one_self_test_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, fake = 100.0, Fake()
    monkeypatch.setattr("serve.admission.time", SimpleNamespace(monotonic=lambda: now_s))
    app = fake.app()

    async def main() -> set[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            paths = ["/readyz", "/v2/health/ready", "/v2/models/han/ready"] * 10
            return {response.status_code for response in await asyncio.gather(*map(client.get, paths))}

    assert asyncio.run(main()) == {200}
    assert fake.self_tests == 1
    assert asyncio.run(main()) == {200}
    assert fake.self_tests == 1
    now_s += 1.1
    fake.error = Problem(503, "unavailable", "no model", retry_after_s=1)
    assert asyncio.run(main()) == {503}
    assert fake.self_tests == 2


def test_a_readiness_check_whose_client_disconnects_does_not_fail_another() -> None:
    fake = Fake()
    started = asyncio.Event()

    async def self_test() -> None:
        started.set()
        await asyncio.sleep(0.01)

    fake.self_test = self_test  # type: ignore[method-assign]
    app = fake.app()

    async def main() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            leaving, staying = (asyncio.create_task(client.get("/readyz")) for _ in range(2))
            await started.wait()
            leaving.cancel()
            return (await staying).status_code

    assert asyncio.run(main()) == 200


# KServe


def tensor(*texts: str, **changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts), **changes}]}


def test_kserve_gets_labels_probabilities_and_whole_scores(app: Middleware, scorer: Scorer) -> None:
    (score,) = scorer.score([REVIEW], effects="sentences")
    assert isinstance(score, Score)
    answer = ask(app, "POST", INFER, json={**tensor(REVIEW), "id": "mine"}).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("han", score.model, "mine")
    assert outputs["label"]["data"] == [score.label]
    assert outputs["probability"]["data"] == pytest.approx([score.probability])
    assert as_float32(json.loads(outputs["score"]["data"][0])) == as_float32(as_json(score))
    assert {output["shape"][0] for output in outputs.values()} == {1}


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": []},
        {"inputs": [1]},
        tensor(REVIEW, name="image"),
        tensor(REVIEW, datatype="FP32"),
        tensor(REVIEW, shape=[2]),
        tensor(REVIEW, shape="[1]"),
        tensor(REVIEW, more=1),
        {**tensor(REVIEW), "id": 7},
        {**tensor(REVIEW), "id": "\x00"},
        {"inputs": [{"name": "text"}]},
    ],
)
def test_kserve_refuses_a_body_that_is_not_a_tensor_of_texts(app: Middleware, body: Any) -> None:
    response = ask(app, "POST", INFER, json=body)
    assert response.status_code == 422
    assert isinstance(response.json()["error"], str)


def test_kserve_describes_its_model(app: Middleware) -> None:
    assert ask(app, "GET", "/v2/models/han").json()["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert ask(app, "GET", "/v2/models/other").json()["error"].startswith("there is no such path")


# Refusals


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (422, "invalid_request", "inputs")),
        ([], (422, "invalid_request", None)),
        ("text", (422, "invalid_request", None)),
        ({"inputs": None}, (422, "invalid_request", "inputs")),
        ({"inputs": 1}, (422, "invalid_request", "inputs")),
        ({"inputs": []}, (422, "invalid_request", "inputs")),
        ({"inputs": ["good", 1]}, (422, "invalid_request", "inputs[1]")),
        ({"inputs": "good", "attention": "all"}, (422, "invalid_request", "attention")),
        ({"inputs": "good", "attention": []}, (422, "invalid_request", "attention")),
        ({"inputs": "good", "url": "http://example"}, (422, "invalid_request", None)),
        ({"inputs": ""}, (422, "empty_text", "inputs")),
        ({"inputs": "<br /> ... \u200b\u202e"}, (422, "empty_text", "inputs")),
        ({"inputs": ["good", "?!"]}, (422, "empty_text", "inputs[1]")),
        ({"inputs": "a" * 5_001}, (413, "too_long", "inputs")),
        ({"inputs": ["good", "a" * 5_001]}, (413, "too_long", "inputs[1]")),
        ({"inputs": ["good"] * 33}, (413, "too_many", "inputs")),
    ],
)
def test_a_request_that_cannot_be_scored_says_why_and_where(app: Middleware, body: Any, expected: tuple[int, str, str | None]) -> None:
    assert problem(ask(app, "POST", SCORE, json=body)) == expected


@pytest.mark.parametrize("texts", [["good"] * 32, ["a" * 5_000]])
def test_a_request_at_the_limit_is_scored(app: Middleware, texts: list[str]) -> None:
    assert ask(app, "POST", SCORE, json={"inputs": texts}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": "good"} and more',
        b'{"inputs": "good", "inputs": "bad"}',
        b'{"inputs": NaN}',
        b'{"inputs": -Infinity}',
        b'{"inputs": ' + b"9" * 100_000 + b"}",
        b'\xef\xbb\xbf{"inputs": "good"}',
        '{"inputs": "good"}'.encode("utf-16"),
        b'{"inputs": "\xff"}',
        b'{"inputs": "line\nbreak"}',
        b"[" * 100_000,
        b'{"inputs":' * 100_000,
    ],
    ids=lambda body: str(body[:24]),
)
def test_a_body_that_is_not_json_is_400(app: Middleware, body: bytes) -> None:
    assert problem(ask(app, "POST", SCORE, content=body, headers=JSON)) == (400, "invalid_json", None)


def test_a_null_body_is_refused(app: Middleware) -> None:
    assert problem(ask(app, "POST", SCORE, content=b"null", headers=JSON)) == (422, "invalid_request", None)


def test_a_number_beyond_all_floats_and_a_million_elements_are_refused(app: Middleware) -> None:
    assert problem(ask(app, "POST", SCORE, content=b'{"inputs": 1e400}', headers=JSON)) == (422, "invalid_request", "inputs")
    million = b'{"inputs": [' + b"1," * 999_999 + b"1]}"
    assert problem(ask(app, "POST", SCORE, content=million, headers=JSON)) == (413, "too_many", "inputs")


@pytest.mark.parametrize("text", [r"\ud800", r"good \udfff film", r"\ude00\ud83d"])
def test_half_a_surrogate_pair_is_422(app: Middleware, text: str) -> None:
    body = b'{"inputs": ["good", "' + text.encode() + b'"]}'
    assert problem(ask(app, "POST", SCORE, content=body, headers=JSON)) == (422, "invalid_utf8", "inputs[1]")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/jsonx"},
        {**JSON, "content-encoding": "gzip"},
    ],
)
@pytest.mark.parametrize("path", [SCORE, INFER])
def test_another_content_type_is_415(app: Middleware, headers: dict[str, str], path: str) -> None:
    assert ask(app, "POST", path, content=b'{"inputs": "good"}', headers=headers).status_code == 415


def test_the_charset_utf_8_is_accepted(app: Middleware) -> None:
    headers = {"content-type": 'Application/JSON; charset="UTF-8"'}
    assert ask(app, "POST", SCORE, content=b'{"inputs": "good"}', headers=headers).status_code == 200


def test_other_paths_are_404_and_other_methods_405(app: Middleware) -> None:
    assert problem(ask(app, "GET", "/admin")) == (404, "not_found", None)
    assert problem(ask(app, "GET", "/static/../options.py")) == (404, "not_found", None)
    response = ask(app, "GET", SCORE)
    assert (problem(response), response.headers["allow"]) == ((405, "method_not_allowed", None), "POST")


def test_a_seed_that_is_not_a_number_is_422(app: Middleware) -> None:
    assert problem(ask(app, "GET", "/v1/samples/random", params={"seed": "canary"})) == (422, "invalid_request", "seed")


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_json_is_answered_without_a_fault_and_not_echoed(app: Middleware, value: Any) -> None:
    for body in (value, {"inputs": value}, {"inputs": [value]}):
        response = ask(app, "POST", SCORE, content=json.dumps(body).encode("utf-8", "surrogatepass"), headers=JSON)
        assert response.status_code < 500
        if isinstance(value, str) and len(value) > 4 and response.status_code >= 400:
            assert json.dumps(value)[1:-1] not in response.text


# Limits


def chunks(
    app: Middleware, messages: Sequence[dict[str, Any]], *, headers: dict[str, str], then: Callable[[], Any]
) -> tuple[int | None, bytes]:
    """Status and body of the response to a body in pieces. After them the client does `then`."""
    waiting, sent = list(messages), []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else await then()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": SCORE,
        "raw_path": SCORE.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in {**JSON, **headers}.items()],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
    }
    asyncio.run(app(scope, receive, send))
    return (sent[0]["status"] if sent else None), b"".join(message.get("body", b"") for message in sent)


async def stays() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def leaves() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def called(fake: Fake, number: int = 1) -> None:
    """Wait until the backend is called."""
    async with asyncio.timeout(10):
        while fake.calls < number:
            await asyncio.sleep(0.002)


def piece(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_with_too_large_a_content_length_is_413_before_it_is_read() -> None:
    status, _ = chunks(Fake().app(), [], headers={"content-length": str(2 * 2**20 + 1)}, then=stays)
    assert status == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 100, "\u0663"])
def test_a_content_length_that_is_not_a_number_is_413(length: str) -> None:
    headers = {"content-length": length} if length.isascii() else {"content-length": "x"}
    assert chunks(Fake().app(), [], headers=headers, then=stays)[0] == 413


def test_a_body_that_grows_too_large_in_chunks_is_413() -> None:
    megabyte = piece(b" " * 2**20, more=True)
    assert chunks(Fake().app(), [megabyte] * 3, headers={}, then=stays)[0] == 413


def test_a_body_of_exactly_the_limit_is_read() -> None:
    body = b'{"inputs": "good"}'
    padded = body + b" " * (2 * 2**20 - len(body))
    assert chunks(Fake().app(), [piece(padded[:99], more=True), piece(padded[99:], more=False)], headers={}, then=stays)[0] == 200


def test_a_stalled_body_is_408_at_the_deadline() -> None:
    assert chunks(Fake().app(deadline_s=0.1), [piece(b"{", more=True)], headers={}, then=stays)[0] == 408


@pytest.mark.parametrize("header", [{}, {"x-request-timeout-seconds": "0"}, {"x-request-disconnect-disabled": "?1"}])
def test_no_header_extends_the_deadline_and_the_work_is_cancelled(header: dict[str, str]) -> None:
    slow = Fake(wait_s=60)
    assert problem(ask(slow.app(deadline_s=0.1), "POST", SCORE, json={"inputs": "good"}, headers=header)) == (504, "deadline", None)
    assert slow.cancelled == 1


def test_a_client_that_disconnects_cancels_its_work() -> None:
    slow = Fake(wait_s=60)

    async def leaves_in_the_middle() -> dict[str, Any]:
        await called(slow)
        return await leaves()

    status, _ = chunks(slow.app(), [piece(b'{"inputs": "good"}', more=False)], headers={}, then=leaves_in_the_middle)
    assert (status, slow.cancelled) == (None, 1)
    assert 'han_requests_total{route="/v1/score",code="499"} 1' in text(slow.counts.state())


def test_a_client_that_disconnects_during_its_body_is_counted_and_releases_its_admission() -> None:
    fake = Fake()
    assert chunks(fake.app(), [piece(b"{", more=True)], headers={}, then=leaves) == (None, b"")
    assert fake.calls == 0


def test_admission_accepts_only_what_can_be_scored_well_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("serve.admission.time", SimpleNamespace(monotonic=lambda: now_s))
    counts, options = Metrics(), Options(max_waiting_tokens=1_000_000, batch_tokens=100, deadline_s=1)
    admission = Admission(options, counts)
    with admission.scored(5_000):
        admission.check()  # nothing is known yet
        now_s += 0.1
    with admission.scored(20_000):  # 50,000 a second: half the deadline is good for 25,000
        admission.check()
        with admission.scored(20_000):
            now_s += 0.1
            with pytest.raises(Problem):
                admission.check()
    assert counts.counts["han_shed_total"] == 1


def test_a_request_beyond_the_limit_is_refused_before_its_body_is_read() -> None:
    fake = Fake(wait_s=2)
    app = fake.app(max_waiting_tokens=1)

    async def main() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            first = asyncio.create_task(client.post(SCORE, json={"inputs": "good film"}))
            await called(fake)
            status = (await client.post(SCORE, content=b"{no JSON", headers={"content-type": "text/plain"})).status_code
            first.cancel()
            return status

    assert asyncio.run(main()) == 429


def test_bodies_that_are_still_read_count_by_their_declared_length() -> None:
    fake = Fake()
    app = fake.app(max_waiting_tokens=400)
    rest = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"inputs": "good film'
        await rest.wait()
        yield b'"}' + b" " * 1_977

    async def main() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            slow = asyncio.create_task(client.post(SCORE, content=body(), headers={**JSON, "content-length": "2000"}))
            async with asyncio.timeout(10):
                while "han_tokens_in_flight 500" not in text(fake.counts.state()):
                    await asyncio.sleep(0.002)
            beside = await client.post(SCORE, content=b"{no JSON", headers=JSON)
            rest.set()
            return [beside.status_code, (await slow).status_code]

    assert asyncio.run(main()) == [429, 200]
    assert "han_tokens_in_flight 0" in text(fake.counts.state())


def test_a_request_beyond_the_limit_is_429_with_retry_after() -> None:
    fake = Fake(wait_s=0.5)
    app = fake.app(max_waiting_tokens=1)

    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await asyncio.gather(*(client.post(SCORE, json={"inputs": "good film"}) for _ in range(5)))

    responses = asyncio.run(burst())
    assert sorted(response.status_code for response in responses) == [200, 429, 429, 429, 429]
    assert {response.headers.get("retry-after") for response in responses} == {None, "1"}
    assert fake.calls == 1
    exported = text(fake.counts.state())
    assert "han_shed_total 4" in exported
    assert "han_tokens_in_flight 0" in exported
    assert ask(app, "POST", SCORE, json={"inputs": "good film"}).status_code == 200


def test_a_fault_is_500_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="han.serve"):
        response = ask(Fake(error=RuntimeError("secret text")).app(), "POST", SCORE, json={"inputs": "good"})
    assert problem(response) == (500, "internal", None)
    assert "secret" not in response.text + caplog.text
    assert "RuntimeError" in caplog.text


# Keys


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\nanother-key-of-some-length\n")
    return path


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        (f"Basic {KEY}", 401),
        ("Bearer wrong", 401),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        ("Bearer another-key-of-some-length", 200),
    ],
)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", SCORE, {"inputs": "good"}), ("POST", INFER, tensor("good")), ("GET", "/v1/model", None), ("GET", "/metrics", None)],
)
def test_a_key_opens_the_routes_of_the_service(
    model: artifact.Artifact, keys: Path, header: str | None, status: int, method: str, path: str, body: Any
) -> None:
    app = local_service.app(model, Options(api_keys_file=str(keys)))
    response = ask(app, method, path, json=body, headers={"authorization": header} if header is not None else {})
    assert response.status_code == status
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


@pytest.mark.parametrize("prefix", ["", "/han", "/v1"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", SCORE), ("POST", INFER), ("GET", "/v1/model"), ("GET", "/v1/samples/random"), ("GET", "/metrics"), ("GET", "/none")],
)
def test_only_public_routes_are_answered_without_a_key_under_any_prefix(
    model: artifact.Artifact, keys: Path, prefix: str, method: str, path: str
) -> None:
    app = local_service.app(model, Options(api_keys_file=str(keys)))
    assert ask(app, method, path, prefix=prefix).status_code == 401


@pytest.mark.parametrize("prefix", ["", "/han", "/v1"])
def test_every_route_is_public_or_needs_a_key_as_documented(model: artifact.Artifact, keys: Path, prefix: str) -> None:
    app = local_service.app(model, Options(api_keys_file=str(keys)))
    for path, methods in api.document()["paths"].items():
        for method, operation in methods.items():
            answered = ask(app, method.upper(), path, prefix=prefix, json={}).status_code
            assert (answered == 401) == ("401" in operation["responses"]), path


def test_admission_counts_requests_under_a_prefix(model: artifact.Artifact) -> None:
    fake = Fake(wait_s=0.2)
    app = fake.app(max_waiting_tokens=1)

    async def main() -> list[int]:
        transport = httpx.ASGITransport(app=app, root_path="/han")
        async with httpx.AsyncClient(transport=transport, base_url="http://test/han") as client:
            first = asyncio.create_task(client.post(SCORE, json={"inputs": REVIEW}))
            await called(fake)
            return [(await client.post(SCORE, content=b"{", headers=JSON)).status_code, (await first).status_code]

    assert asyncio.run(main()) == [429, 200]  # refused before its body is read


def test_a_refusal_under_a_prefix_has_the_shape_of_its_protocol(model: artifact.Artifact) -> None:
    refused = ask(local_service.app(model, Options()), "POST", INFER, prefix="/han", json={})
    assert isinstance(refused.json()["error"], str)


@pytest.mark.parametrize("prefix", ["", "/han", "/v1"])
def test_health_and_the_page_need_no_key(model: artifact.Artifact, keys: Path, prefix: str) -> None:
    app = local_service.app(model, Options(api_keys_file=str(keys)))
    assert {ask(app, "GET", path, prefix=prefix).status_code for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json")} == {200}


def test_a_key_that_is_removed_from_the_file_is_refused(model: artifact.Artifact, keys: Path) -> None:
    app = local_service.app(model, Options(api_keys_file=str(keys)))
    keys.write_text("a-new-key-that-is-long-enough\n")
    old, new = ({"authorization": f"Bearer {key}"} for key in (KEY, "a-new-key-that-is-long-enough"))
    assert [ask(app, "GET", "/v1/model", headers=headers).status_code for headers in (old, new)] == [401, 200]


# Headers and logs


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/static/page.css"), ("GET", "/healthz"), ("GET", "/none"), ("POST", SCORE), ("PUT", SCORE)]
)
def test_every_response_has_an_id_and_security_headers(app: Middleware, method: str, path: str) -> None:
    headers = ask(app, method, path).headers
    assert headers["x-request-id"]
    assert headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert "access-control-allow-origin" not in headers


def test_cross_origin_requests_get_no_permission(app: Middleware) -> None:
    headers = {"origin": "http://elsewhere", "access-control-request-method": "POST"}
    response = ask(app, "OPTIONS", SCORE, headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("given_id", ["a", "A-z0.9_", "x" * 64])
def test_a_request_keeps_its_id(app: Middleware, given_id: str) -> None:
    response = ask(app, "POST", SCORE, json={"inputs": "good"}, headers={"x-request-id": given_id})
    assert response.headers["x-request-id"] == response.json()["request_id"] == given_id


@pytest.mark.parametrize("given_id", [b"", b"x" * 65, b"a b", b"\xff\xfe", b'"><script>', "\u00e9".encode()])
def test_an_invalid_request_id_is_replaced(app: Middleware, given_id: bytes) -> None:
    response = ask(
        app, "POST", SCORE, json={"inputs": "..."}, headers=[(b"x-request-id", given_id), (b"content-type", b"application/json")]
    )
    assert response.status_code == 422
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert response.headers["x-request-id"].isalnum()


def test_a_request_is_one_log_line_without_its_text_or_key(app: Middleware, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="han.serve"):
        ask(app, "POST", "/v1/score?q=canary", json={"inputs": ["canary film", "good"]}, headers={"authorization": "Bearer canary"})
        ask(app, "GET", "/canary%0d%0aforged")
    scored, lost = (json.loads(record.getMessage()) for record in caplog.records)
    assert (scored["route"], scored["code"], scored["texts"], scored["replica"]) == ("/v1/score", 200, 2, "local")
    assert (lost["route"], lost["code"]) == ("other", 404)
    assert "canary" not in caplog.text


@pytest.mark.parametrize(("path", "kind"), [("/", "text/html"), ("/docs", "text/html"), ("/static/docs/start.js", "text/javascript")])
def test_static_files_have_their_type_and_are_revalidated(app: Middleware, path: str, kind: str) -> None:
    response = ask(app, "GET", path)
    assert response.headers["content-type"].startswith(kind)
    assert response.headers["cache-control"] == "no-cache"
    again = ask(app, "GET", path, headers={"if-none-match": response.headers["etag"]})
    assert again.status_code in (200, 304)


def test_the_documentation_loads_nothing_from_another_host() -> None:
    page = (ROOT / "serve" / "page" / "docs" / "index.html").read_text()
    assert "//" not in page
    assert "<script>" not in page
    assert "style=" not in page


# The document


def test_the_openapi_document_equals_the_committed_one() -> None:
    checked_in = json.loads((ROOT / "serve" / "openapi.json").read_text())
    assert api.document() == checked_in, "run: python -m serve.api > serve/openapi.json"


def test_every_operation_documents_its_error_responses() -> None:
    paths = api.document()["paths"]
    for path, status in [(SCORE, "400 401 408 413 415 422 429 500 503 504"), ("/readyz", "503"), ("/v1/model", "401"), (INFER, "429")]:
        (operation,) = paths[path].values()
        assert set(status.split()) <= operation["responses"].keys()
        assert all("content" in response for response in operation["responses"].values())


def conforms(value: Any, name: str) -> bool:
    document = api.document()
    validator = jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **document})
    return bool(validator.is_valid(value))


@pytest.mark.parametrize(
    "value",
    [
        {"inputs": "good"},
        {"inputs": ["good", "bad"], "attention": "none"},
        {"inputs": ["good"] * 33},
        {"inputs": []},
        {"inputs": 3},
        {"inputs": ["good", None]},
        {"inputs": "good", "attention": "all"},
        {"inputs": "good", "more": 1},
        {"attention": "words"},
        ["good"],
        "good",
    ],
)
def test_a_request_is_accepted_if_and_only_if_the_document_allows_it(app: Middleware, value: Any) -> None:
    assert conforms(value, "ScoreRequest") == (ask(app, "POST", SCORE, json=value).status_code == 200)


@pytest.mark.parametrize(
    "value",
    [
        tensor("good"),
        tensor("good", "bad", shape=[2, 1]),
        tensor("good", shape=[1.0]),
        tensor("good", shape=[True]),
        tensor("good", shape=[]),
        tensor("good", shape=[1, 1, 1]),
        tensor("good", shape=[0]),
        tensor("good", shape=["1"]),
        tensor("good", shape=None),
        tensor("good", parameters=None),
        tensor("good", parameters=[]),
        tensor("good", parameters={"any": 1}),
        tensor("good", more=1),
        tensor("good", name=["text"]),
        tensor("good", data="good"),
        tensor("good", data=[None]),
        tensor(*["good"] * 32),
        tensor(*["good"] * 33),
        tensor(shape=[1]),
        {**tensor("good"), "outputs": None},
        {**tensor("good"), "outputs": []},
        {**tensor("good"), "outputs": [{"name": "label"}]},
        {**tensor("good"), "outputs": [None, None]},
        {**tensor("good"), "outputs": {}},
        {**tensor("good"), "parameters": "all"},
        {**tensor("good"), "parameters": {}},
        {**tensor("good"), "id": None},
        {**tensor("good"), "id": 7},
        {**tensor("good"), "id": "x" * 64},
        {**tensor("good"), "id": "x" * 65},
        {**tensor("good"), "id": "a\x1fb"},
        {**tensor("good"), "id": "\u00e9"},
        {**tensor("good"), "more": 1},
        {"inputs": tensor("good")["inputs"] * 2},
        {"inputs": tensor("good")["inputs"][0]},
        {"inputs": [None] * 100_000},
        {},
        [],
    ],
    ids=lambda value: json.dumps(value)[:100],
)
def test_a_kserve_request_is_accepted_if_and_only_if_the_document_allows_it(app: Middleware, value: Any) -> None:
    assert conforms(value, "InferRequest") == (ask(app, "POST", INFER, json=value).status_code == 200)


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_a_million_wrong_elements_are_refused_quickly_and_with_little_memory(app: Middleware, field: str) -> None:
    body = json.dumps({**tensor("good"), field: [1] * 600_000})
    tracemalloc.start()
    began_s = time.perf_counter()
    assert ask(app, "POST", INFER, content=body, headers=JSON).status_code == 422
    took_s, (_, peak) = time.perf_counter() - began_s, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took_s < 5
    assert peak < 100 * 2**20


def test_responses_conform_to_the_document(app: Middleware) -> None:
    assert conforms(ask(app, "POST", SCORE, json={"inputs": [REVIEW, "bad"]}).json(), "ScoreAnswer")
    assert conforms(ask(app, "POST", SCORE, json={"inputs": REVIEW, "attention": "none"}).json(), "ScoreAnswer")
    assert conforms(ask(app, "POST", SCORE, json={}).json(), "ErrorAnswer")
    assert conforms(ask(app, "GET", "/v1/model").json(), "ModelAnswer")
    assert conforms(ask(app, "POST", INFER, json=tensor("good")).json(), "InferAnswer")
    assert conforms(ask(app, "POST", INFER, json={}).json(), "InferError")


def test_a_refusal_of_the_model_is_never_returned_as_a_score() -> None:
    class Refusing(Fake):
        async def score(self, texts: Sequence[str], attention: AttentionDetail) -> Answers:
            return Answers(results=[b"{}", Refusal(reason="empty_text", message="no word in the text")], model="fake")

    assert problem(ask(Refusing().app(), "POST", SCORE, json={"inputs": ["good", "x"]})) == (422, "empty_text", "inputs[1]")
