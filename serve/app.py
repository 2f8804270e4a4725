"""The application: `han serve --model imdb`, `serve run serve.app:build model=imdb`, or `serve deploy serve/config.yaml`."""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` to parse the options.
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from han.model import artifact
from serve.coordinator import Coordinator
from serve.ingress import Ingress
from serve.options import Options
from serve.replica import Model
from serve.router import ResponsiveRouter

__all__ = ["QUIET", "Options", "build"]

QUIET: dict[str, Any] = {"encoding": "JSON", "enable_access_log": False}  # the ingress logs each request
# A replica is replaced only when its successor is ready, and stops only when its requests are answered; none lasts over 30 s.
_CAREFUL: dict[str, Any] = {
    "max_surge_percent": 100,
    "graceful_shutdown_timeout_s": 35,
    "graceful_shutdown_wait_loop_s": 0.5,
    "max_constructor_retry_count": 2,
    "max_ongoing_requests": 2_000,  # never reached: the admission of the ingress is the one limit, the queue of the replica the one queue
}


def build(options: Options) -> Application:
    """Three deployments: Ingress speaks HTTP, Model scores, Coordinator sums metrics. Raises `UserError` if the model does not exist."""
    path = artifact.resolve(options.model)  # once: replicas that start later serve the same version of models/best
    if path != "imdb":
        options = options.model_copy(update={"model": str(Path(path).absolute())})
    if options.api_keys_file:
        options = options.model_copy(update={"api_keys_file": str(Path(options.api_keys_file).absolute())})
    coordinator = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1_000, logging_config=QUIET)(Coordinator).bind()
    model = serve.deployment(
        num_replicas=options.num_replicas,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": 1 if options.gpu else 0},
        health_check_period_s=2,
        health_check_timeout_s=10,
        request_router_config=RequestRouterConfig(request_router_class=ResponsiveRouter),  # type: ignore[arg-type]  # takes a class too
        logging_config=QUIET,
        **_CAREFUL,
    )(Model).bind(options, coordinator)
    ingress = serve.deployment(
        name="Ingress", num_replicas=options.num_ingress, ray_actor_options={"num_cpus": 0}, logging_config=QUIET, **_CAREFUL
    )(serve.ingress()(Ingress))
    return ingress.bind(model, coordinator, options)
