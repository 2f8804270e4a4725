"""Options of Ray Data, shared by all datasets of this project."""

from __future__ import annotations

import logging

from ray.data import DataContext


def configure_ray_data() -> None:
    """Keep Ray Data's own bars and plans out of the logs: jobs print one progress line of their own."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.ERROR)
