"""The service on a real Serve: deployed from its own config file by a command given in another folder, asked through the real proxy."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import socket
import subprocess
import sys
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

from han.data import samples
from han.model import artifact
from han.score.scorer import Scorer, as_json
from han.types import Mistake, Score
from tests.helpers.serving import DEADLINE_S, PATIENCE_S, Service, status, until

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def service(serving: Service) -> Iterator[Service]:
    """serve/config.yaml with another port, and with two processes of each kind."""
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
    """200 reviews and what `Scorer` says of them."""
    texts = [json.loads(line)["text"] for line in samples.REVIEWS.read_text(encoding="utf-8").splitlines()[:200]]
    scores = scorer.score(texts)
    return [(text, as_json(score)) for text, score in zip(texts, scores, strict=True) if isinstance(score, Score)]


def differ(one: Any, other: Any) -> bool:
    """Whether two answers differ by more than 1e-6 anywhere."""
    if isinstance(other, dict):
        return one.keys() != other.keys() or any(differ(one[name], other[name]) for name in other)
    if isinstance(other, list):
        return len(one) != len(other) or any(differ(each, its) for each, its in zip(one, other, strict=True))
    return abs(one - other) > 1e-6 if isinstance(other, float) else one != other


def test_one_by_one_and_in_lists_the_answers_are_the_scorers(service: Service, golden: list[tuple[str, dict[str, Any]]]) -> None:
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


def test_a_dump_scored_through_the_service_has_the_scorers_answers(
    service: Service, golden: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    from han.config import ColumnsConfig, OutputConfig, ScoreConfig
    from han.score import batch_job
    from serve import bulk

    pq.write_table(pa.table({"text": [text for text, _ in golden]}), tmp_path / "dump.parquet", row_group_size=50)
    job = batch_job.plan(
        str(tmp_path / "dump.parquet"),
        str(tmp_path / "out"),
        model="imdb",
        columns=ColumnsConfig(),
        config=ScoreConfig(num_actors=2),
        output=OutputConfig(),
        limit=None,
    )
    batch_job.score(job, lambda *_, **__: None, make_scorer=functools.partial(bulk.ask, application="han"))
    found = {row["text"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert len(found) == 200
    for text, wanted in golden:
        assert not differ({name: found[text][name] for name in wanted}, wanted)


def test_two_hundred_at_once_while_a_replica_is_killed_all_get_their_own_answer(
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
    """The living processes of a deployment's replicas."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith(f"ray::ServeReplica:han:{deployment}") and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def counts(service: Service) -> Counter[str]:
    """Answers of /v1/score by status, as /metrics has them."""
    told = httpx.get(f"{service.url}/metrics").text
    found = re.findall(r'han_requests_total\{route="/v1/score",code="(\d+)"\} (\d+)', told)
    return Counter({code: int(number) for code, number in found})


def settled(service: Service) -> Counter[str]:
    """The counts once no process has more to send."""
    found = [counts(service)]
    until(lambda: bool(time.sleep(1) or found.append(counts(service)) or found[-1] == found[-2]))
    return found[-1]


def test_what_clients_count_is_what_two_ingresses_count(service: Service) -> None:
    before = settled(service)
    seen: Counter[str] = Counter()
    bodies: list[Any] = [{"inputs": "good film"}, {"inputs": ""}, {"inputs": 3}, {"inputs": ["good"] * 33}]
    for number in range(40):
        with httpx.Client(base_url=service.url) as client:  # a connection each, so that both are asked
            seen[str(client.post("/v1/score", json=bodies[number % 4]).status_code)] += 1
    assert seen == {"200": 10, "422": 20, "413": 10}
    until(lambda: counts(service) - before == seen)


def test_a_batch_job_gets_the_same_through_the_handle(service: Service, scorer: Scorer, golden: list[tuple[str, dict[str, Any]]]) -> None:
    from ray import serve

    texts = [text for text, _ in golden[:50]]
    handle = serve.get_deployment_handle("Model", "han")
    found, wanted = handle.score_flat.remote([*texts, ""], model=scorer.fingerprint).result(timeout_s=60), scorer.score_flat([*texts, ""])
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-6)
    np.testing.assert_allclose(found.word_attention, wanted.word_attention, atol=1e-6)
    assert found.refused == wanted.refused
    assert handle.about.remote().result(timeout_s=60).model == scorer.fingerprint
    with pytest.raises(Mistake, match="the job began with other"):
        handle.score_flat.remote(texts, model="other").result(timeout_s=60)


def raw(service: Service, *parts: bytes, wait_s: float = 15) -> bytes:
    """What comes back for these bytes, until the other side has nothing more to say."""
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


def test_a_body_without_end_is_413(service: Service) -> None:
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert raw(service, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 48).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_408_at_the_deadline_whatever_the_headers(service: Service) -> None:
    headers = [b"", b"x-request-timeout-seconds: 0\r\n", b"x-request-disconnect-disabled: ?1\r\n"]
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda header: raw(service, HEAD + header + b"Content-Length: 30\r\n\r\n{"), headers))
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}
    assert DEADLINE_S - 0.5 < time.monotonic() - began < DEADLINE_S + 3


def test_a_given_id_comes_back_once(service: Service) -> None:
    response = httpx.get(f"{service.url}/healthz", headers={"x-request-id": "my-id"})
    assert response.headers.get_list("x-request-id") == ["my-id"]


def test_serve_listens_on_this_machine_alone(service: Service) -> None:
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


def test_a_broken_artifact_leaves_the_old_model_serving(service: Service, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "artifact"
    shutil.copytree(tiny_model, broken)
    (broken / "vocab.txt").write_text("damaged\n")
    config = json.loads(json.dumps(service.config))
    config["applications"][0]["args"]["model"] = str(broken)
    before = httpx.get(f"{service.url}/v1/model").json()["model"]
    service.deploy(config)
    from ray import serve

    until(lambda: serve.status().applications["han"].status == "DEPLOY_FAILED")
    assert "does not match its line in SHA256SUMS" in str(serve.status())
    assert httpx.post(f"{service.url}/v1/score", json={"inputs": "good film"}).json()["model"] == before


def test_an_application_that_is_taken_away_answers_first_what_it_has_begun(service: Service) -> None:
    from ray import serve

    long = "The film was good. " * 2_500
    with httpx.Client(base_url=service.url, timeout=30) as client, ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        assert client.post("/v1/score", json={"inputs": [long], "attention": "none"}).status_code == 200
        number = max(1, round(DEADLINE_S / 4 / (time.monotonic() - began)))  # a quarter of the deadline, on this machine now
        answer = pool.submit(client.post, "/v1/score", json={"inputs": [long] * number, "attention": "none"})
        until(lambda: re.search("han_tokens_in_flight [1-9]", client.get("/metrics").text) is not None, DEADLINE_S)
        gone = pool.submit(serve.delete, "han")
        until(lambda: client.get("/healthz").status_code == 404)
        assert answer.result().status_code == 200
        gone.result(timeout=PATIENCE_S)


def test_under_a_prefix_the_key_is_asked_for_all_the_same(service: Service, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-of-32-characters-for-tests\n")
    config = json.loads(json.dumps(service.config))
    config["applications"][0]["route_prefix"] = "/han"
    config["applications"][0]["args"]["api_keys_file"] = str(tmp_path / "keys")
    service.deploy(config)
    url, key = f"{service.url}/han", {"authorization": "Bearer a-key-of-32-characters-for-tests"}
    body = {"inputs": "good film"}
    until(lambda: httpx.post(f"{url}/v1/score", json=body).status_code == 401)
    from ray import serve

    until(lambda: serve.status().applications["han"].status == "RUNNING")  # no replica of the version before it, without keys, is left
    assert [httpx.post(f"{url}/v1/score", json=body, headers=headers).status_code for headers in ({}, key)] == [401, 200]
    assert [httpx.get(f"{url}/metrics", headers=headers).status_code for headers in ({}, key)] == [401, 200]
    assert 'han_requests_total{route="/v1/score",code="401"}' in httpx.get(f"{url}/metrics", headers=key).text
