"""The application: `serve run serve.app:build model=imdb`, or `serve deploy serve/config.yaml`."""

# No `from __future__ import annotations` here: Serve reads `build`'s annotation to make Options of what it is given.
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from han.model import artifact
from serve.ingress import Ingress
from serve.options import Options
from serve.replica import Model
from serve.router import AnsweringRouter
from serve.totals import Totals

__all__ = ["Options", "build"]

# A replica is replaced only after its successor is ready, and goes only after its requests are answered; none lasts over 30 s.
_CAREFUL: dict[str, Any] = {
    "max_surge_percent": 100,
    "graceful_shutdown_timeout_s": 35,
    "graceful_shutdown_wait_loop_s": 0.5,
    "max_constructor_retry_count": 2,
}


def build(options: Options) -> Application:
    """Three deployments: Ingress speaks HTTP, Model scores, Totals adds up what both count. A model that is not there is a `Mistake`."""
    found = artifact.resolve(options.model)  # once: replicas that start later serve the same version of models/best
    if found != "imdb":
        options = options.model_copy(update={"model": str(Path(found).absolute())})
    if options.api_keys_file:
        options = options.model_copy(update={"api_keys_file": str(Path(options.api_keys_file).absolute())})
    totals = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1_000)(Totals).bind()
    model = serve.deployment(
        num_replicas=options.num_replicas,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": 1 if options.gpu else 0},
        max_ongoing_requests=64,
        health_check_period_s=2,
        health_check_timeout_s=10,
        request_router_config=RequestRouterConfig(request_router_class=AnsweringRouter),  # type: ignore[arg-type]  # a class will do
        **_CAREFUL,
    )(Model).bind(options, totals)
    ingress = serve.deployment(
        name="Ingress", num_replicas=options.num_ingress, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1_000, **_CAREFUL
    )(serve.ingress()(Ingress))
    return ingress.bind(model, totals, options)
