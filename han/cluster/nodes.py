"""Collects the facts of every node with Ray, and the answer of the head's dashboard to a request without a token. `doctor` judges them."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import han
from han.cluster.doctor import Cluster, Node, Place
from han.storage import filesystem

ANSWER_S = 120.0  # deadline of a node's answer; it may start a process first
SHARED_MEMORY = "/dev/shm"  # noqa: S108 # only its size is read
PACKAGES = ("ray", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPath:
    """A path or URI that a job will use."""

    flag: str
    path: str  # absolute
    written: bool  # an output, else an input


def examine(requested: Sequence[JobPath]) -> Cluster:
    """The facts of the cluster that this process is connected to. Leaves nothing behind."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: ("node:__internal_head__" not in node["Resources"], node["NodeName"]))
    names = _names(alive)
    dashboard = ray._private.worker.get_dashboard_url()
    marks = {each.path: mark for each in requested if each.written and (mark := _leave_mark(each.path))}
    try:
        questions = [_on(node, facts).remote(requested, marks) for node in alive]
        status = _on(alive[0], jobs_api_status).remote(dashboard) if dashboard else None
        nodes = [_answer(node, name, question) for node, name, question in zip(alive, names, questions, strict=True)]
        nodes = [node if node.problem else _with_skew(node, ray_node) for node, ray_node in zip(nodes, alive, strict=True)]
        return Cluster(nodes=tuple(nodes), dashboard=dashboard, status=ray.get(status, timeout=ANSWER_S) if status else None)
    finally:
        for mark in marks.values():
            Path(mark).unlink(missing_ok=True)


def facts(requested: Sequence[JobPath], marks: dict[str, str]) -> dict[str, Any]:
    """Facts of the node that runs this: fields of `doctor.Node`."""
    temp = ray.get_runtime_context().get_temp_dir()
    disk = shutil.disk_usage(temp)
    memory = Path(SHARED_MEMORY)
    return {
        "versions": versions(),
        "places": tuple(look(each, marks.get(each.path)) for each in requested),
        "temp": temp,
        "temp_free_mb": disk.free / 1e6,
        "temp_used": disk.used / (disk.used + disk.free),
        "memory_mb": shutil.disk_usage(memory).total / 1e6 if memory.exists() else 0.0,
    }


def versions() -> dict[str, str]:
    """Versions that must be equal on all nodes; "missing" for a package that is not installed."""
    installed = {"python": platform.python_version(), "han": han.__version__}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "missing"
    return installed


def look(requested: JobPath, mark: str | None) -> Place:
    """How this node sees a path. mark: a file that the driver left where an output will be."""
    place = Place(flag=requested.flag, path=requested.path, problem=None, content="", free_mb=None)
    try:
        if not requested.written:
            content = _content(requested.path)
            return replace(place, content=content or "", problem=None if content else "there is no such file or folder")
        if "://" in requested.path:
            filesystem(requested.path)
            return place
        folder = _existing(requested.path)
        if mark is None or not os.path.exists(mark):
            return replace(place, problem="it is not the folder that the driver's node sees under this name, or is not mounted")
        if not os.access(folder, os.W_OK):
            return replace(place, problem=f"{folder} is not writable for the user that runs Ray")
        return replace(place, free_mb=shutil.disk_usage(folder).free / 1e6)
    except (OSError, ValueError) as error:  # the kinds of pyarrow's errors
        return replace(place, problem=" ".join(str(error).split())[:300])


def jobs_api_status(dashboard: str) -> int | None:
    """HTTP status of the dashboard's jobs API for a request without a token."""
    try:
        with urllib.request.urlopen(f"http://{dashboard}/api/jobs/", timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _content(path: str) -> str | None:
    """The content of a path as one line that is equal for equal files: names and sizes, without times."""
    if "://" not in path and glob.has_magic(path):
        sizes = [os.path.getsize(each) for each in glob.glob(path)]
        return f"{len(sizes):,} files of {sum(sizes):,} bytes" if sizes else None
    system, name = filesystem(path)
    info = system.get_file_info(name)
    if info.type == pyarrow.fs.FileType.File:
        return f"{info.size:,} bytes"
    if info.type == pyarrow.fs.FileType.Directory:
        return f"{len(system.get_file_info(pyarrow.fs.FileSelector(name))):,} entries"
    return None


def _leave_mark(path: str) -> str | None:
    """Create an empty file where an output will be; None if that fails."""
    if "://" in path:
        return None
    try:
        number, mark = tempfile.mkstemp(prefix=".han-doctor-", dir=_existing(path))
        os.close(number)
        return mark
    except OSError:
        return None


def _existing(path: str) -> str:
    """The path, or the nearest existing folder above it: jobs create the rest."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _on(node: dict[str, Any], function: Any) -> Any:
    pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=pinned)


def _answer(node: dict[str, Any], name: str, question: Any) -> Node:
    try:
        return Node(name=name, resources=node["Resources"], **ray.get(question, timeout=ANSWER_S))
    except RayError as error:
        return Node(name=name, resources=node["Resources"], problem=" ".join(str(error).split())[:300])


def _with_skew(node: Node, where: dict[str, Any]) -> Node:
    """The clock difference to this process, and its uncertainty. A worker already runs there, so the call takes milliseconds."""
    before = time.time()
    remote_s = ray.get(_on(where, _now).remote(), timeout=ANSWER_S)
    after = time.time()
    return replace(node, skew_s=remote_s - (before + after) / 2, skew_within_s=(after - before) / 2)


def _now() -> float:
    return time.time()


def _names(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Names as in `ray status`, with a part of the id if a name is ambiguous."""
    names = [node["NodeName"] for node in nodes]
    return [name if names.count(name) == 1 else f"{name}/{node['NodeID'][:6]}" for name, node in zip(names, nodes, strict=True)]
