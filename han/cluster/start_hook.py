"""A hook for `ray start`: set RAY_START_HOOK=han.cluster.start_hook.without_client_server in the environment of every node.

Ray has no flag that disables its client server (port 10001). It calls the hook with the parameters of the node before anything starts.
"""

from __future__ import annotations

from typing import Any

HOOK = "han.cluster.start_hook.without_client_server"


def without_client_server(params: Any, head: bool) -> None:
    """Do not start the client server: no job of this project uses it, and it would be one more open port."""
    params.ray_client_server_port = None
