"""The deployment that speaks HTTP: the routes of `api`, scored by the replicas of `Model`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import sys
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE  # no public API gives the HTTP options in force
from ray.serve.handle import DeploymentHandle

from han.types import UserError
from serve.api import make_app
from serve.coordinator import keep_reporting
from serve.dispatch import Replicas
from serve.metrics import Metrics
from serve.middleware import Middleware
from serve.options import Options


class Ingress:
    def __init__(self, model: DeploymentHandle[Any], coordinator: DeploymentHandle[Any], options: Options) -> None:
        controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        check_exposure(ray.get(controller.get_http_config.remote()).host, options)
        _log_to_stdout()
        self._options, self._process, self._metrics = options, serve.get_replica_context().replica_id.unique_id, Metrics()
        self._replicas = Replicas(model, coordinator, self._metrics, options, process=self._process)
        self._reporting = asyncio.get_running_loop().create_task(keep_reporting(coordinator, self._metrics, self._process))

    def __serve_build_asgi_app__(self) -> Middleware:
        return make_app(self._replicas, self._options, self._metrics, replica=self._process, behind_proxy=True)


def check_exposure(host: str | None, options: Options) -> None:
    """Raise `UserError` if other machines reach the port and no API key protects it. Ray's token does not cover Serve's port."""
    try:
        is_loopback = host in (None, "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not (is_loopback or options.api_keys_file or options.insecure):
        raise UserError(
            f"Serve listens on {host}, so other machines can use it, and there is no API key: set http_options.host to 127.0.0.1, or "
            "give api_keys_file=FILE with one key a line, or insecure=true"
        )


def _log_to_stdout() -> None:
    """One line of JSON for each request; Ray keeps stdout in its worker-*.out files."""
    logger, handler = logging.getLogger("han.serve"), logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
