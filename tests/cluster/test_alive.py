"""The end of a port is noticed, also while this process is busy; its return, and a disconnected process, are not taken for it."""

from __future__ import annotations

import socket
import threading

from han.cluster import alive

DEADLINE_S = 30.0


def listen(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def watch(server: socket.socket, *, gone_s: float, over: threading.Event) -> tuple[threading.Event, threading.Thread]:
    """The event of the end, and the thread that watches. The first connection is accepted."""
    ended = threading.Event()
    options = {"gone_s": gone_s, "is_over": over.is_set}
    thread = threading.Thread(target=alive.watch_port, args=(server.getsockname(), ended.set), kwargs=options, daemon=True)
    thread.start()
    return ended, thread


def test_the_end_of_a_listener_is_noticed() -> None:
    server, over = listen(), threading.Event()
    ended, thread = watch(server, gone_s=0.1, over=over)
    connection, _ = server.accept()
    assert not ended.is_set()
    server.close()
    connection.close()
    assert ended.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_a_listener_that_closes_idle_connections_or_returns_in_time_did_not_end() -> None:
    server, over = listen(), threading.Event()
    port = server.getsockname()[1]
    ended, thread = watch(server, gone_s=DEADLINE_S, over=over)
    for _ in range(2):
        server.accept()[0].close()
    connection, _ = server.accept()
    server.close()
    connection.close()
    with listen(port) as again:
        again.settimeout(DEADLINE_S)
        again.accept()[0].close()
        again.accept()[0].close()
    over.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert not ended.is_set()


def test_the_end_of_a_listener_that_this_process_has_left_is_ignored() -> None:
    server, over = listen(), threading.Event()
    ended, thread = watch(server, gone_s=0.0, over=over)
    connection, _ = server.accept()
    over.set()
    server.close()
    connection.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert not ended.is_set()
