"""Run Prometheus and Grafana for the Ray and the service on this machine, until Ctrl+C: `make watch`.

Both write only under --out and listen only on 127.0.0.1. They are stopped by the process ids they were started with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

HERE = Path(__file__).resolve().parent
DASHBOARD = HERE / "grafana" / "han.json"
NO_PROMETHEUS = (
    "no prometheus on the path: install it with `apt-get install --no-install-recommends prometheus` (Debian, Ubuntu) or from prometheus.io"
)
NO_GRAFANA = "no grafana on the path, so only Prometheus runs: grafana.com/grafana/download has its packages"
_START_S = 30  # deadline for a program to answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/watch"), help="folder for all data of both programs")
    parser.add_argument("--prometheus-port", type=int, default=9090, help="port of Prometheus")
    parser.add_argument("--grafana-port", type=int, default=3000, help="port of Grafana")
    parser.add_argument("--ray", type=Path, default=Path("/tmp/ray"), help="Ray's temporary folder")  # noqa: S108 - Ray's own default
    parser.add_argument("--service", default="127.0.0.1:8000", help="host:port of the ingress")
    parser.add_argument("--key-file", type=Path, default=None, help="file with one API key, if the service needs one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if shutil.which("prometheus") is None:
        _fail(NO_PROMETHEUS)
    out: Path = arguments.out.absolute()
    with (
        contextlib.suppress(KeyboardInterrupt),
        prometheus(out, arguments.prometheus_port, ray=arguments.ray, service=arguments.service, key_file=arguments.key_file) as url,
    ):
        print(f"Prometheus: {url}; its targets: {url}/targets")
        if not (arguments.ray / "prom_metrics_service_discovery.json").exists():
            print(f"no Ray has written its list of nodes to {arguments.ray} yet; Prometheus reads the list as soon as it exists")
        with grafana(out, arguments.grafana_port, url) as page:
            print(f"Grafana: {page}" if page else NO_GRAFANA)
            if not page:
                (out / "panels.html").write_text(page_of_links(url))
                print(f"links to every panel, drawn by Prometheus: file://{out}/panels.html")
            print("press Ctrl+C to stop", flush=True)
            signal.pause()
    print(f"\nstopped; the data stays in {out}")


@contextmanager
def prometheus(out: Path, port: int, *, ray: Path, service: str, key_file: Path | None, every_s: int = 10) -> Iterator[str]:
    """Run Prometheus while the body runs, and yield its URL.

    ray: Ray's temporary folder; service: host:port of the ingress; every_s: seconds between two scrapes.
    """
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "alerts.yml", out)
    config = out / "prometheus.yml"
    config.write_text(yaml.safe_dump(_config(ray=ray, service=service, key_file=key_file, every_s=every_s), sort_keys=False))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={out / 'prometheus'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    _check_free(port, "PROMETHEUS_PORT")
    url = f"http://127.0.0.1:{port}"
    with _running(command, out / "prometheus.log", f"{url}/-/ready", dict(os.environ)):
        yield url


@contextmanager
def grafana(out: Path, port: int, prometheus_url: str) -> Iterator[str | None]:
    """Run Grafana while the body runs, and yield the dashboard's URL; yield None if Grafana is not installed."""
    program = shutil.which("grafana") or shutil.which("grafana-server")
    if program is None:
        yield None
        return
    _check_free(port, "GRAFANA_PORT")
    folder = out / "grafana"
    _provision(folder / "provisioning", prometheus_url)
    settings = {
        "GF_PATHS_DATA": str(folder / "data"),
        "GF_PATHS_LOGS": str(folder / "log"),
        "GF_PATHS_PROVISIONING": str(folder / "provisioning"),
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",  # every user of this machine may look
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }
    command = [program, *(["server"] if Path(program).name == "grafana" else []), "--homepath", "/usr/share/grafana"]
    url = f"http://127.0.0.1:{port}"
    with _running(command, out / "grafana.log", f"{url}/api/health", {**os.environ, **settings}):
        yield f"{url}/d/han-on-ray"


def page_of_links(prometheus_url: str) -> str:
    """HTML with a link for each panel. The link opens the panel's queries in Prometheus."""
    lines = ["<!doctype html><meta charset=utf-8><title>HAN on Ray in Prometheus</title>"]
    for row, queries in read_queries(DASHBOARD).items():
        lines.append(f"<h2>{row}</h2>")
        panels: dict[str, list[tuple[str, str]]] = {}
        for title, query in queries:
            pairs = panels.setdefault(title, [])
            graph = f"g{len(pairs) // 3}"
            pairs += [(f"{graph}.expr", plain(query)), (f"{graph}.tab", "0"), (f"{graph}.range_input", "30m")]
        lines += [f'<p><a href="{escape(f"{prometheus_url}/graph?{urlencode(pairs)}")}">{title}</a>' for title, pairs in panels.items()]
    return "\n".join(lines) + "\n"


def read_queries(dashboard: Path) -> dict[str, list[tuple[str, str]]]:
    """The queries of each row of the dashboard, as pairs of panel title and PromQL."""
    rows: dict[str, list[tuple[str, str]]] = {}
    row = ""
    for panel in json.loads(dashboard.read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            rows[row] = []
        else:
            rows[row] += [(panel["title"], target["expr"]) for target in panel["targets"]]
    return rows


def plain(query: str, *, interval: str = "1m") -> str:
    """The query with Grafana's variables replaced, for every run."""
    return query.replace("$__rate_interval", interval).replace("$run", ".*")


def _config(*, ray: Path, service: str, key_file: Path | None, every_s: int) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((HERE / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], f"{every_s}s")
    ray_scrape, service_scrape = config["scrape_configs"]
    ray_scrape["file_sd_configs"][0]["files"] = [str(ray / "prom_metrics_service_discovery.json")]
    service_scrape["static_configs"][0]["targets"] = [service]
    if key_file:
        service_scrape["authorization"] = {"credentials_file": str(key_file.absolute())}
    return config


def _provision(folder: Path, prometheus_url: str) -> None:
    """Write the data source and the dashboard that Grafana reads when it starts."""
    source = {"name": "Prometheus", "type": "prometheus", "url": prometheus_url, "access": "proxy", "isDefault": True}
    provider = {"name": "han", "type": "file", "options": {"path": str(DASHBOARD.parent)}}
    for name, content in (("datasources", {"datasources": [source]}), ("dashboards", {"providers": [provider]})):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "han.yml").write_text(yaml.safe_dump({"apiVersion": 1, **content}))


def _check_free(port: int, variable: str) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a socket that was just closed may still linger
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            _fail(f"port {port} is in use: choose another, e.g. make watch {variable}={port + 1}")


@contextmanager
def _running(command: list[str], log: Path, ready: str, environment: dict[str, str]) -> Iterator[None]:
    """Run a process, wait until the URL `ready` answers, run the body, and stop it. Its own session keeps Ctrl+C from reaching it."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)  # noqa: S603
    try:
        end = time.monotonic() + _START_S
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > end:
                last = log.read_text(errors="replace").splitlines()[-1:]
                _fail(f"{command[0]} did not start: {' '.join(last)}; see {log}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(URLError, OSError), urlopen(url, timeout=2) as response:  # noqa: S310 - a URL of this machine
        return bool(response.status == 200)
    return False


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
