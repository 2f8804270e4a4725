"""The service on a real Serve, deployed from its config file and called through the real proxy."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from han.data import samples
from han.model import artifact
from han.score.scorer import Scorer, as_json
from han.types import Score, UserError
from serve.backend import estimate_tokens
from serve.coordinator import REPORT_S
from tests.helpers.fatal import FATAL, INVALID
from tests.helpers.serving import DEADLINE_S, PATIENCE_S, Service, status, until

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def service(serving: Service) -> Iterator[Service]:
    """serve/config.yaml on another port, with two processes of each kind."""
    serving.deploy(serving.config)
    until(lambda: status(serving.url) == 200)
    yield serving
    serving.deploy({**serving.config, "applications": []})
    until(lambda: status(serving.url) != 200)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(artifact.load(artifact.find("imdb")))


@pytest.fixture(scope="module")
def golden(scorer: Scorer) -> list[tuple[str, dict[str, Any]]]:
    """200 reviews and their scores by `Scorer`, with the effects of sentences, as the service has them."""
    texts = [json.loads(line)["text"] for line in samples.REVIEWS.read_text(encoding="utf-8").splitlines()[:200]]
    scores = scorer.score(texts, effects="sentences")
    return [(text, as_json(score)) for text, score in zip(texts, scores, strict=True) if isinstance(score, Score)]


def differ(one: Any, other: Any) -> bool:
    """Whether two answers differ by more than 1e-6 anywhere, effects in nats included."""
    if isinstance(other, dict):
        return one.keys() != other.keys() or any(differ(one[name], other[name]) for name in other)
    if isinstance(other, list):
        return len(one) != len(other) or any(differ(each, its) for each, its in zip(one, other, strict=True))
    return abs(one - other) > 1e-6 if isinstance(other, float) else bool(one != other)


def test_single_texts_and_lists_get_the_scores_of_the_scorer(service: Service, golden: list[tuple[str, dict[str, Any]]]) -> None:
    with httpx.Client(base_url=service.url) as client:
        singles = [client.post("/v1/score", json={"inputs": text}).json()["results"][0] for text, _ in golden[:40]]
        lists = [
            result
            for first in range(0, len(golden), 32)
            for result in client.post("/v1/score", json={"inputs": [text for text, _ in golden[first : first + 32]]}).json()["results"]
        ]
    assert len(lists) == 200
    assert not any(differ(found, wanted) for found, (_, wanted) in zip(singles, golden[:40], strict=True))
    assert not any(differ(found, wanted) for found, (_, wanted) in zip(lists, golden, strict=True))


def test_a_dump_scored_through_the_service_has_the_scores_of_the_scorer(
    service: Service, golden: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    from han.config import ColumnsConfig, OutputConfig, ScoreConfig
    from han.score import batch_job
    from serve import batch_client

    pq.write_table(pa.table({"text": [text for text, _ in golden]}), tmp_path / "dump.parquet", row_group_size=50)
    job = batch_job.plan(
        str(tmp_path / "dump.parquet"),
        str(tmp_path / "out"),
        model="imdb",
        columns=ColumnsConfig(),
        config=ScoreConfig(num_actors=2),
        output=OutputConfig(effects="sentences"),
        limit=None,
    )
    batch_job.score(job, lambda *_, **__: None, make_scorer=functools.partial(batch_client.ask, application="han"))
    found = {row["text"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert len(found) == 200
    for text, wanted in golden:
        assert not differ({name: found[text][name] for name in wanted}, wanted)


def test_two_hundred_requests_get_their_own_answers_while_a_replica_is_killed(
    service: Service, golden: list[tuple[str, dict[str, Any]]]
) -> None:
    before = settled(service)

    async def main() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=30) as client:
            waiting = [asyncio.create_task(client.post("/v1/score", json={"inputs": text})) for text, _ in golden]
            await asyncio.wait(waiting[:40], return_when=asyncio.ALL_COMPLETED)
            replica_processes("Model")[0].kill()
            return await asyncio.gather(*waiting)

    responses = asyncio.run(main())
    assert Counter(response.status_code for response in responses) == {200: 200}
    answers = [response.json()["results"][0] for response in responses]
    assert not any(differ(found, wanted) for found, (_, wanted) in zip(answers, golden, strict=True))
    until(lambda: counts(service) - before == {"200": 200})
    until(lambda: len(replica_processes("Model")) == 2)


def replica_processes(deployment: str) -> list[psutil.Process]:
    """The live processes of a deployment's replicas."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith(f"ray::ServeReplica:han:{deployment}") and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def counts(service: Service) -> Counter[str]:
    """Requests of /v1/score by status, from /metrics."""
    found = re.findall(r'han_requests_total\{route="/v1/score",code="(\d+)"\} (\d+)', httpx.get(f"{service.url}/metrics").text)
    return Counter({code: int(number) for code, number in found})


def settled(service: Service) -> Counter[str]:
    """Wait until the counts have not changed for several reports, and return them."""
    last, since_s = counts(service), time.monotonic()

    def unchanged() -> bool:
        nonlocal last, since_s
        if (now := counts(service)) != last:
            last, since_s = now, time.monotonic()
        return time.monotonic() - since_s > 4 * REPORT_S

    until(unchanged)
    return last


def test_the_counts_of_clients_are_the_counts_of_two_ingresses(service: Service) -> None:
    before = settled(service)
    seen: Counter[str] = Counter()
    bodies: list[Any] = [{"inputs": "good film"}, {"inputs": ""}, {"inputs": 3}, {"inputs": ["good"] * 33}]
    for number in range(40):
        with httpx.Client(base_url=service.url) as client:  # a connection each, so that both ingresses get some
            seen[str(client.post("/v1/score", json=bodies[number % 4]).status_code)] += 1
    assert seen == {"200": 10, "422": 20, "413": 10}
    until(lambda: counts(service) - before == seen)


def test_a_batch_job_gets_the_scores_of_the_scorer_through_the_handle(
    service: Service, scorer: Scorer, golden: list[tuple[str, dict[str, Any]]]
) -> None:
    from ray import serve

    texts = [text for text, _ in golden[:50]]
    handle = serve.get_deployment_handle("Model", "han")
    found, wanted = handle.score_flat.remote([*texts, ""], model=scorer.fingerprint).result(timeout_s=60), scorer.score_flat([*texts, ""])
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-6)
    np.testing.assert_allclose(found.word_attention, wanted.word_attention, atol=1e-6)
    assert found.refused == wanted.refused
    assert handle.about.remote().result(timeout_s=60).model == scorer.fingerprint
    with pytest.raises(UserError, match="the job began with other"):
        handle.score_flat.remote(texts, model="other").result(timeout_s=60)


def raw(service: Service, *parts: bytes, wait_s: float = 15) -> bytes:
    """Send bytes and return the response, until the server closes or a JSON object ends."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=wait_s) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break
        answer = b""
        try:
            while b"}" not in answer and (more := connection.recv(65536)):
                answer += more
        except ConnectionResetError:
            pass
        return answer


HEAD = b"POST /v1/score HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"


def test_an_endless_body_is_413(service: Service) -> None:
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert raw(service, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 48).startswith(b"HTTP/1.1 413")


def test_a_stalled_body_is_408_at_the_deadline_with_any_headers(service: Service) -> None:
    headers = [b"", b"x-request-timeout-seconds: 0\r\n", b"x-request-disconnect-disabled: ?1\r\n"]
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda header: raw(service, HEAD + header + b"Content-Length: 30\r\n\r\n{"), headers))
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}
    assert DEADLINE_S - 0.5 < time.monotonic() - began < DEADLINE_S + 3


def test_a_sent_request_id_comes_back_once(service: Service) -> None:
    response = httpx.get(f"{service.url}/healthz", headers={"x-request-id": "my-id"})
    assert response.headers.get_list("x-request-id") == ["my-id"]


def test_serve_listens_only_on_loopback(service: Service) -> None:
    listeners = [
        found for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN and found.laddr.port == service.port
    ]
    assert {found.laddr.ip for found in listeners} == {"127.0.0.1"}


def test_the_examples_of_the_documentation_run(service: Service) -> None:
    document = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").replace("http://127.0.0.1:8000", service.url)
    part = document.partition("<!-- run by tests/on_ray/test_serve.py -->")[2]
    shell, python = (re.search(rf"```{kind}\n(.*?)```", part, flags=re.DOTALL) for kind in ("bash", "python"))
    assert shell
    assert python
    assert len([line for line in python[1].splitlines() if line]) <= 11
    printed = subprocess.run(["bash", "-c", shell[1]], capture_output=True, text=True, timeout=30, check=True).stdout
    assert json.loads(printed)["results"][0]["label"] == "positive"
    printed = subprocess.run([sys.executable, "-c", python[1]], capture_output=True, text=True, timeout=30, check=True).stdout
    assert [line.split()[0] for line in printed.splitlines()] == ["positive", "negative"]


def test_a_short_text_does_not_wait_for_long_ones(service: Service) -> None:
    """24 requests of 8 long texts through two ingresses and two replicas; the short one is answered while most of them wait."""
    from ray import serve

    long = ["The film was good. " * 1_500] * 8  # 57,000 tokens: scoring them takes much longer than sending them
    service.deploy(changed(service, max_waiting_tokens=24 * sum(map(len, long)))[0])
    until(lambda: serve.status().applications["han"].status == "RUNNING")
    before = settled(service)

    async def num_accepted(client: httpx.AsyncClient) -> float:
        in_flight = re.search(r"han_tokens_in_flight (\d+)", (await client.get("/metrics")).text)
        return int(in_flight[1]) / sum(map(estimate_tokens, long)) if in_flight else 0

    async def main() -> tuple[int, int]:
        async with httpx.AsyncClient(base_url=service.url, timeout=30, limits=httpx.Limits(max_connections=40)) as client:
            longs = [asyncio.create_task(client.post("/v1/score", json={"inputs": long, "attention": "none"})) for _ in range(24)]
            async with asyncio.timeout(DEADLINE_S):
                while await num_accepted(client) < 12:
                    await asyncio.sleep(0.02)
            short = (await client.post("/v1/score", json={"inputs": "good film", "attention": "none"})).status_code
            return short, sum(not each.done() for each in longs) + 0 * len(await asyncio.gather(*longs))

    short, num_waiting = asyncio.run(main())
    assert short == 200
    assert num_waiting >= 12
    until(lambda: counts(service) - before == {"200": 25})
    service.deploy(service.config)
    until(lambda: serve.status().applications["han"].status == "RUNNING")


def changed(service: Service, **arguments: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A copy of the config with changed arguments, and its deployments by name."""
    config = json.loads(json.dumps(service.config))
    config["applications"][0]["args"] |= arguments
    return config, {deployment["name"]: deployment for deployment in config["applications"][0]["deployments"]}


def test_a_second_replica_starts_under_load(service: Service) -> None:
    config, deployments = changed(service)
    (shipped,) = (
        each
        for each in yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())["applications"][0]["deployments"]
        if each["name"] == "Model"
    )
    del deployments["Model"]["num_replicas"]
    deployments["Model"]["autoscaling_config"] = shipped["autoscaling_config"] | {
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 0.5,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 1,
    }
    deployments["Ingress"]["num_replicas"] = 1
    service.deploy(config)
    until(lambda: len(replica_processes("Model")) == len(replica_processes("Ingress")) == 1)
    text, stop = "The film was good. " * 100, threading.Event()

    def client() -> None:
        with httpx.Client(base_url=service.url, timeout=30) as session:
            while not stop.is_set():
                session.post("/v1/score", json={"inputs": text})

    with ThreadPoolExecutor(24) as pool:
        clients = [pool.submit(client) for _ in range(24)]
        try:
            until(lambda: len(replica_processes("Model")) == 2)
        finally:
            stop.set()
        for each in clients:
            each.result()


@pytest.fixture(scope="module")
def faulty(service: Service) -> None:
    """The service with the model of tests/helpers/fatal.py."""
    config, _ = changed(service, deadline_s=30)
    config["applications"][0] |= {"import_path": "tests.helpers.fatal:build", "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}}
    service.deploy(config)
    from ray import serve

    until(lambda: serve.status().applications["han"].status == "RUNNING" and len(replica_processes("Model")) == 2)


def test_a_text_that_kills_its_process_gets_its_own_error_and_all_others_are_answered(
    service: Service, faulty: None, golden: list[tuple[str, dict[str, Any]]]
) -> None:
    seen = {process.pid for process in replica_processes("Model")}

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            texts = [*(text for text, _ in golden[:10]), FATAL, *(text for text, _ in golden[10:20])]
            return await asyncio.gather(*(client.post("/v1/score", json={"inputs": text}) for text in texts))

    responses = asyncio.run(main())
    fatal = responses.pop(10)
    assert (fatal.status_code, fatal.json()["error"]["code"]) == (500, "model_crashed")
    assert Counter(response.status_code for response in responses) == {200: 20}
    answers = [response.json()["results"][0] for response in responses]
    assert not any(differ(answer, wanted) for answer, (_, wanted) in zip(answers, golden[:20], strict=True))
    until(lambda: len(replica_processes("Model")) == 2)
    assert len({process.pid for process in replica_processes("Model")} - seen) <= 2  # once in a batch, once alone


def test_an_invalid_probability_is_an_error_and_its_replica_is_replaced(service: Service, faulty: None) -> None:
    until(lambda: len(replica_processes("Model")) == 2)
    seen = {process.pid for process in replica_processes("Model")}
    response = httpx.post(f"{service.url}/v1/score", json={"inputs": ["good film", INVALID]}, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "invalid_score")
    until(lambda: len(replica_processes("Model")) == 2 and not seen >= {process.pid for process in replica_processes("Model")})


def test_the_old_model_keeps_serving_after_a_broken_artifact(service: Service, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "artifact"
    shutil.copytree(tiny_model, broken)
    (broken / "vocab.txt").write_text("damaged\n")
    config = json.loads(json.dumps(service.config))
    config["applications"][0]["args"]["model"] = str(broken)
    service.deploy(service.config)
    until(lambda: status(service.url) == 200)
    before = httpx.get(f"{service.url}/v1/model").json()["model"]
    service.deploy(config)
    from ray import serve

    until(lambda: serve.status().applications["han"].status == "DEPLOY_FAILED")
    assert "does not match its line in SHA256SUMS" in str(serve.status())
    assert httpx.post(f"{service.url}/v1/score", json={"inputs": "good film"}).json()["model"] == before


def test_an_application_that_is_deleted_finishes_its_requests(service: Service) -> None:
    from ray import serve

    # A fast machine needs more texts than a request may have, and more bytes, for a quarter of the deadline.
    service.deploy(changed(service, max_texts=1_000, max_body_bytes=64 * 2**20)[0])
    until(lambda: serve.status().applications["han"].status == "RUNNING")
    long = "The film was good. " * 2_500
    with httpx.Client(base_url=service.url, timeout=30) as client, ThreadPoolExecutor(2) as pool:
        took_s = []
        for _ in range(3):  # the first request is slower: its process compiles and loads
            began = time.monotonic()
            assert client.post("/v1/score", json={"inputs": [long] * 16, "attention": "none"}).status_code == 200
            took_s.append(time.monotonic() - began)
        number = min(1_000, max(16, round(16 * DEADLINE_S / 4 / min(took_s))))  # a quarter of the deadline, on this machine now
        answer = pool.submit(client.post, "/v1/score", json={"inputs": [long] * number, "attention": "none"})
        until(lambda: re.search("han_tokens_in_flight [1-9]", client.get("/metrics").text) is not None, DEADLINE_S)
        gone = pool.submit(serve.delete, "han")
        until(lambda: client.get("/healthz").status_code == 404)
        assert answer.result().status_code == 200
        gone.result(timeout=PATIENCE_S)


def test_the_key_is_required_under_a_route_prefix_too(service: Service, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-of-32-characters-for-tests\n")
    config = json.loads(json.dumps(service.config))
    config["applications"][0]["route_prefix"] = "/han"
    config["applications"][0]["args"]["api_keys_file"] = str(tmp_path / "keys")
    service.deploy(config)
    url, key = f"{service.url}/han", {"authorization": "Bearer a-key-of-32-characters-for-tests"}
    body = {"inputs": "good film"}
    until(lambda: httpx.post(f"{url}/v1/score", json=body).status_code == 401)
    from ray import serve

    until(lambda: serve.status().applications["han"].status == "RUNNING")  # no replica of the old version, without keys, is left
    assert [httpx.post(f"{url}/v1/score", json=body, headers=headers).status_code for headers in ({}, key)] == [401, 200]
    assert [httpx.get(f"{url}/metrics", headers=headers).status_code for headers in ({}, key)] == [401, 200]
    assert 'han_requests_total{route="/v1/score",code="401"}' in httpx.get(f"{url}/metrics", headers=key).text
