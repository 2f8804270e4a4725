"""What `ray start` listens on: RAY_START_HOOK=han.cluster.start_hook.without_client_server, in the environment of every node.

Ray has no flag that leaves its client server (port 10001) out; the hook is called with the node's parameters before anything starts.
"""

from __future__ import annotations

from typing import Any

HOOK = "han.cluster.start_hook.without_client_server"


def without_client_server(params: Any, head: bool) -> None:
    """Take the client server out of what this node starts: no job of this project uses it, and it would be one more port."""
    params.ray_client_server_port = None
