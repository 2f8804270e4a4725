"""Cluster files for `ray up`, the upload of a job, and the cluster on one machine, all without starting Ray."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import local
from han.types import UserError

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "deploy").glob("cluster.*.yaml")), ROOT / "cluster.yaml"]
SECRET = re.compile(r"(?i)(?:secret|password|access_key\w*|api_key|token)\s*[:=]\s*\w|AKIA[0-9A-Z]{16}|-----BEGIN|[0-9a-f]{32}")


def read(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """Validate a configuration as `ray up` does before it calls a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_cluster_files_exist_for_aws_google_cloud_and_own_machines() -> None:
    assert [(file.name, read(file)["provider"]["type"]) for file in FILES] == [
        ("cluster.gcp.yaml", "gcp"),
        ("cluster.local.yaml", "local"),
        ("cluster.yaml", "aws"),
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_ray_accepts_every_cluster_file(file: Path) -> None:
    assert validate(read(file))["cluster_name"] == "han"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
@pytest.mark.parametrize("typo", ["idle_timeout_minuts", "setup_comands"])
def test_a_typo_in_a_cluster_file_is_rejected(file: Path, typo: str) -> None:
    import jsonschema

    with pytest.raises(jsonschema.ValidationError, match=typo):
        validate(read(file) | {typo: 1})


def test_an_undefined_head_type_is_rejected() -> None:
    with pytest.raises(ValueError, match="head_node_type"):
        validate(read(ROOT / "cluster.yaml") | {"head_node_type": "haed"})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_node_requires_the_token_and_opens_no_needless_port(file: Path) -> None:
    config = read(file)
    starts = [command for key in ("head", "worker") for command in config[f"{key}_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command and f"RAY_START_HOOK={local.HOOK}" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["idle_timeout_minutes"] <= 10
    assert any("-c constraints.txt" in command for command in config["setup_commands"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_cluster_file_holds_a_secret(file: Path) -> None:
    assert SECRET.findall(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/cluster.gcp.yaml"])
def test_spot_machines_come_before_equal_machines_at_the_full_price(name: str) -> None:
    types = read(ROOT / name)["available_node_types"]
    assert list(types) == ["head", "gpu_spot", "gpu_on_demand"]
    machines = [types[kind]["node_config"] for kind in ("gpu_spot", "gpu_on_demand")]
    assert machines[0].get("InstanceType", machines[0].get("machineType")) == machines[1].get(
        "InstanceType", machines[1].get("machineType")
    )
    assert "spot" in str(machines[0]).lower()
    assert "spot" not in str(machines[1]).lower()


def test_up_refuses_a_file_with_set_me(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "cluster.yaml", ".venv/.installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes() if name != ".venv/.installed" else b"")
    done = subprocess.run(["make", "up"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 2
    assert "fill in what is marked SET-ME" in done.stderr
    assert "IamInstanceProfile: &role {Name: SET-ME}" in done.stdout
    assert not (tmp_path / ".ray").exists()


def test_a_job_uploads_at_most_a_megabyte_and_a_half_of_code(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    (checkout / "out").mkdir()
    (checkout / "out" / "weights").write_bytes(bytes(5_000_000))
    (checkout / "reviews.csv").write_bytes(bytes(5_000_000))
    create_package(str(checkout), tmp_path / "package.zip", include_gitignore=True)
    names = set(zipfile.ZipFile(tmp_path / "package.zip").namelist())
    assert {"han/train/trainer.py", "jobs/train.py", "serve/app.py", "han/data/samples/reviews.jsonl"} <= names
    assert (tmp_path / "package.zip").stat().st_size < 1_500_000


def test_the_shipped_model_is_found_in_the_installed_package(tmp_path: Path) -> None:
    """A submitted job has a copy of the code without the model."""
    shutil.copytree(ROOT / "han", tmp_path / "han", ignore=shutil.ignore_patterns("pretrained", "__pycache__"))
    code = "from han.model import artifact; print(artifact.__file__, artifact.find('imdb'))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "han" / "model" / "artifact.py"), str(ROOT / "han" / "pretrained" / "imdb")]


def test_no_token_is_written_to_a_folder_that_others_may_enter(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    with pytest.raises(UserError, match="open to other users"):
        local.start(folder, num_nodes=1, config=local.NodeConfig())
    assert list(folder.iterdir()) == []


def test_a_second_cluster_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir(mode=0o700)
    (folder / "cluster.json").write_text("{}")
    with pytest.raises(UserError, match="make cluster-down"):
        local.start(folder, num_nodes=1, config=local.NodeConfig())


def test_a_process_belongs_to_a_node_only_by_its_mark(tmp_path: Path) -> None:
    node = local.Node(name="node1", ip="127.0.0.3", mark="node1-of-this-test", pid=os.getpid())
    assert local.processes(node) == [], "the recorded id belongs to another process"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, local.MARK: node.mark}) as process:
        assert [each.pid for each in local.processes(node)] == [process.pid]
        local.kill_node(node)
        process.wait(10)
    assert local.processes(node) == []


def test_free_ports_lie_between_the_ranges_of_ray_workers_and_of_clients() -> None:
    ports = local.free_ports(20)
    assert len(set(ports)) == 20
    assert min(ports) >= 20_000
    assert max(ports) < 32_768
