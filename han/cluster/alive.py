"""Notices that Ray died before Ray's own C++ layer ends this process, which it does with exit code 1 and without a line for users.

A driver that lost the raylet of its node is ended when it next touches the object store, one that lost the GCS after 60 s. Neither can be
caught in Python. A connection that is held open to the ports of both shows their end at once.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable

import ray

RAYLET_GONE_S = 0.5
GCS_GONE_S = 50.0  # a GCS with a store of its own may be started again; Ray waits 60 s for it
_CONNECT_S = 5.0
_POLL_S = 0.2


def watch(died: Callable[[str], object]) -> None:
    """Call `died` from a thread, with one line, if this process loses the raylet of its node or the GCS of its cluster."""
    context = ray.get_runtime_context()
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    host, _, port = context.gcs_address.rpartition(":")
    raylet, gcs = (own["NodeManagerAddress"], own["NodeManagerPort"]), (host.strip("[]"), int(port))
    for name, address, gone_s in (("the raylet of this node", raylet, RAYLET_GONE_S), ("the GCS", gcs, GCS_GONE_S)):
        ended = functools.partial(died, f"{name} ended")
        threading.Thread(target=watch_port, args=(address, ended), kwargs={"gone_s": gone_s}, daemon=True).start()


def watch_port(
    address: tuple[str, int], ended: Callable[[], object], *, gone_s: float, is_over: Callable[[], bool] = lambda: not ray.is_initialized()
) -> None:
    """Call `ended` once nothing has listened at the address for `gone_s`, and return. Return too if `is_over`."""
    lost = None
    while not is_over():
        try:
            with socket.create_connection(address, timeout=_CONNECT_S) as connection:
                lost = None
                connection.settimeout(None)
                while connection.recv(1 << 12):  # until the other side closes; it closes what does not speak its protocol, too
                    pass
        except OSError:
            lost = lost or time.monotonic()
            if time.monotonic() - lost >= gone_s and not is_over():
                ended()
                return
        time.sleep(_POLL_S)
