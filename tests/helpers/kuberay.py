"""Checks of the manifests in deploy/kuberay: KubeRay's fields by the schema below, core objects by Kubernetes' own schemas, then rules.

The schema has the fields of ray.io/v1 (KubeRay 1.7) that these manifests use, with the names, types and values of the operator's API. Any
other key is refused, because a cluster would silently drop a field with a typo.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate

Manifest = dict[str, Any]
KUBERNETES = "1.30"  # the oldest version that is checked
SECRETS = {"han-ray-token", "han-api-keys", "han-redis"}


def _only(required: list[str], **properties: Any) -> Manifest:
    """An object with these keys and no others."""
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_TEXT, _FLAG, _COUNT = {"type": "string", "minLength": 1}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_TEMPLATE = {"type": "object"}  # checked by Kubernetes' own schema
_SECRET = _only(["valueFrom"], valueFrom=_only(["secretKeyRef"], secretKeyRef=_only(["name", "key"], name=_TEXT, key=_TEXT)))
_AUTOSCALER = _only(
    ["version", "resources", "securityContext"],
    version={"enum": ["v1", "v2"]},
    idleTimeoutSeconds=_COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    resources=_TEMPLATE,
    securityContext=_TEMPLATE,
    volumeMounts={"type": "array"},
)
_HEAD = _only(
    ["rayStartParams", "template"],
    rayStartParams={**_TEXTS, "required": ["num-cpus"]},
    template=_TEMPLATE,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)
_GROUP = _only(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    rayStartParams=_TEXTS,
    template=_TEMPLATE,
)
_CLUSTER = _only(
    ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
    rayVersion=_TEXT,
    authOptions=_only(["mode", "secretName"], mode={"enum": ["disabled", "token"]}, secretName=_TEXT),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions=_AUTOSCALER,
    gcsFaultToleranceOptions=_only(["redisAddress", "redisPassword"], redisAddress=_TEXT, redisPassword=_SECRET),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "minItems": 1, "items": _GROUP},
)
_JOB = _only(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=_TEXT,
    runtimeEnvYAML=_TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=_COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    submitterPodTemplate=_TEMPLATE,
    rayClusterSpec=_CLUSTER,
)
_SERVICE = _only(
    ["serveConfigV2", "rayClusterConfig"],
    serveConfigV2=_TEXT,
    rayClusterConfig=_CLUSTER,
    upgradeStrategy=_only(["type"], type={"enum": ["NewCluster", "None", "NewClusterWithIncrementalUpgrade"]}),
    excludeHeadPodFromServeSvc=_FLAG,
    rayClusterDeletionDelaySeconds=_COUNT,
)
_SPECS = {"RayCluster": (_CLUSTER, 53), "RayJob": (_JOB, 47), "RayService": (_SERVICE, 47)}  # schema and maximum length of a name


def objects(document: Manifest) -> list[Manifest]:
    return document["items"] if document.get("kind") == "List" else [document]


def cluster_of(manifest: Manifest) -> Manifest | None:
    """The Ray cluster that a KubeRay object creates, or None for other objects."""
    spec: Manifest = manifest["spec"]
    clusters = {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}
    return clusters.get(manifest["kind"])


def templates(cluster: Manifest) -> Iterator[tuple[str, Manifest]]:
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield f"worker {group['groupName']}", group["template"]


def faults(manifest: Manifest) -> list[str]:
    """The faults of one object, one line each. If an object breaks its schema, the rules are not checked, because they need its shape."""
    if manifest["kind"] not in _SPECS:
        return _of_kubernetes(manifest) + _of_core(manifest)
    reported = _of_schema(manifest)
    if reported:
        return reported
    cluster = cluster_of(manifest)
    assert cluster is not None
    for name, template in templates(cluster):
        reported += [f"{name}: {fault}" for fault in _of_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "template": template})]
    return reported or [*_of_cluster(cluster), *_of_object(manifest, cluster)]


def _of_schema(manifest: Manifest) -> list[str]:
    spec, longest = _SPECS[manifest["kind"]]
    labels = _only([], **{"run": _TEXT})
    metadata = _only(["name"], name={"type": "string", "maxLength": longest, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}, labels=labels)
    whole = _only(["apiVersion", "kind", "metadata", "spec"], apiVersion={"const": "ray.io/v1"}, kind={}, metadata=metadata, spec=spec)
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(whole).iter_errors(manifest)]


def _of_kubernetes(manifest: Manifest) -> list[str]:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def _of_core(manifest: Manifest) -> list[str]:
    spec = manifest["spec"]
    if manifest["kind"] == "PodDisruptionBudget" and not isinstance(spec.get("minAvailable"), int):
        return ["minAvailable must be a number: pods of a custom resource have no scale for a percentage or maxUnavailable"]
    if manifest["kind"] == "NetworkPolicy":
        open_rules = [rule for rule in spec.get("ingress", []) if not rule.get("from")]
        return [f"ingress from anywhere: {rule}" for rule in open_rules] + [
            f"policyTypes lacks {kind}" for kind in ("Ingress", "Egress") if kind not in spec["policyTypes"]
        ]
    return []


def _of_cluster(cluster: Manifest) -> Iterator[str]:
    head = cluster["headGroupSpec"]
    if cluster["authOptions"]["mode"] != "token":
        yield "authentication is off: whoever reaches the dashboard runs code"
    if head["rayStartParams"]["num-cpus"] != "0":
        yield "the head offers CPUs: work on it could end the GCS and the drivers"
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield "the head's service is open outside the cluster"
    for group in cluster["workerGroupSpecs"]:
        if not group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]:
            yield f"{group['groupName']}: replicas are not between minReplicas and maxReplicas"
    if cluster.get("enableInTreeAutoscaling"):
        if "autoscalerOptions" not in cluster:
            yield "the autoscaler has no resources and no securityContext"
        else:
            yield from _of_container("autoscaler", cluster["autoscalerOptions"])
    for name, template in templates(cluster):
        yield from (f"{name}: {fault}" for fault in _of_pod(template, is_head=name == "head"))


def _of_pod(template: Manifest, *, is_head: bool) -> Iterator[str]:
    spec, pod = template["spec"], template["spec"].get("securityContext", {})
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
        yield "may run as root"
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if not is_head and spec.get("automountServiceAccountToken") is not False:
        yield "a Kubernetes token is mounted needlessly"
    if is_head and spec.get("automountServiceAccountToken") is False:
        yield "no Kubernetes token is mounted, which the autoscaler needs"
    if spec.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy: autoscaler v2 needs Never"
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        yield from _of_container(container["name"], container)
        for probe in ("readinessProbe", "livenessProbe"):
            if probe not in container:
                yield f"{container['name']}: no {probe}"
        tag = container["image"].rpartition(":")[2]
        if tag == container["image"] or "/" in tag or tag == "latest":
            yield f"{container['name']}: the image has no tag of its own"
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"] if mount["name"] in volumes}
        if len(mounted) < len(container["volumeMounts"]):
            yield f"{container['name']}: mounts a volume that is not defined"
        for path, medium in (("/tmp", ""), ("/dev/shm", "Memory")):  # noqa: S108 - inside the container
            if mounted.get(path, {}).get("emptyDir", {"medium": None}).get("medium", "") != medium:
                yield f"{container['name']}: no writable volume at {path}"
    for volume in volumes.values():
        if "secret" in volume and volume["secret"]["secretName"] not in SECRETS:
            yield f"the Secret {volume['secret']['secretName']} is not one of docs/kubernetes.md"


def _of_container(name: str, container: Manifest) -> Iterator[str]:
    context, size = container.get("securityContext", {}), container.get("resources", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{name}: keeps privileges"
    if not context.get("readOnlyRootFilesystem"):
        yield f"{name}: may write to its root file system"
    if not {"cpu", "memory"} <= size.get("limits", {}).keys() or size["limits"] != size.get("requests"):
        yield f"{name}: limits differ from its requests"


def _of_object(manifest: Manifest, cluster: Manifest) -> Iterator[str]:
    spec = manifest["spec"]
    if manifest["kind"] == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
        yield "the cluster of the job outlives it"
    if manifest["kind"] == "RayService":
        if "gcsFaultToleranceOptions" not in cluster:
            yield "without GCS fault tolerance the service dies with its head"
        for name, template in templates(cluster):
            ports = {port["name"] for port in template["spec"]["containers"][0].get("ports", [])}
            if "serve" not in ports:
                yield f"{name}: no port named serve, where the operator looks for the service's"
