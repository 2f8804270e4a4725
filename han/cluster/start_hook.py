"""A hook for `ray start`: set RAY_START_HOOK=han.cluster.start_hook.configure in the environment of every node.

Ray has no flag that disables its client server (port 10001). It calls the hook with the parameters of the node before anything starts.
"""

from __future__ import annotations

import os
from typing import Any

HOOK = "han.cluster.start_hook.configure"
# Ray passes the answer of a call in the reply up to this size, and a larger one through its object store. The service's answer to 32
# reviews has half a megabyte: in the reply it costs less (docs/log.md). Ray's default is 100 kB.
LARGE_REPLIES = {"RAY_max_direct_call_object_size": "2000000"}  # bytes


def configure(params: Any, head: bool) -> None:
    """Do not start the client server: no job of this project uses it, and it would be one more open port. Allow large replies."""
    params.ray_client_server_port = None
    for name, value in LARGE_REPLIES.items():
        os.environ.setdefault(name, value)
