"""Two nodes with a token on this machine: listeners, access, and the doctor. All tests share one cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from deploy import local
from deploy.local import LocalCluster, NodeConfig
from tests.helpers.serving import until

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
LISTENERS = (ROOT / "docs" / "listeners.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head and a node with two CPUs each. Nodes that tests add are stopped with them."""
    started = local.start(Path(tempfile.mkdtemp(prefix="han-")), num_nodes=2, config=NodeConfig())
    try:
        yield started
    finally:
        local.stop(local.read(started.folder))


def doctor(target: LocalCluster | Cluster, *flags: object, python: tuple[str, ...] = (sys.executable,)) -> tuple[int, str]:
    """Exit code and output of `python -m jobs.doctor` as a driver of that cluster."""
    found = target.environment if isinstance(target, LocalCluster) else {"RAY_ADDRESS": target.address, "RAY_AUTH_MODE": "disabled"}
    command = [*python, "-m", "jobs.doctor", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | found, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


def status(url: str, token: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:  # noqa: S310 # http on loopback
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def kind_of(process: psutil.Process, port: int) -> str:
    """The row of docs/listeners.md for a port of a process."""
    command = " ".join(process.cmdline())
    ports = dict(re.findall(r"--([a-z-]+)=(\d+)", command))
    name = process.name()
    if name in ("gcs_server", "raylet"):
        return name
    if "DashboardAgent" in name or "DashboardAgent" in command:
        return "agent"
    if "RuntimeEnvAgent" in name or "RuntimeEnvAgent" in command:
        return "runtime_env"
    if "dashboard.py" in command:
        return "dashboard" if str(port) == ports.get("port") else "metrics"
    if "monitor.py" in command:
        return "metrics"
    return "worker" if command.startswith("ray::") or "default_worker.py" in command else f"unknown: {command[:80]}"


def listeners(cluster: LocalCluster) -> set[tuple[str, str, int]]:
    """Row, address and port of every listening socket of the cluster."""
    found = set()
    for node in local.read(cluster.folder).nodes:
        for process in local.processes(node):
            with suppress(psutil.Error):  # it has just ended
                sockets = [socket.laddr for socket in process.net_connections("inet") if socket.status == psutil.CONN_LISTEN]
                found |= {(kind_of(process, port), ip.removeprefix("::ffff:"), port) for ip, port in sockets}
    return found


def test_the_listeners_equal_those_of_the_documentation(cluster: LocalCluster) -> None:
    documented = {line.split("|")[1].strip() for line in LISTENERS.splitlines() if line.startswith("| ")} - {"Process", "---"}
    wanted = {"dashboard", "gcs_server", "raylet", "agent", "runtime_env", "metrics"}
    until(lambda: wanted <= {kind for kind, _, _ in listeners(cluster)})  # a node is up before its agents listen
    found = listeners(cluster)
    assert {kind for kind, _, _ in found} <= documented
    assert {address for kind, address, _ in found if kind == "dashboard"} == {"127.0.0.1"}
    assert all(address.startswith("127.") for kind, address, _ in found if kind == "runtime_env")
    assert not {port for _, _, port in found} & {10001, 8265, 8000, 6379}, "the client server, or a default port"


def test_the_jobs_api_refuses_requests_without_the_token(cluster: LocalCluster) -> None:
    token = (cluster.folder / "token").read_text()
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/serve/applications/"):
        codes = [status(cluster.dashboard + path, each) for each in (None, "0" * 64, token)]
        assert codes == [401, 403, 200], path
    assert (cluster.folder / "token").stat().st_mode & 0o777 == 0o600
    assert cluster.folder.stat().st_mode & 0o777 == 0o700


def test_a_node_cannot_join_without_the_token(cluster: LocalCluster) -> None:
    code = f"import ray; ray.init(address={cluster.address!r}, log_to_driver=False); print(ray.nodes())"
    tries = []
    for auth in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | auth
        environment |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_gcs_server_request_timeout_seconds": "5"}
        tries.append(subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True))
    for process in tries:
        _, output = process.communicate(timeout=200)
        assert process.returncode
        assert re.search("(?i)unauthenticated|token|InvalidAuth", output), output[-2_000:]


def test_the_http_of_agents_requires_the_token_and_the_exporters_do_not(cluster: LocalCluster) -> None:
    """Metrics need no token; the HTTP of the agents does."""
    answers: dict[str, set[int]] = {}
    for kind, address, port in listeners(cluster):
        if kind in ("agent", "runtime_env", "metrics"):
            with suppress(OSError, HTTPException):  # gRPC does not speak HTTP/1
                path = "/metrics" if kind == "metrics" or address in ("0.0.0.0", "::") else "/api/job_agent/jobs/x/logs"  # noqa: S104
                host = "127.0.0.1" if address in ("0.0.0.0", "::") else address  # noqa: S104
                answers.setdefault(kind if path != "/metrics" else "metrics", set()).add(status(f"http://{host}:{port}{path}"))
    assert answers["metrics"] == {200}
    assert answers["agent"] <= {401, 403}
    assert answers.get("runtime_env", {401}) <= {401, 403, 404}


def test_a_submitted_doctor_finds_no_problem(cluster: LocalCluster, tmp_path: Path) -> None:
    command = [local.RAY, "job", "submit", "--working-dir", str(ROOT), "--", "python", "-m", "jobs.doctor", "--data", str(ROOT / "tests")]
    command += ["--out", str(tmp_path / "run"), "--train.num-workers", "2", "--train.cpus-per-worker", "2", "--jobs", "train", "serve"]
    done = subprocess.run(command, env=os.environ | cluster.environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks are green" in done.stdout
    assert "RED" not in done.stdout
    assert "2 up, with 4 CPUs" in done.stdout
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_the_doctor_reports_wrong_gpus_cpus_paths_disk_and_versions(cluster: LocalCluster, tmp_path: Path) -> None:
    other = tmp_path / "other" / "torch-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
    settings = {"PYTHONPATH": os.pathsep.join((str(other.parent), str(ROOT)))}
    local.add_node(local.read(cluster.folder), NodeConfig(num_cpus=1, settings=settings))
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(full)], capture_output=True).returncode == 0
    try:
        flags = (
            "--data",
            tmp_path / "nowhere",
            "--out",
            full / "run",
            "--train.num-workers",
            2,
            "--train.gpu",
            True,
            "--score.num-actors",
            99,
        )
        code, output = doctor(cluster, *flags)
    finally:
        if mounted:
            subprocess.run(["umount", str(full)], check=True)
    assert code == 2, output
    assert "needs 2 GPUs, the cluster has 0 GPUs" in output
    assert "needs 99 CPUs, the cluster has 5 CPUs" in output
    assert "nowhere on head: there is no such file or folder" in output
    assert "nowhere on node1: there is no such file or folder" in output
    assert re.search(r"torch 2\.\S+ on head, node1; torch 0\.0\.1 on node2", output), output
    if mounted:
        assert re.search(r"full/run has 8 MB left, less than 1,000\n +-> free some space there", output), output
    assert output.rstrip().splitlines()[-1].startswith("error: ")
    assert output.rstrip().splitlines()[-1].endswith("red: versions, --data, --out, train, tune, score") or not mounted


def test_the_doctor_reports_a_cluster_without_a_token(on_ray: Cluster) -> None:
    code, output = doctor(on_ray, "--jobs", "serve")
    assert code == 2
    assert "RED    auth       the jobs API answers 200 without a token: whoever reaches it can run code on every node" in output
    assert "RAY_AUTH_MODE=token" in output


def test_killing_a_node_leaves_the_others_alive(cluster: LocalCluster) -> None:
    current = local.read(cluster.folder)
    head, victim = current.node("head"), current.nodes[-1]
    before = {process.pid for process in local.processes(head)}
    local.kill_node(victim)
    assert local.processes(victim) == []
    assert local.raylet(victim) is None
    assert local.raylet(head) in before


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare on this system")
def test_a_head_starts_on_a_machine_with_only_loopback(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("no network namespaces for this user, or no ip")
    folder = Path(tempfile.mkdtemp(prefix="han-"))
    code = "import json, sys; from pathlib import Path; from deploy import local; f = Path(sys.argv[1])\n"
    code += "c = local.start(f, num_nodes=1, config=local.NodeConfig(num_cpus=1))\n"
    code += "import os; os.environ.update(c.environment); import ray\n"  # which reads how to authenticate when it is imported
    code += "ray.init(log_to_driver=False); print(json.dumps(ray.cluster_resources()))\n"
    code += "ray.shutdown(); local.stop(c)"
    script = 'ip link set lo up && exec "$@"'
    command = ["unshare", "-n", "sh", "-c", script, "sh", sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, error = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        if (folder / "cluster.json").exists():
            local.stop(local.read(folder))
    assert process.returncode == 0, error[-2_000:]
    assert json.loads(output.strip().splitlines()[-1])["CPU"] == 1
    assert not folder.exists()
