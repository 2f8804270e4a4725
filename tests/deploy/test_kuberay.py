"""The manifests of deploy/kuberay are valid for KubeRay and Kubernetes, follow the project's rules, and agree with the code."""

from __future__ import annotations

import copy
import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import han
from han.cluster.start_hook import LARGE_REPLIES
from jobs import cli
from tests.helpers.kuberay import SECRETS, cluster_of, faults, objects, templates

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
DOCS = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
MANIFESTS = {
    f"{path.stem}: {each['kind']} {each['metadata']['name']}": each
    for path in sorted(FOLDER.glob("*.yaml"))
    for each in objects(yaml.safe_load(path.read_text(encoding="utf-8")))
}
CLUSTERS = {name: cluster for name, each in MANIFESTS.items() if (cluster := cluster_of(each))}
JOBS = {name: each["spec"]["entrypoint"] for name, each in MANIFESTS.items() if each["kind"] == "RayJob"}
JOB, SERVICE, CLUSTER = "batch: RayJob han-train", "service: RayService han", "batch: RayCluster han"


def _worker(manifest: Any) -> Any:
    return cluster_of(manifest)["workerGroupSpecs"][0]["template"]["spec"]


# for each fault: the manifest, the change, and a part of the expected message
MUTATIONS: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "a typo in RayJob": (JOB, lambda m: m["spec"].update(shutdownAfterJobFinish=True), "'shutdownAfterJobFinish' was unexpected"),
    "a typo in the cluster": (
        JOB,
        lambda m: cluster_of(m).update(enableInTreeAutoScaling=True),
        "'enableInTreeAutoScaling' was unexpected",
    ),
    "a typo in RayService": (SERVICE, lambda m: m["spec"].update(serveConfig="x"), "'serveConfig' was unexpected"),
    "a typo in a group": (CLUSTER, lambda m: cluster_of(m)["workerGroupSpecs"][0].update(minReplica=1), "'minReplica' was unexpected"),
    "a typo in a pod": (JOB, lambda m: _worker(m).update(automountServiceAccountTokens=False), "automountServiceAccountTokens"),
    "a typo in a container": (JOB, lambda m: _worker(m)["containers"][0].update(readynessProbe={}), "readynessProbe"),
    "a typo in a probe": (JOB, lambda m: _worker(m)["containers"][0]["livenessProbe"]["httpGet"].update(Path="/"), "Path"),
    "an old version of the API": (CLUSTER, lambda m: m.update(apiVersion="ray.io/v1alpha1"), "'ray.io/v1' was expected"),
    "an unknown mode": (JOB, lambda m: m["spec"].update(submissionMode="HTTP"), "'HTTP' is not one of"),
    "numbers as start parameters": (
        JOB,
        lambda m: cluster_of(m)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "0 is not of type",
    ),
    "no token": (CLUSTER, lambda m: cluster_of(m).pop("authOptions"), "'authOptions' is a required property"),
    "authentication off": (SERVICE, lambda m: cluster_of(m)["authOptions"].update(mode="disabled"), "authentication is off"),
    "a password in the manifest": (
        SERVICE,
        lambda m: cluster_of(m)["gcsFaultToleranceOptions"].update(redisPassword={"value": "secret"}),
        "'valueFrom' is a required property",
    ),
    "no fault tolerance": (SERVICE, lambda m: cluster_of(m).pop("gcsFaultToleranceOptions"), "dies with its head"),
    "a head with CPUs": (JOB, lambda m: cluster_of(m)["headGroupSpec"]["rayStartParams"].update({"num-cpus": "2"}), "offers CPUs"),
    "an open head": (JOB, lambda m: cluster_of(m)["headGroupSpec"].update(serviceType="LoadBalancer"), "open outside the cluster"),
    "root": (JOB, lambda m: _worker(m)["securityContext"].update(runAsUser=0), "may run as root"),
    "a writable root": (JOB, lambda m: _worker(m)["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"), "root file system"),
    "privileges": (JOB, lambda m: _worker(m)["containers"][0]["securityContext"].pop("capabilities"), "keeps privileges"),
    "an autoscaler with privileges": (JOB, lambda m: cluster_of(m)["autoscalerOptions"].update(securityContext={}), "autoscaler: keeps"),
    "no seccomp": (JOB, lambda m: _worker(m)["securityContext"].pop("seccompProfile"), "no seccomp"),
    "a token on a worker": (JOB, lambda m: _worker(m).pop("automountServiceAccountToken"), "needlessly"),
    "limits above requests": (
        JOB,
        lambda m: _worker(m)["containers"][0]["resources"].update(requests={"cpu": "1", "memory": "1Gi"}),
        "limits differ from its requests",
    ),
    "no liveness probe": (JOB, lambda m: _worker(m)["containers"][0].pop("livenessProbe"), "no livenessProbe"),
    "the latest image": (JOB, lambda m: _worker(m)["containers"][0].update(image="registry.example/han:latest"), "no tag of its own"),
    "an image without a tag": (JOB, lambda m: _worker(m)["containers"][0].update(image="registry.example:5000/han"), "no tag of its own"),
    "no writable folder": (JOB, lambda m: _worker(m)["containers"][0].update(volumeMounts=[]), "no writable volume at /tmp"),
    "a missing volume": (JOB, lambda m: _worker(m).update(volumes=_worker(m)["volumes"][:2]), "that is not defined"),
    "an unknown Secret": (SERVICE, lambda m: _worker(m)["volumes"][3]["secret"].update(secretName="other"), "not one of docs"),
    "fewer replicas than the minimum": (JOB, lambda m: cluster_of(m)["workerGroupSpecs"][0].update(replicas=0), "not between"),
    "a cluster that outlives its job": (JOB, lambda m: m["spec"].pop("shutdownAfterJobFinishes"), "outlives it"),
    "no port for Serve": (SERVICE, lambda m: _worker(m)["containers"][0].pop("ports"), "no port named serve"),
    "a name that is too long": (JOB, lambda m: m["metadata"].update(name="a" * 48), "is too long"),
    "a disruption budget in percent": (
        "base: PodDisruptionBudget han-serve",
        lambda m: m["spec"].update(minAvailable="50%"),
        "must be a number",
    ),
    "a typo in a policy": ("base: NetworkPolicy han-serve", lambda m: m["spec"].update(ingres=[]), "ingres"),
    "a policy without a source": ("base: NetworkPolicy han-serve", lambda m: m["spec"]["ingress"][1].pop("from"), "from anywhere"),
    "a policy for ingress only": ("base: NetworkPolicy han-batch", lambda m: m["spec"].update(policyTypes=["Ingress"]), "lacks Egress"),
    "a claim without a size": (
        "base: PersistentVolumeClaim han-shared",
        lambda m: m["spec"].update(resources={"requests": []}),
        "requests",
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_no_faults(name: str) -> None:
    assert faults(MANIFESTS[name]) == []


@pytest.mark.parametrize("change", MUTATIONS)
def test_each_fault_of_a_manifest_is_detected(change: str) -> None:
    name, mutate, message = MUTATIONS[change]
    manifest = copy.deepcopy(yaml.safe_load(yaml.dump(MANIFESTS[name], Dumper=_Plain)))  # without objects shared by anchors
    mutate(manifest)
    assert [fault for fault in faults(manifest) if message in fault] != [], faults(manifest)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def test_the_manifests_define_three_jobs_a_cluster_and_a_service() -> None:
    kinds = sorted((each["kind"], each["metadata"].get("labels", {}).get("run")) for each in MANIFESTS.values() if cluster_of(each))
    assert kinds == [("RayCluster", "cluster"), ("RayJob", "score"), ("RayJob", "train"), ("RayJob", "tune"), ("RayService", None)]


@pytest.mark.parametrize("name", CLUSTERS)
def test_versions_equal_those_of_the_code(name: str) -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={CLUSTERS[name]['rayVersion']}\n" in constraints
    images = {container["image"] for _, template in templates(CLUSTERS[name]) for container in template["spec"]["containers"]}
    assert {image.rpartition(":")[2] for image in images} <= {f"{han.__version__}-cpu", f"{han.__version__}-gpu"}
    assert len(images) == 1


@pytest.mark.parametrize("name", JOBS)
def test_the_command_of_a_job_exists(name: str) -> None:
    for command in JOBS[name].split("&&"):
        python, flag, module, *arguments = shlex.split(command)
        assert (python, flag) == ("python", "-m")
        kind = getattr(importlib.import_module(module), module.rpartition(".")[2].capitalize())
        parsed = cli.parse(kind, arguments)
        assert isinstance(parsed, kind)
        paths = [value for value in arguments if "shared" in value]
        assert paths
        assert all(value.startswith("/shared/") for value in paths)


def test_the_smallest_cluster_has_the_cpus_of_the_training_job() -> None:
    workers = int(re.search(r"num-workers (\d+)", JOBS[JOB])[1])
    (group,) = CLUSTERS[JOB]["workerGroupSpecs"]
    assert group["minReplicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) >= workers


def test_the_service_has_the_settings_of_serve_config_yaml() -> None:
    ours = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))
    theirs = yaml.safe_load(MANIFESTS[SERVICE]["spec"]["serveConfigV2"])
    # the deliberate differences: the address, the API keys and the numbers of replicas
    ours |= {"proxy_location": "EveryNode"}
    ours["http_options"]["host"] = "0.0.0.0"  # noqa: S104 - API keys are required
    (application,) = ours["applications"]
    application["args"]["api_keys_file"] = "/etc/han/keys"
    ingress, model, _ = application["deployments"]
    ingress |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}
    model["autoscaling_config"] |= {"min_replicas": 2, "initial_replicas": 2, "max_replicas": 6}
    assert theirs == ours


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_answers_of_the_service_pass_in_replies(kind: str) -> None:
    groups = {"head": CLUSTERS[SERVICE]["headGroupSpec"], "worker": CLUSTERS[SERVICE]["workerGroupSpecs"][0]}
    environment = {each["name"]: each["value"] for each in groups[kind]["template"]["spec"]["containers"][0]["env"]}
    assert LARGE_REPLIES.items() <= environment.items()


def test_the_api_keys_are_mounted_where_the_service_reads_them() -> None:
    for _, template in templates(CLUSTERS[SERVICE]):
        (container,) = template["spec"]["containers"]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
        assert (mount["mountPath"], mount["readOnly"]) == ("/etc/han", True)
    assert "--from-file=keys=" in DOCS


def test_policies_and_budgets_select_labels_of_pods() -> None:
    labels = {template["metadata"]["labels"]["han"] for cluster in CLUSTERS.values() for _, template in templates(cluster)}
    named = {
        (each["spec"].get("podSelector") or each["spec"].get("selector"))["matchLabels"]["han"]
        for each in MANIFESTS.values()
        if each["kind"] in ("NetworkPolicy", "PodDisruptionBudget")
    }
    assert labels == named == {"batch", "serve"}


def test_the_docs_have_a_command_for_every_secret() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml"))
    used = set(re.findall(r"secretName: ([\w-]+)", text)) | set(re.findall(r"secretKeyRef: {name: ([\w-]+)", text))
    assert used == SECRETS == set(re.findall(r"create secret generic ([\w-]+)", DOCS))


def test_no_manifest_holds_a_secret() -> None:
    assert [name for name, each in MANIFESTS.items() if each["kind"] == "Secret"] == []
    assert "stringData" not in "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml"))
