"""A cluster of several nodes on one machine: `python -m deploy up`, `kill --name node1`, `down`.

Each node is its own `ray start`, with its own address (127.0.0.2, .3, …), folder and a custom resource of the node's name. Jobs, tests and
reliability runs start, kill and stop nodes with the functions below. The cluster's folder holds cluster.json, the token (0600) and the
nodes' logs. Processes are never looked up by name or id alone: the processes of a node carry the node's secret mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from han.cluster.start_hook import HOOK
from han.types import UserError

ROOT = Path(__file__).parents[1]
FOLDER = Path(tempfile.gettempdir(), f"han-cluster-{os.getuid()}")  # short, because Ray's socket paths have at most 107 characters
RAY = str(Path(sys.executable).with_name("ray"))
FORWARDED = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265", "RAY_AUTH_MODE": "token"}  # of a remote cluster, with ~/.ray/auth_token
MARK = "HAN_LOCAL_NODE"
MAX_STARTS = 4  # attempts to start a node
START_S, STOP_S, KILL_S = 180.0, 5.0, 60.0  # deadlines; on a busy machine a node takes half a minute to start


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One `ray start` and its descendants."""

    name: str  # head, node1, …; also a custom resource of amount 1 that only this node has
    ip: str
    mark: str  # secret value of MARK in the environment of its processes
    pid: int  # of its `ray start`, which leads its own session


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Resources and environment of a node."""

    num_cpus: int = 2  # logical; may exceed the CPUs of the machine
    store_mb: int = 200  # shared memory of the object store
    resources: Mapping[str, float] = field(default_factory=dict)  # custom resources, besides the node's name
    settings: Mapping[str, str] = field(default_factory=dict)  # added to its environment


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """A running cluster, as recorded by cluster.json in its folder."""

    folder: Path
    address: str  # of the head, for RAY_ADDRESS
    dashboard: str  # URL, for `ray job submit --address`
    auth: bool
    nodes: tuple[Node, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a process connects to this cluster."""
        addresses = {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard}
        if not self.auth:
            return addresses | {"RAY_AUTH_MODE": "disabled"}
        return addresses | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}

    def node(self, name: str) -> Node:
        """The node of that name. Raises `UserError` if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise UserError(f"there is no node {name}: the cluster in {self.folder} has {', '.join(node.name for node in self.nodes)}")


def start(folder: Path, *, num_nodes: int, config: NodeConfig, auth: bool = True) -> LocalCluster:
    """Start a head and `num_nodes` - 1 workers. They run until `stop`, even if this process ends.

    Raises `UserError` if the folder is in use, and `RuntimeError` with the end of the log if a node does not start. After an error nothing
    is left running.
    """
    _make_private(folder)
    port, dashboard = free_ports(2)
    head_ip = _ip(0)
    cluster = LocalCluster(folder=folder, address=f"{head_ip}:{port}", dashboard=f"http://127.0.0.1:{dashboard}", auth=auth)
    try:
        flags = ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        cluster = _with_node(cluster, "head", flags, config)
        for number in range(1, num_nodes):
            cluster = _with_node(cluster, f"node{number}", [f"--address={cluster.address}"], config)
        _await_dashboard(cluster)
    except BaseException:
        stop(read(folder) if (folder / "cluster.json").exists() else cluster)
        raise
    return cluster


def add_node(cluster: LocalCluster, config: NodeConfig) -> LocalCluster:
    """Start one more node, with a name and an address that no node of the cluster had before."""
    return _with_node(cluster, f"node{len(cluster.nodes)}", [f"--address={cluster.address}"], config)


def kill_node(node: Node) -> None:
    """Kill every process of a node with SIGKILL, as when a machine is lost. The cluster still lists the node."""
    end = time.monotonic() + KILL_S
    while alive := processes(node):
        for process in sorted(alive, key=lambda process: process.pid != node.pid):  # `ray start` first: it would clean up after the others
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=1)
        if time.monotonic() > end:
            raise RuntimeError(f"{node.name} is still alive {KILL_S:.0f} s after SIGKILL: {alive}")


def stop(cluster: LocalCluster) -> None:
    """Send SIGTERM to every `ray start`, kill what is left of the nodes a few seconds later, and remove the folder."""
    alive = [process for node in cluster.nodes for process in processes(node)]
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.pid in {node.pid for node in cluster.nodes}:
                process.terminate()
    psutil.wait_procs(alive, timeout=STOP_S)  # after many jobs Ray needs half a minute to stop by itself
    for node in cluster.nodes:
        kill_node(node)
    shutil.rmtree(cluster.folder, ignore_errors=True)


def read(folder: Path = FOLDER) -> LocalCluster:
    """The cluster that was started in `folder`. Raises `UserError` if there is none."""
    try:
        record = json.loads((folder / "cluster.json").read_text())
    except FileNotFoundError:
        raise UserError(f"no cluster was started in {folder}: run make cluster NODES=3") from None
    nodes = tuple(Node(**node) for node in record.pop("nodes"))
    return LocalCluster(**record | {"folder": folder, "nodes": nodes})


def processes(node: Node) -> list[psutil.Process]:
    """The live processes of a node: those with its mark, and their descendants (Ray's workers overwrite their environment)."""
    marked: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == node.mark:
                marked |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return [process for process in marked.values() if _is_alive(process)]


def raylet(node: Node) -> int | None:
    """The process id of a node's raylet, or None if it is dead."""
    return next((process.pid for process in processes(node) if _is_raylet(process)), None)


def free_ports(number: int) -> list[int]:
    """Ports without a listener, above the range of Ray's workers and below the range that a system assigns to clients."""
    random, ports = secrets.SystemRandom(), set[int]()
    while len(ports) < number:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("", port))  # on all addresses, because each node has its own
            ports.add(port)
    return list(ports)


def _make_private(folder: Path) -> None:
    """Make a folder that only this user may read, and write a new token into it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o77 or folder.is_symlink():
        raise UserError(f"{folder} is open to other users: use a new folder, or one that only you may enter (chmod 700)")
    if existing := next(folder.iterdir(), None):
        raise UserError(f"{folder} holds {existing.name} of another cluster: stop that first (make cluster-down), or use another folder")
    with os.fdopen(os.open(folder / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as token:
        token.write(secrets.token_hex(32))


def _with_node(cluster: LocalCluster, name: str, flags: list[str], config: NodeConfig) -> LocalCluster:
    """Start a node. A node that ends during its start is started again, because Ray's own deadlines can pass on a busy machine."""
    for _ in range(MAX_STARTS):
        larger = _launch(cluster, name, flags, config)
        if (reason := _await_node(larger, larger.nodes[-1])) is None:
            return larger
        kill_node(larger.nodes[-1])
        shutil.rmtree(cluster.folder / name, ignore_errors=True)
    raise RuntimeError(f"{name} did not start in {MAX_STARTS} attempts: {reason}")


def _write_agent_port(node: Node) -> None:
    """Write the agent's port where the raylet looks for it. Otherwise the agent writes it, which is too late on a busy machine."""
    for process in processes(node):
        with contextlib.suppress(psutil.Error, OSError):
            if _is_raylet(process):
                command = " ".join(process.cmdline())
                flags = {name: re.search(rf"--{name}=(\S+)", command) for name in ("listen-port", "node-id", "session-dir")}
                if all(flags.values()):
                    port, node_id, session = (match[1] for match in flags.values() if match)
                    Path(session, f"dashboard_agent_listen_port_{node_id}").write_text(port)


def _launch(cluster: LocalCluster, name: str, flags: list[str], config: NodeConfig) -> LocalCluster:
    number = len(cluster.nodes)
    exporters = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")  # of a head; another head may use the default ports
    agents = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
    ports = free_ports(len(exporters) + len(agents))
    resources = json.dumps({name: 1, **config.resources})
    command = [
        RAY,
        "start",
        "--block",
        *flags,
        f"--node-ip-address={_ip(number)}",
        f"--node-name={name}",
        f"--temp-dir={cluster.folder / name}",
    ]
    # a raylet that does not know the port of an agent waits 15 s, then dies
    command += [f"--{agent}-port={port}" for agent, port in zip(agents, ports[len(exporters) :], strict=True)]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--num-cpus={config.num_cpus}"]
    command += [f"--resources={resources}", f"--object-store-memory={config.store_mb * 1_000_000}", "--disable-usage-stats"]
    mark = f"{name}-{secrets.token_hex(16)}"
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    environment |= {name: value for name, value in cluster.environment.items() if name != "RAY_ADDRESS"}
    environment |= {
        "RAY_START_HOOK": HOOK,
        "RAY_raylet_start_wait_time_s": "90",
        "RAY_agent_register_timeout_ms": "120000",
        "RAY_gcs_server_port_wait_time_s": "90",
        "RAY_USAGE_STATS_ENABLED": "0",
        MARK: mark,
    }
    environment |= {exporter: str(port) for exporter, port in zip(exporters, ports[: len(exporters)], strict=True)}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # a job runs this Python
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))), **config.settings}
    with _log(cluster, name).open("wb") as log:
        process = subprocess.Popen(command, cwd=cluster.folder, env=environment, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
    process.returncode = 0  # the node may outlive this process, and subprocess warns about children without a wait
    node = Node(name=name, ip=_ip(number), mark=mark, pid=process.pid)
    cluster = replace(cluster, nodes=(*cluster.nodes, node))
    record = asdict(cluster) | {"folder": str(cluster.folder)}
    with os.fdopen(os.open(cluster.folder / "cluster.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(record, file, indent=1)
    return cluster


def _await_node(cluster: LocalCluster, node: Node) -> str | None:
    """Wait until a node runs. Returns None, or the end of its log if it ended. Raises `RuntimeError` after START_S seconds."""
    end = time.monotonic() + START_S
    while True:
        ended = not processes(node)
        log = _log(cluster, node.name).read_text(errors="replace")
        if "Ray runtime started" in log:
            return None
        _write_agent_port(node)
        logs = {path.name: path.read_text(errors="replace") for path in (cluster.folder / node.name).glob("session_2*/logs/*.err")}
        reason = log[-1_000:] + "".join(f"\n{name}: {logs[name][-500:]}" for name in sorted(logs) if logs[name])
        if ended or "Timed out waiting for file" in logs.get("raylet.err", ""):  # `ray start` notices only after a minute
            return reason
        if time.monotonic() > end:
            raise RuntimeError(f"{node.name} did not start in {START_S:.0f} s: {reason}")
        time.sleep(0.2)


def _await_dashboard(cluster: LocalCluster) -> None:
    token = (cluster.folder / "token").read_text()
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    end = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10):  # noqa: S310 # always http://127.0.0.1
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > end:
                raise RuntimeError(f"the dashboard at {cluster.dashboard} does not answer: {error}") from None
            time.sleep(0.2)


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _is_raylet(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.name() == "raylet")
    return False


def _log(cluster: LocalCluster, name: str) -> Path:
    return cluster.folder / f"{name}.log"


def _ip(number: int) -> str:
    """The address of a node. Systems other than Linux have only one, and Ray supports no cluster there."""
    return f"127.0.0.{number + 2}" if sys.platform == "linux" else "127.0.0.1"
