"""Manage a cluster on this machine: `python -m deploy up --nodes 3`, `kill --name node1`, `down`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import tyro

from deploy import local
from han.types import UserError


def up(nodes: int = 3, cpus: int = 2, folder: Path = local.FOLDER) -> None:
    """Start a head and nodes - 1 workers, and print how to use them.

    Args:
        nodes: number of nodes, including the head
        cpus: logical CPUs of each node
        folder: a new folder for the token, the logs and Ray's files
    """
    cluster = local.start(folder.absolute(), num_nodes=nodes, config=local.NodeConfig(num_cpus=cpus))
    print(
        f"# {nodes} nodes of {cpus} CPUs: {', '.join(f'{node.name} ({node.ip})' for node in cluster.nodes)}; dashboard {cluster.dashboard}"
    )
    for name, value in cluster.environment.items():
        print(f"export {name}={value}")
    print("# next: make doctor; make submit JOB=train ARGS='--data … --out …'; make cluster-down")


def env(folder: Path = local.FOLDER) -> None:
    """Print the exports with which `ray job` finds the cluster on this machine or, without one, the remote one of `make attach`.

    Args:
        folder: the folder the cluster was started in
    """
    if "RAY_API_SERVER_ADDRESS" in os.environ:
        return
    environment = local.read(folder).environment if (folder / "cluster.json").exists() else local.FORWARDED
    print("".join(f"export {name}={shlex.quote(value)}; " for name, value in environment.items() if name != "RAY_ADDRESS"))


def reach(job_id: str | None = None) -> None:
    """Check that the cluster of `env` answers, and that it has the job; one line says what to do if not.

    Args:
        job_id: a submitted job
    """
    from ray.job_submission import JobSubmissionClient

    address = os.environ.get("RAY_API_SERVER_ADDRESS", local.FORWARDED["RAY_API_SERVER_ADDRESS"])
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"no cluster answers at {address}: make cluster starts one here, make attach forwards a remote one ({reason})"
        ) from None
    if job_id is None:
        return
    try:
        client.get_job_info(job_id)
    except RuntimeError:
        raise UserError(f"the cluster at {address} has no job {job_id}: make status lists its jobs") from None


def kill(name: str, folder: Path = local.FOLDER) -> None:
    """Kill all processes of one node (SIGKILL).

    Args:
        name: node1, node2, …; killing the head ends the cluster
        folder: the folder the cluster was started in
    """
    local.kill_node(local.read(folder).node(name))
    print(f"killed {name}")


def down(folder: Path = local.FOLDER) -> None:
    """Stop every process of the cluster and remove its folder. No other process is stopped.

    Args:
        folder: the folder the cluster was started in
    """
    local.stop(local.read(folder))
    print(f"stopped the cluster in {folder}")


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict({"up": up, "env": env, "reach": reach, "kill": kill, "down": down}, prog="python -m deploy")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
