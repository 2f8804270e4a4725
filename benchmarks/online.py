"""Compare the service with a no-op, with Serve's own proxy and with HAProxy: `make bench-online`.

The no-op (benchmarks/noop.py) is the service without scoring. Both are measured alternately in one run. Clients and servers share this
machine, so only ratios count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import yaml

from benchmarks.numbers import Number, record
from deploy.local import free_ports
from han.config import ColumnsConfig
from han.data.sources import find_shards, read, reviews
from tests.chaos.load import Load, percentile_ms
from tests.chaos.service import ROOT
from tests.helpers.cluster import Cluster, head
from tests.helpers.serving import until

# name: (prefix, builder). `cached` answers in the ingress: the cost of HTTP alone.
APPS = {"han": ("/", "serve.app:build"), "noop": ("/noop", "benchmarks.noop:build"), "cached": ("/cached", "benchmarks.noop:build_cached")}
CLIENTS, ROUNDS, LOW_PER_S = 16, 5, 5.0
TEXTS_AT_ONCE = 128  # median reviews: half of the default max_waiting_tokens
MAX_OVER_MS, MIN_SHARE = 10.0, 0.35
_POST = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local file = io.open("%s", "rb")
wrk.body = file:read("*a")
file:close()
"""


def median_reviews(data: str, number: int) -> list[str]:
    """The reviews whose lengths are closest to the median."""
    columns = ColumnsConfig()
    texts = [
        text
        for shard in find_shards(data, columns, labelled=False)
        for batch in read(shard, columns)
        for text in reviews(batch, shard, columns, labelled=False)["text"].to_pylist()
    ]
    median = statistics.median(map(len, texts))
    return sorted(texts, key=lambda text: abs(len(text) - median))[:number]


class Bench:
    """The applications on one Serve, with one replica each, and the load that measures them."""

    def __init__(self, cluster: Cluster, texts: Sequence[str], seconds: float) -> None:
        self.texts, self.seconds = texts, seconds
        (port,) = free_ports(1)
        self.urls = {name: f"http://127.0.0.1:{port}{prefix.rstrip('/')}/v1/score" for name, (prefix, _) in APPS.items()}
        config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
        config["http_options"]["port"] = port
        (application,) = config["applications"]
        for deployment in application["deployments"]:
            if deployment["name"] == "Model":
                del deployment["autoscaling_config"]
                deployment["num_replicas"] = 1
        config["applications"] = [
            {**application, "name": name, "route_prefix": prefix, "import_path": path} for name, (prefix, path) in APPS.items()
        ]
        httpx.put(f"{cluster.dashboard}/api/serve/applications/", json=config, timeout=60).raise_for_status()
        sizes = {name: len(self._warm(url)) for name, url in self.urls.items()}
        print(f"a request has {len(self.body(1)):,} bytes, its response {sizes['han']:,}", flush=True)

    def _warm(self, url: str) -> bytes:
        """Wait for the first response, then send each request of the measurement once."""

        def send(num_texts: int) -> httpx.Response:
            return httpx.post(url, content=self.body(num_texts), headers={"content-type": "application/json"}, timeout=30)

        until(lambda: send(1).status_code == 200, 180)
        contents = [send(num_texts).raise_for_status().content for num_texts in (32, 8, 1)]
        return contents[-1]

    def body(self, num_texts: int) -> bytes:
        return json.dumps({"inputs": list(self.texts[:num_texts]) if num_texts > 1 else self.texts[0], "attention": "words"}).encode()

    def saturated(self, num_texts: int, rounds: int) -> dict[str, list[float]]:
        """Requests/s in a closed loop. The applications alternate."""
        rates: dict[str, list[float]] = {name: [] for name in APPS}
        for _ in range(rounds):
            for name, url in self.urls.items():
                with Load(url, [self.body(num_texts)], num_clients=min(CLIENTS, TEXTS_AT_ONCE // num_texts)) as load:
                    time.sleep(self.seconds)
                failed = sum(reply.status != 200 for reply in load.replies)
                if failed:
                    print(f"  {name}: {failed} of {len(load.replies)} requests failed")
                rates[name].append((len(load.replies) - failed) / load.took_s)
        return rates

    def latency_ms(self, name: str, per_s: float, seconds: float, percent: float) -> float:
        """A percentile of the latency in an open loop, measured from the time when each request was due."""
        with Load(self.urls[name], [self.body(1)], per_s=per_s) as load:
            time.sleep(seconds)
        return percentile_ms(load.replies, percent)

    def wrk_per_s(self, name: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "body.json").write_bytes(self.body(1))
            Path(folder, "post.lua").write_text(_POST % Path(folder, "body.json"))
            command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{self.seconds:g}s", "-s", f"{folder}/post.lua", self.urls[name]]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in output:
            print(output)
        (per_s,) = re.findall(r"Requests/sec:\s+([\d.]+)", output)
        return float(per_s)


def measure(mode: str, bench: Bench) -> dict[str, float]:
    """All figures of one mode of Serve's proxy. Each is printed as soon as it is measured."""
    figures: dict[str, float] = {}
    rates = bench.saturated(1, ROUNDS)
    for name in APPS:
        figures[f"{name}_per_s"] = statistics.median(rates[name])
    for other in ("noop", "cached"):
        figures[f"share_of_{other}"] = statistics.median(ours / theirs for ours, theirs in zip(rates["han"], rates[other], strict=True))
    spread = {name: f"{min(each):.0f} to {max(each):.0f}" for name, each in rates.items()}
    print(f"{mode}: requests/s, median (spread) of {ROUNDS} rounds: " + listed(figures, "_per_s"), spread, flush=True)
    print(
        f"{mode}: {figures['share_of_noop']:.0%} of the no-op's rate, {figures['share_of_cached']:.0%} of the cached response's",
        flush=True,
    )
    low: dict[str, list[float]] = {name: [] for name in APPS}
    for _ in range(ROUNDS):
        for name in APPS:
            low[name].append(bench.latency_ms(name, LOW_PER_S, 2 * bench.seconds, 50))
    for name in APPS:
        figures[f"{name}_p50_ms"] = statistics.median(low[name])
    figures["over_ms"] = statistics.median(ours - theirs for ours, theirs in zip(low["han"], low["noop"], strict=True))
    print(f"{mode}: p50 at {LOW_PER_S:g}/s, ms: {listed(figures, '_p50_ms')}; {figures['over_ms']:.1f} ms above the no-op", flush=True)
    for name in ("han", "noop"):
        figures[f"{name}_p99_ms"] = bench.latency_ms(name, 0.7 * figures[f"{name}_per_s"], 4 * bench.seconds, 99)
    print(f"{mode}: p99 at 70% of the maximum requests/s, ms: {listed(figures, '_p99_ms')}", flush=True)
    for num_texts in (8, 32):
        for name, each in bench.saturated(num_texts, 1).items():
            figures[f"{name}_{num_texts}_texts"] = num_texts * each[0]
        print(f"{mode}: texts/s with {num_texts} texts a request: {listed(figures, f'_{num_texts}_texts')}", flush=True)
    if shutil.which("wrk"):
        for name in APPS:
            figures[f"{name}_wrk"] = bench.wrk_per_s(name)
        print(f"{mode}: requests/s by wrk: {listed(figures, '_wrk')}; share {figures['han_wrk'] / figures['noop_wrk']:.0%}", flush=True)
    return figures


def listed(figures: dict[str, float], ending: str) -> str:
    return ", ".join(f"{name.removesuffix(ending)} {value:.1f}" for name, value in figures.items() if name.endswith(ending))


def write(mode: str, figures: dict[str, float], *, data: str, command: str) -> None:
    """Write one file for each published figure."""
    subject = f"median review of {data} with word attention, {'HAProxy' if mode == 'haproxy' else 'default proxy'}"
    texts = ", ".join(f"{num}: {figures[f'han_{num}_texts']:.0f}" for num in (8, 32))
    values = {
        "share": (
            f"requests/s compared with a no-op: {subject}",
            f"{figures['share_of_noop']:.0%} ({figures['han_per_s']:.0f} of {figures['noop_per_s']:.0f})",
        ),
        "over": (f"p50 above a no-op's at {LOW_PER_S:g} requests/s: {subject}", f"{figures['over_ms']:.1f} ms"),
        "p99": (f"p99 at 70% load: {subject}", f"{figures['han_p99_ms']:.0f} ms"),
        "texts": (f"texts/s with 1, 8, 32 texts a request: {subject}", f"1: {figures['han_per_s']:.0f}, {texts}"),
    }
    for name, (what, value) in values.items():
        record(Number(name=f"60-online-{mode}-{name}", what=what, value=value, command=command))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="sample", help="reviews (a file, a folder or sample); those of median length are sent")
    parser.add_argument("--modes", nargs="+", choices=("default", "haproxy"), default=["default", "haproxy"], help="proxies to measure")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement")
    parser.add_argument("--record", action="store_true", help="write the figures to docs/numbers")
    arguments = parser.parse_args()
    texts = median_reviews(arguments.data, 32)
    print(f"{len(texts[0]):,} characters, load average {os.getloadavg()[0]:.1f}", flush=True)
    os.environ["PYTHONPATH"] = str(ROOT)  # for benchmarks.noop in Ray's processes
    for mode in arguments.modes:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = str(int(mode == "haproxy"))
        with head() as cluster:
            figures = measure(mode, Bench(cluster, texts, arguments.seconds))
        missed = [
            name for name, met in (("share", figures["share_of_noop"] >= MIN_SHARE), ("p50", figures["over_ms"] <= MAX_OVER_MS)) if not met
        ]
        print(f"{mode}: {'missed targets: ' + ', '.join(missed) if missed else 'both targets are met'}", flush=True)
        if arguments.record:
            data = "the bundled reviews" if arguments.data == "sample" else Path(arguments.data).name
            write(mode, figures, data=data, command=f"make bench-online ARGS='--data {Path(arguments.data).name}'")


if __name__ == "__main__":
    main()
