"""Checks whether jobs fit a cluster and whether it is healthy: pure functions of the facts of each node (see `cluster.nodes`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Bundle = Mapping[str, float]  # resources that one process needs on one node, e.g. {"CPU": 2, "GPU": 1}

MAX_SKEW_S = 5.0  # allowed clock difference in seconds: logs are compared, and cloud tokens expire
MIN_DISK_MB = 1_000.0  # free MB: a checkpoint of the largest model and the scores of a shard need about 200 MB
MAX_DISK_USED = 0.95  # share of the disk above which Ray creates no objects on a node (local_fs_capacity_threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A path or URI of a job, as one node sees it."""

    flag: str
    path: str
    problem: str | None  # why the node cannot use it; None if it can
    content: str  # of an input: equal on all nodes that see the same content; "" for an output
    free_mb: float | None  # of an output on a disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Facts of one node; only `problem` is set if it did not answer."""

    name: str
    resources: Bundle
    problem: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    temp: str = ""  # Ray's folder for logs and spilled objects
    temp_free_mb: float = MIN_DISK_MB
    temp_used: float = 0.0  # share
    memory_mb: float = 0.0  # shared memory, free or in Ray's store; 0 if the system does not report it
    skew_s: float = 0.0  # its clock minus the driver's
    skew_within_s: float = 0.0  # uncertainty: half of the round trip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All facts that are checked."""

    nodes: tuple[Node, ...]
    dashboard: str | None  # host:port
    status: int | None  # HTTP status of the jobs API for a request without a token; None if it did not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Resources that a job needs: bundles that must fit at the same time."""

    job: str
    bundles: tuple[Bundle, ...]
    lower: str  # what to change if it does not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report; `remedy` is None if nothing needs to be done."""

    about: str
    seen: str
    remedy: str | None = None


def findings(cluster: Cluster, needs: Sequence[Need]) -> list[Finding]:
    """All findings, also positive ones, in the order in which to fix them."""
    answered = [node for node in cluster.nodes if node.problem is None]
    return [
        *_nodes(cluster.nodes),
        _auth(cluster),
        _listens(cluster),
        *_versions(answered),
        *_clocks(answered),
        *_disks(answered),
        *_memory(answered),
        *_places(answered),
        *(_fit(need, cluster.nodes) for need in needs),
    ]


def _nodes(nodes: Sequence[Node]) -> Iterator[Finding]:
    yield Finding(about="nodes", seen=f"{len(nodes)} up, with {_amounts(_total(nodes))}")
    for node in nodes:
        if node.problem:
            remedy = f"look at the logs of {node.name}, or stop it, so that another node replaces it"
            yield Finding(about="nodes", seen=f"{node.name} does not answer: {node.problem}", remedy=remedy)


def _auth(cluster: Cluster) -> Finding:
    if cluster.status in (401, 403):
        return Finding(about="auth", seen=f"the jobs API refuses requests without a token ({cluster.status})")
    if cluster.status is None:
        return Finding(
            about="auth",
            seen="the dashboard did not answer",
            remedy="start the head with its dashboard: without it, no job can be submitted",
        )
    seen = f"the jobs API answers {cluster.status} without a token: whoever reaches it can run code on every node"
    return Finding(about="auth", seen=seen, remedy="stop the cluster and start every node with RAY_AUTH_MODE=token (see docs/runbook.md)")


def _listens(cluster: Cluster) -> Finding:
    host = (cluster.dashboard or "").rpartition(":")[0]
    if host.startswith("127.") or host in ("localhost", "[::1]", "::1", ""):
        return Finding(about="dashboard", seen=f"on loopback ({cluster.dashboard or 'none'})")
    seen = f"it listens on {cluster.dashboard}, beyond its own machine, without encryption"
    return Finding(
        about="dashboard", seen=seen, remedy="start the head with --dashboard-host=127.0.0.1 and reach it through ssh (make attach)"
    )


def _versions(nodes: Sequence[Node]) -> Iterator[Finding]:
    names = sorted({name for node in nodes for name in node.versions})
    for name in names:
        by_version: dict[str, list[str]] = {}
        for node in nodes:
            by_version.setdefault(node.versions.get(name, "missing"), []).append(node.name)
        if len(by_version) > 1:
            seen = "; ".join(f"{name} {version} on {', '.join(having)}" for version, having in by_version.items())
            yield Finding(
                about="versions", seen=seen, remedy=f"install the same {name} everywhere: pip install -c constraints.txt . on each node"
            )
    if nodes and all(len({node.versions.get(name) for node in nodes}) == 1 for name in names):
        yield Finding(about="versions", seen="equal on all nodes: " + ", ".join(f"{name} {nodes[0].versions[name]}" for name in names))


def _clocks(nodes: Sequence[Node]) -> Iterator[Finding]:
    wrong = [node for node in nodes if abs(node.skew_s) - node.skew_within_s > MAX_SKEW_S]
    for node in wrong:
        seen = f"{node.name} is {abs(node.skew_s):,.0f} s {'ahead' if node.skew_s > 0 else 'behind'}"
        yield Finding(about="clocks", seen=seen, remedy="synchronise the clock of every node by NTP (timedatectl set-ntp true)")
    if not wrong:
        within = max((node.skew_within_s for node in nodes), default=0.0)
        yield Finding(about="clocks", seen=f"within {MAX_SKEW_S:.0f} s of each other (measured to within {within:.1f} s)")


def _disks(nodes: Sequence[Node]) -> Iterator[Finding]:
    full = [node for node in nodes if node.temp_free_mb < MIN_DISK_MB or node.temp_used > MAX_DISK_USED]
    for node in full:
        seen = f"{node.name} has {node.temp_free_mb:,.0f} MB left for {node.temp}, {node.temp_used:.0%} is used"
        remedy = f"free some space: Ray writes logs and spills objects there, and stops placing objects above {MAX_DISK_USED:.0%}"
        yield Finding(about="disk", seen=seen, remedy=remedy)
    if nodes and not full:
        yield Finding(about="disk", seen=f"at least {min(node.temp_free_mb for node in nodes):,.0f} MB free for Ray's files on every node")


def _memory(nodes: Sequence[Node]) -> Iterator[Finding]:
    short = [node for node in nodes if node.memory_mb and node.memory_mb < _store_mb(node)]
    for node in short:
        seen = f"{node.name} has {node.memory_mb:,.0f} MB of shared memory for {_store_mb(node):,.0f} MB of objects: they go to disk"
        yield Finding(about="memory", seen=seen, remedy="enlarge /dev/shm (docker run --shm-size) or lower ray start --object-store-memory")
    if nodes and not short:
        yield Finding(about="memory", seen=f"{sum(map(_store_mb, nodes)):,.0f} MB of object store, in shared memory")


def _places(nodes: Sequence[Node]) -> Iterator[Finding]:
    for index, place in enumerate(nodes[0].places if nodes else ()):
        seen_by = {node.name: node.places[index] for node in nodes}
        good = True
        for name, observed in seen_by.items():
            if observed.problem:
                good = False
                remedy = "put it on storage that every node has mounted, or in a bucket (s3://…)"
                yield Finding(about=place.flag, seen=f"{place.path} on {name}: {observed.problem}", remedy=remedy)
            elif observed.free_mb is not None and observed.free_mb < MIN_DISK_MB:
                good = False
                seen = f"{place.path} has {observed.free_mb:,.0f} MB left, less than {MIN_DISK_MB:,.0f}"
                yield Finding(about=place.flag, seen=seen, remedy="free some space there, or give another folder")
        contents = {observed.content for observed in seen_by.values() if not observed.problem}
        if len(contents) > 1:
            seen = f"{place.path} differs: " + "; ".join(
                f"{observed.content} on {name}" for name, observed in seen_by.items() if not observed.problem
            )
            yield Finding(
                about=place.flag, seen=seen, remedy="every node must see the same files: put it on shared storage, or in a bucket"
            )
        elif good:
            yield Finding(about=place.flag, seen=f"{place.path} is the same on every node")


def _fit(need: Need, nodes: Sequence[Node]) -> Finding:
    """Whether all bundles fit on empty nodes: largest first, each on the node with the least room left."""
    room = [dict(node.resources) for node in nodes]
    for bundle in sorted(need.bundles, key=lambda bundle: (-bundle.get("GPU", 0), -bundle.get("CPU", 0))):
        able = [left for left in room if all(left.get(kind, 0) >= amount for kind, amount in bundle.items())]
        if not able:
            return _misfit(need, bundle, nodes)
        taken = min(able, key=lambda left: (left.get("GPU", 0), left.get("CPU", 0)))
        for kind, amount in bundle.items():
            taken[kind] = taken.get(kind, 0) - amount
    return Finding(about=need.job, seen=f"fits: it needs {_amounts(_sum(need.bundles))}")


def _misfit(need: Need, bundle: Bundle, nodes: Sequence[Node]) -> Finding:
    needed, available = _sum(need.bundles), _total(nodes)
    short = next((kind for kind in ("GPU", "CPU") if needed.get(kind, 0) > available.get(kind, 0)), None)
    if short:
        seen = f"needs {_amounts({short: needed[short]})}, the cluster has {_amounts({short: available.get(short, 0)})}"
    else:
        largest = {kind: max((node.resources.get(kind, 0) for node in nodes), default=0) for kind in bundle}
        seen = f"one of its processes needs {_amounts(bundle)} on one node, and no node has that much (the largest has {_amounts(largest)})"
    return Finding(about=need.job, seen=seen, remedy=f"{need.lower}, or add nodes (those that an autoscaler would add do not count yet)")


def _total(nodes: Sequence[Node]) -> dict[str, float]:
    return _sum([node.resources for node in nodes])


def _sum(bundles: Sequence[Bundle]) -> dict[str, float]:
    kinds = dict.fromkeys(kind for bundle in bundles for kind in bundle)
    return {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in kinds}


def _amounts(bundle: Bundle) -> str:
    amounts = [f"{bundle[kind]:g} {kind}{'s' * (bundle[kind] != 1)}" for kind in ("CPU", "GPU") if kind in bundle]
    return " and ".join(amounts) or "nothing"


def _store_mb(node: Node) -> float:
    return node.resources.get("object_store_memory", 0) / 1e6
