"""Test the guarantees of the service: `python -m tests.chaos.serve [--seed N] [--only R1 R7 …]`, one line each; see docs/reliability.md.

One Ray runs one Serve with two ingresses and two replicas. Only processes that Ray's state API lists are killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import psutil

from han.config import TextConfig
from han.data import samples
from han.model import artifact
from han.score.scorer import Scorer
from han.text.encode import Encoder
from han.text.vocabulary import Vocab
from han.types import AttentionDetail
from tests.chaos import fuzz
from tests.chaos.clients import HEAD, ODD, STALLED, STALLED_WITH_HEADERS, Slow, exchange, leave
from tests.chaos.load import Load, Reply, by_status, longest_stall_s, percentile_ms
from tests.chaos.report import attempt, close, reliability
from tests.chaos.service import INGRESS, MODEL, PROXY, GoldenRequest, Service, golden, kill_one, open_files, resident_mb
from tests.conftest import WORDS, tiny_network
from tests.helpers.cluster import head
from tests.helpers.serving import until

PER_S, NUM_GOLDEN = 20.0, 200


class Online:
    """All runs, on one service."""

    def __init__(self, service: Service, folder: Path, seed: int) -> None:
        self.service, self.folder, self.seed, self.random = service, folder, seed, random.Random(seed)
        self.scorer = Scorer(artifact.load(artifact.find("imdb")))
        self.singles = golden([self.scorer], num_texts=NUM_GOLDEN)
        lists = golden([self.scorer], num_texts=NUM_GOLDEN, size=16)
        self.mixed = [*self.singles[: 4 * len(lists)], *lists]  # every fifth request has a list
        self.random.shuffle(self.mixed)
        print(f"deployed: {service.deploy():.1f} s", flush=True)

    def _load(self, requests: list[GoldenRequest], *, per_s: float = PER_S) -> Load:
        return Load(self.service.score_url, [request.body for request in requests], per_s=per_s)

    def _under_kills(self, requests: list[GoldenRequest], seconds: float, kills: int) -> tuple[Load, int, int]:
        """Run the load with evenly spread kills; returns the load, the number of kills and the number of wrong responses."""
        done = 0
        with self._load(requests) as load:
            for number in range(kills):
                _wait(load, seconds * (number + 0.5) / kills)
                done += kill_one(self.service, self.random)
            _wait(load, seconds)
        return load, done, _wrong(requests, load)

    def r1_replicas_killed(self) -> None:
        before = self.service.total("han_retries_total")
        load, kills, wrong = self._under_kills(self.mixed, 120, 5)
        failed = _failed(load)
        reliability(
            "R1",
            ok=failed == wrong == 0 and kills == 5 and len(load.replies) >= 2_400,
            sent=len(load.replies),
            kills=kills,
            failed=failed,
            wrong=wrong,
            codes=by_status(load.replies),
            p50_ms=percentile_ms(load.replies, 50),
            p99_ms=percentile_ms(load.replies, 99),
            max_ms=percentile_ms(load.replies, 100),
            stall_s=longest_stall_s(load.replies),
            retries=self.service.total("han_retries_total") - before,
        )

    def r1_control(self) -> None:
        """Control: without retries, such kills must make requests fail. A request is short: about every second kill hits one."""
        self.service.deploy(retries=0)
        load, kills, wrong = self._under_kills(self.mixed, 90, 9)
        self.service.deploy()
        failed, codes = _failed(load), by_status(load.replies)
        ok = failed > 0 and kills >= 3
        reliability("R1-control", ok=ok, sent=len(load.replies), kills=kills, failed=failed, wrong=wrong, codes=codes)

    def golden(self, num_requests: int = 10_000) -> None:
        """Send requests one by one, in lists, and concurrently under kills. Each gets the Scorer's results for its own texts."""
        mismatches = []
        for size in (1, 32):
            requests = golden([self.scorer], num_texts=NUM_GOLDEN, size=size, details=["words"])
            with Load(self.service.score_url, [each.body for each in requests], num_clients=1, num_requests=len(requests)) as load:
                pass
            mismatches.append(_wrong(requests, load) + _failed(load))
        kills = 0
        with Load(self.service.score_url, [each.body for each in self.singles], num_clients=20, num_requests=num_requests) as load:
            while not load.is_over:
                time.sleep(5)
                kills += not load.is_over and kill_one(self.service, self.random)
        wrong, failed = _wrong(self.singles, load), _failed(load)
        reliability(
            "GOLDEN",
            ok=mismatches == [0, 0] and wrong == failed == 0 and kills >= 3,
            reviews=NUM_GOLDEN,
            wrong_single=mismatches[0],
            wrong_list=mismatches[1],
            concurrent=len(load.replies),
            kills=kills,
            wrong_concurrent=wrong,
            failed_concurrent=failed,
            codes=by_status(load.replies),
            per_s=len(load.replies) / load.took_s,
        )

    def r7_rolling_update(self) -> None:
        """Update to another model, to a broken one, and back, under load. No request fails; each response is right for its model."""
        other, broken = self.folder / "other", self.folder / "broken"
        encoder = Encoder(TextConfig(), None, Vocab(WORDS))
        metrics, provenance = {"temperature": 1.0}, {"data": "random weights"}
        network = tiny_network()
        artifact.save(other, encoder=encoder, network=network, labels=("negative", "positive"), metrics=metrics, provenance=provenance)
        shutil.copytree(other, broken)
        (broken / "vocab.txt").write_text("damaged\n")
        second = Scorer(artifact.load(other))
        requests = golden([self.scorer, second], num_texts=NUM_GOLDEN)
        with self._load(requests, per_s=10) as load:
            _wait(load, 2)
            self.service.deploy(model=str(other))
            updated_s = load.since_s()
            self.service.put(model=str(broken))
            until(lambda: self.service.status() == "DEPLOY_FAILED", 120)
            refused_s = load.since_s()
            _wait(load, refused_s + 2)
            still = httpx.get(f"{self.service.url}/v1/model", timeout=10).json()["model"] == second.fingerprint
            self.service.deploy()
            back_s = load.since_s()
            _wait(load, back_s + 2)
        names = {self.scorer.fingerprint: "imdb", second.fingerprint: "other"}
        timeline: list[str] = []
        answered = sorted((reply for reply in load.replies if reply.status == 200), key=lambda reply: reply.due_s)
        for reply in answered:
            name = names.get(json.loads(reply.body)["model"], "unknown")
            if not timeline or not timeline[-1].endswith(name):
                timeline.append(f"{reply.due_s:.1f}s:{name}")
        failed, wrong = _failed(load), _wrong(requests, load)
        first, last = (json.loads(answered[index].body)["model"] for index in (0, -1))
        reliability(
            "R7",
            ok=failed == wrong == 0 and still and first == last == self.scorer.fingerprint and any("other" in each for each in timeline),
            sent=len(load.replies),
            failed=failed,
            wrong=wrong,
            codes=by_status(load.replies),
            updated_at_s=updated_s,
            broken_refused_at_s=refused_s,
            old_still_serves=still,
            rolled_back_at_s=back_s,
            versions=",".join(_thinned(timeline)),
            p99_ms=percentile_ms(load.replies, 99),
        )

    def r9_overload(self, seconds: float = 60) -> None:
        """Send five times what is scored. Some requests are answered in time, the others are refused at once.

        The texts are long, so that scoring is what is short. Beyond some 170 requests/s on 2 cores, Serve's proxy itself is: then requests
        wait there, before the service sees them.
        """
        heavy = [_heavy(self.random, texts=16, characters=4_000, attention="sentences")]
        with Load(self.service.score_url, heavy, num_clients=4) as load:
            _wait(load, 8)
        capacity_per_s = len(load.replies) / load.took_s
        alone_ms = percentile_ms(load.replies, 99)
        processes = self.service.pids(PROXY, INGRESS, MODEL)
        before_mb = peak_mb = resident_mb(processes)
        with Load(self.service.score_url, heavy, per_s=5 * capacity_per_s) as load:
            while load.since_s() < seconds:
                time.sleep(1)
                peak_mb = max(peak_mb, resident_mb(processes))
        ended_s = load.since_s()
        accepted, shed = ([reply for reply in load.replies if reply.status == status] for status in (200, 429))
        probe = self.singles[0].body
        recovered_s = until(lambda: httpx.post(self.service.score_url, content=probe, headers=JSON, timeout=30).status_code == 200, 60)
        faults = sum(reply.status >= 500 for reply in load.replies)
        other = len(load.replies) - len(accepted) - len(shed) - faults
        in_time = percentile_ms(accepted, 99) <= 1e3 * self.service.deadline_s
        hinted = all("retry-after" in reply.headers for reply in shed)
        reliability(
            "R9",
            ok=bool(accepted and shed) and faults == other == 0 and in_time and hinted and recovered_s <= 5,
            capacity_per_s=capacity_per_s,
            sent=len(load.replies),
            codes=by_status(load.replies),
            accepted_per_s=len(accepted) / ended_s,
            accepted_p50_ms=percentile_ms(accepted, 50),
            accepted_p99_ms=percentile_ms(accepted, 99),
            p99_of_4_clients_ms=alone_ms,
            shed_p50_ms=percentile_ms(shed, 50),
            shed_p99_ms=percentile_ms(shed, 99),
            retry_after=hinted,
            rss_mb=before_mb,
            rss_peak_mb=peak_mb,
            drained_s=load.took_s - seconds,
            recovered_s=recovered_s,
        )

    def r10_clients_that_leave(self, number: int = 500) -> None:
        """Half of the clients disconnect in the middle of their body, half while they wait for the response."""
        until(self.service.is_whole, 60)
        with Load(self.service.score_url, [request.body for request in self.singles], num_clients=20, num_requests=400):
            pass  # a new replica opens its connections with its first requests
        processes = self.service.pids(PROXY, INGRESS, MODEL)
        until(lambda: self._at_rest() == 0, 20)
        files, resident = open_files(processes), resident_mb(processes)
        files_of = {kind: open_files(self.service.pids(kind)) for kind in (PROXY, INGRESS, MODEL)}
        left_before = self.service.codes().get("499", 0)
        body = _heavy(self.random, texts=4, characters=1_000)
        whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        half = whole[: -len(body) // 2]
        jobs = [(request, self.random.uniform(0.0, 0.05)) for request in (half, whole) for _ in range(number // 2)]
        self.random.shuffle(jobs)
        with ThreadPoolExecutor(20) as clients:
            list(clients.map(lambda job: leave(self.service.port, job[0], after_s=job[1]), jobs))
        rest_s = _seconds_until(lambda: self._at_rest() == 0, 30)
        closed_s = _seconds_until(lambda: open_files(processes) <= files + 10, 30)
        good = httpx.post(self.service.score_url, content=self.singles[0].body, headers=JSON, timeout=10)
        reliability(
            "R10",
            ok=max(rest_s, closed_s) <= 30 and good.status_code == 200 and not self.singles[0].is_wrong(good.content),
            left=number,
            counted_499=self.service.codes().get("499", 0) - left_before,
            gauges=self._at_rest(),
            at_rest_after_s=rest_s,
            files_closed_after_s=closed_s,
            files_more=",".join(f"{kind[-8:]}:{open_files(self.service.pids(kind)) - before}" for kind, before in files_of.items()),
            rss_more_mb=resident_mb(processes) - resident,
        )

    def _at_rest(self) -> float:
        """The gauges of requests, tokens and texts in progress, without the request for the metrics."""
        return sum(self.service.total(f"han_{name}") for name in ("requests_in_flight", "tokens_in_flight", "queue_texts")) - 1

    def r11_slow_clients(self, number: int = 100, seconds: float = 20) -> None:
        """Clients send one byte a second. Bodies are cut at the deadline; Serve's proxy waits for headers (see docs/serving.md)."""
        headers, bodies = Slow(self.service.port, HEAD + b"x-slow: ", number), Slow(self.service.port, STALLED[:-1], number)
        bodies.drip()
        with self._load(self.mixed) as load:
            while load.since_s() < seconds:
                time.sleep(1)
                headers.drip()
                bodies.drip()
        headers.close()
        bodies.close()
        failed, slowest_s = _failed(load), max(bodies.cut_s, default=float("inf"))
        cut = Counter(bodies.statuses)
        reliability(
            "R11",
            ok=failed == _wrong(self.mixed, load) == 0 and len(bodies.statuses) == number and slowest_s <= self.service.deadline_s + 3,
            slow_headers=number,
            slow_bodies=number,
            good_sent=len(load.replies),
            good_failed=failed,
            good_p50_ms=percentile_ms(load.replies, 50),
            good_p99_ms=percentile_ms(load.replies, 99),
            bodies_cut=",".join(f"{status}:{count}" for status, count in cut.items()),
            bodies_cut_after_s=slowest_s,
            headers_cut=len(headers.statuses),
            headers_cut_after_s=max(headers.cut_s, default=float("inf")),
        )

    def r12_odd_headers(self) -> None:
        deadline_s = self.service.deadline_s
        faults, late, proxys, unanswered = 0, 0, [], []
        for name, request in ODD.items():
            response = exchange(self.service.port, request, wait_s=deadline_s + 5)
            who = "the service" if response.is_ours else "Serve's proxy" if response.status else "nobody"
            evil = b"\r\nx-evil" in response.head.lower()
            print(f"  {name:36} {response.status or '-'} by {who}{', WITH A HEADER OF THE CLIENT' if evil else ''}")
            faults += evil or (response.is_ours and response.status >= 500)
            late += response.is_ours and response.took_s > deadline_s + 1
            unanswered += [] if response.status else [name]
            proxys += [f"{name}:{response.status}"] if not response.is_ours and response.status >= 500 else []
        stalled = []
        for name, request in STALLED_WITH_HEADERS.items():
            response = exchange(self.service.port, request, wait_s=deadline_s + 5)
            print(f"  body that stops, {name:19} {response.status or '-'} after {response.took_s:.1f} s")
            stalled.append(response.status == 408 and response.took_s <= deadline_s + 2)
        reliability(
            "R12",
            ok=faults == late == 0 and all(stalled),
            sent=len(ODD),
            faults_of_ours=faults,
            late=late,
            deadline_kept=f"{sum(stalled)}/{len(stalled)}",
            faults_of_serves_proxy=",".join(proxys) or "none",
            unanswered=",".join(unanswered) or "none",
        )

    def r13_stuck_replica(self) -> None:
        """Stop a replica with SIGSTOP, so that it hangs."""
        until(self.service.is_whole, 60)
        retries = self.service.total("han_retries_total")
        with self._load(self.mixed) as load:
            _wait(load, 3)
            stuck = self.random.choice(self.service.pids(MODEL))
            os.kill(stuck, signal.SIGSTOP)
            stopped_s = load.since_s()
            try:
                detected_s = until(lambda: stuck not in self.service.running(), 90)
                whole_s = detected_s + until(lambda: len(self.service.running()) == 2, 60)
                gone_s = whole_s + until(lambda: not psutil.pid_exists(stuck) or stuck not in self.service.pids(MODEL), 90)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stuck, signal.SIGCONT)
            _wait(load, load.since_s() + 2)
        failed, wrong = _failed(load), _wrong(self.mixed, load)
        late = [reply.due_s - stopped_s for reply in load.replies if reply.status != 200]
        reliability(
            "R13",
            ok=failed == wrong == 0 and detected_s < 60,
            sent=len(load.replies),
            failed=failed,
            wrong=wrong,
            codes=by_status(load.replies),
            retries=self.service.total("han_retries_total") - retries,
            last_failed_sent_after_s=max(late, default=0.0),
            detected_s=detected_s,
            two_again_after_s=whole_s,
            ended_after_s=gone_s,
            p50_ms=percentile_ms(load.replies, 50),
            p99_ms=percentile_ms(load.replies, 99),
        )

    def r15_counts(self) -> None:
        """The clients' counts by status equal the counts of the two ingresses."""
        bodies: list[object] = [{"inputs": text} for text in ("good film", "", 3, ["good"] * 33, ["a", "..."])]
        sent = [json.dumps(body).encode() for body in bodies]
        sent += [b"[]", b"{", b" " * (3 << 20), b'{"inputs": "\\ud800"}']
        before = Counter(self.service.codes())
        with Load(self.service.score_url, sent, num_clients=8, num_requests=900) as load:
            pass
        seen = Counter(str(reply.status) for reply in load.replies)
        for method in ("GET", "PUT"):
            seen[str(httpx.request(method, self.service.score_url, timeout=10).status_code)] += 1
        with contextlib.suppress(AssertionError):
            until(lambda: Counter(self.service.codes()) - before == seen, 10)
        counted = Counter(self.service.codes()) - before
        difference = sum(((counted - seen) + (seen - counted)).values())
        clients = ",".join(f"{code}:{number}" for code, number in sorted(seen.items()))
        ok, ingresses = difference == 0 and seen["0"] == 0, len(self.service.pids(INGRESS))
        reliability("R15", ok=ok, clients=clients, difference=difference, ingresses=ingresses)

    def fuzzed(self) -> None:
        schema = fuzz.from_schema(self.service.url, seed=self.seed)
        texts = fuzz.texts(self.service.score_url, seed=self.seed)
        hostile = fuzz.hostile(self.service.score_url)
        for name, results in (("FUZZ-schema", schema), ("FUZZ-texts", texts), ("FUZZ-hostile", hostile)):
            for line in results.faults[:10]:
                print(f"  {line}")
            in_time = results.slowest_s <= self.service.deadline_s + 1
            reliability(
                name,
                ok=not results.faults and in_time and results.answers > 0,
                answers=results.answers,
                faults=len(results.faults),
                slowest_s=results.slowest_s,
                codes=",".join(f"{code}:{number}" for code, number in sorted(results.codes.items())),
                seconds=results.took_s,
            )

    def r8_drained(self) -> None:
        """Delete the application, then shut Serve down, while requests of a third of a second are scored (see docs/serving.md)."""
        self.service.deploy(max_waiting_tokens=ROOM)
        self._ended("R8", self.service.withdraw)
        self.service.shut_down()

    def r8_control(self) -> None:
        """Control: shutting Serve down with its application drops requests, so the application is deleted first."""
        self.service.deploy(max_waiting_tokens=ROOM)
        self._ended("R8-control", self.service.shut_down)

    def _ended(self, name: str, end: Callable[[], None]) -> None:
        until(self.service.is_whole, 60)
        slow = [_heavy(self.random, texts=24, characters=40_000, attention="sentences")]
        ready: Counter[int] = Counter()
        with self._load(self.mixed) as load, Load(self.service.score_url, slow, per_s=2) as heavy:
            _wait(load, 4.1)  # soon after a slow request was sent
            stop_s, offset_s = load.since_s(), load.began_s - heavy.began_s
            ending = threading.Thread(target=end)
            ending.start()
            while ending.is_alive():
                ready[self.service.readyz()] += 1
                time.sleep(0.05)
            ended_s = load.since_s()
        before = [reply for reply in load.replies if reply.due_s <= stop_s]
        before += [reply for reply in heavy.replies if reply.due_s <= stop_s + offset_s]
        after = [reply for reply in load.replies if reply.due_s > stop_s]
        in_flight = sum(reply.due_s + reply.took_s > stop_s for reply in before)
        lost = sum(reply.status != 200 for reply in before)
        reliability(
            name,
            ok=in_flight > 0 and ((lost > 0) if name == "R8-control" else lost == 0 and not _unclear(after)),
            before=len(before),
            in_flight=in_flight,
            lost=lost,
            codes_before=by_status(before),
            codes_after=by_status(after),
            last_200_after_s=max((reply.due_s - stop_s for reply in after if reply.status == 200), default=0.0),
            readyz=",".join(f"{code}:{number}" for code, number in ready.items()),
            ended_after_s=ended_s - stop_s,
        )


EXPECTED = (AssertionError, httpx.HTTPError)  # raised if a guarantee does not hold
RUNS: dict[str, Callable[[Online], None]] = {
    "R1": Online.r1_replicas_killed,
    "GOLDEN": Online.golden,
    "R15": Online.r15_counts,
    "R10": Online.r10_clients_that_leave,
    "R11": Online.r11_slow_clients,
    "R12": Online.r12_odd_headers,
    "FUZZ": Online.fuzzed,
    "R9": Online.r9_overload,
    "R13": Online.r13_stuck_replica,
    "R1-control": Online.r1_control,
    "R7": Online.r7_rolling_update,
    "R8": Online.r8_drained,  # the last two runs end the service
    "R8-control": Online.r8_control,
}
JSON = {"content-type": "application/json"}
ROOM = 1_000_000  # waiting tokens: the slow requests of R8 fill the default


def listeners(*, haproxy: bool) -> None:
    """List the listening sockets in this mode of Serve's proxy, on a separate Ray."""
    if haproxy:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    with head() as cluster:
        service = Service(cluster.dashboard)
        service.deploy()
        until(lambda: service.readyz() == 200, 60)
        sockets = {}
        for process in psutil.Process().children(recursive=True):
            for each in process.net_connections("tcp") if process.is_running() and process.status() != psutil.STATUS_ZOMBIE else []:
                if each.status == psutil.CONN_LISTEN:
                    sockets[each.laddr.port, each.laddr.ip] = process.name()
    at = sorted({ip for port, ip in sockets if port == service.port})
    outside = sorted(f"{name}@{ip}:{port}" for (port, ip), name in sockets.items() if not ip.startswith("127.") and ip != "::1")
    os.environ.pop("RAY_SERVE_ENABLE_HA_PROXY", None)
    name = "LISTENERS-haproxy" if haproxy else "LISTENERS-default"
    reliability(name, ok=at == ["127.0.0.1"], service_at=",".join(at), outside=",".join(outside) or "none")


def _seconds_until(holds: Callable[[], bool], deadline_s: float) -> float:
    """Seconds until the condition holds; infinity after the deadline."""
    try:
        return until(holds, deadline_s)
    except AssertionError:
        return float("inf")


def _failed(load: Load) -> int:
    return sum(reply.status != 200 for reply in load.replies)


def _unclear(replies: list[Reply]) -> int:
    """Number of requests during a shutdown that got neither scores nor a refusal."""
    return sum(reply.status not in (200, 404, 503) for reply in replies)


def _wrong(requests: list[GoldenRequest], load: Load) -> int:
    return sum(reply.status == 200 and requests[reply.index].is_wrong(reply.body) for reply in load.replies)


def _wait(load: Load, since_s: float) -> None:
    time.sleep(max(0.0, since_s - load.since_s()))


def _heavy(chance: random.Random, *, texts: int, characters: int, attention: AttentionDetail = "none") -> bytes:
    """The body of a request with long texts made from bundled reviews."""
    lines = [json.loads(line)["text"] for line in samples.REVIEWS.read_text(encoding="utf-8").splitlines()]
    long = [" ".join(chance.choices(lines, k=characters // 200 + 1))[:characters] for _ in range(texts)]
    return json.dumps({"inputs": long, "attention": attention}).encode()


def _thinned(timeline: list[str]) -> list[str]:
    """Keep the first and the last turns of a timeline, because both versions answer alternately during a rolling update."""
    return timeline if len(timeline) <= 8 else [*timeline[:4], f"({len(timeline) - 8}_turns)", *timeline[-4:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="seed of all random choices")
    parser.add_argument("--only", nargs="+", choices=[*RUNS, "LISTENERS"], default=[*RUNS, "LISTENERS"], help="runs to do")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}; to repeat this run: --seed {arguments.seed}", flush=True)
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="han-chaos-"))
    try:
        chosen = [name for name in RUNS if name in arguments.only]
        if chosen:
            with head() as cluster:
                online = Online(Service(cluster.dashboard), folder, arguments.seed)
                for name in chosen:
                    attempt(name, partial(RUNS[name], online), expected=EXPECTED)
        if "LISTENERS" in arguments.only:
            listeners(haproxy=False)
            listeners(haproxy=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"all: {time.monotonic() - began:.0f} s", flush=True)
    close()


if __name__ == "__main__":
    main()
