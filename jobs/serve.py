"""The HTTP service on this machine or on a running Ray: `han serve --model imdb`."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from han.types import UserError
from jobs import cli

if TYPE_CHECKING:  # a mistake is reported before Ray is loaded
    from serve.options import Options

EXAMPLES = ("--model models/best --port 8080", "--host 0.0.0.0 --api-keys-file keys --num-replicas 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """Serve a model over HTTP until Ctrl-C. `serve deploy serve/config.yaml` deploys it to a cluster instead, with autoscaling."""

    model: str = "imdb"
    """folder of a run, a sweep or an artifact; models/best after `promote`; or imdb, the shipped model"""
    host: str = "127.0.0.1"
    """interface to listen on; any other than loopback needs --api-keys-file"""
    port: int = 8000
    """port to listen on"""
    num_replicas: int = 1
    """processes that score"""
    api_keys_file: str | None = None
    """file with one API key a line"""
    deadline_s: float = 5.0
    """maximum seconds until a request is answered"""


def main(job: Serve) -> None:
    model = cli.model(job.model)
    keys = cli.path(job.api_keys_file, "--api-keys-file") if job.api_keys_file else None
    if keys is not None and not os.path.isfile(keys):
        raise UserError(f"--api-keys-file {keys} is missing: give a file with one key a line")
    cli.show(f"serve {model} on http://{job.host}:{job.port}", job)
    _check_port(job.host, job.port)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # else lines of equal shape are folded: a request would have no line
    from serve.options import Options

    cli.connect(job.num_replicas + 1)
    _serve(Options(model=model, api_keys_file=keys, num_replicas=job.num_replicas, deadline_s=job.deadline_s), job.host, job.port)


def _serve(options: Options, host: str, port: int) -> None:
    """Serve until interrupted, on the Ray that is connected."""
    from ray import serve

    from serve.app import QUIET, build

    application = build(options)
    serve.start(http_options={"host": host, "port": port, "keep_alive_timeout_s": 10}, logging_config=QUIET)
    try:
        serve.run(application, name="han", route_prefix="/")
        print(f"Serving {options.model} on http://{host}:{port} (page at /, API at /docs). Ctrl+C stops it.", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("Stopping.", flush=True)
    finally:
        serve.shutdown()


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; give another --port") from None


def run() -> None:
    cli.run(Serve, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
