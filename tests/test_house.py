"""The rules of the house: what may import what, what is never used, and that importing does nothing."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HAN = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted((ROOT / "han").rglob("*.py"))
}
SOURCES = sorted(path for folder in ("deploy", "han", "jobs", "serve") for path in (ROOT / folder).rglob("*.py"))

# A module imports only from lower floors; `types` is the ground that all of them stand on.
FLOORS = {
    "han": 0,
    "types": 0,
    "config": 0,
    "samples": 0,
    "text": 1,
    "vocab": 1,
    "ragged": 1,
    "gru": 1,
    "metrics": 1,
    "card": 1,
    "track": 1,
    "compare": 2,
    "files": 1,
    "promises": 1,
    "repeats": 1,
    "space": 1,
    "render": 1,
    "charts": 1,
    "encode": 2,
    "published": 2,
    "storage": 2,
    "failpoint": 3,
    "attempts": 3,
    "vectors": 2,
    "model": 2,
    "sweep_trials": 2,
    "sweep_charts": 3,
    "sweep_report": 4,
    "download": 2,
    "tables": 2,
    "jsonl": 2,
    "imdb": 2,
    "texts": 2,
    "sources": 3,
    "artifact": 3,
    "learn": 3,
    "score": 4,
    "models": 4,
    "sweep": 4,
    "ray_start": 1,
    "doctor": 1,
    "explain": 5,
    "publish": 5,
    "verify": 5,
    "ray_data": 5,
    "ray_metrics": 5,
    "ray_prepare": 6,
    "ray_pool": 6,
    "ray_train": 6,
    "ray_score": 7,
    "ray_evaluate": 7,
    "ray_tune": 7,
    "ray_doctor": 7,
    "__main__": 8,
}
TOKENISING = ("han.types", "han.text", "han.vocab", "han.sources", "han.encode")

PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {"torch.load", "yaml.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"}
# in brackets, so that this file does not find itself
OF_THIS_MACHINE = re.compile(r"(?<![\w.])/(?:[w]ork|[r]oot|[o]pt|[f]arm)/")
PACKAGE_REGISTRY = re.compile(r"[p]ypi\.org|[p]ythonhosted\.org|[d]ownload\.pytorch\.org|[c]onda\.anaconda\.org")


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in the file; `from han import text` is han.text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import hides the floor it reaches"
            assert node.module
            if node.module == "han":
                yield from (f"han.{alias.name}" for alias in node.names)
            else:
                yield node.module


def floor_name(module: str) -> str:
    """han.text is text; han.samples.planted is samples, since a folder stands on one floor; han itself is han."""
    return [*module.split("."), "han"][1]


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Path and text of every file under version control that is text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing is under version control")
    for name in listed.stdout.split("\0")[:-1]:
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in content:
            yield name, content.decode("utf-8")


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(folder), "PATH": "", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def test_every_module_of_the_library_has_a_floor() -> None:
    assert {floor_name(module) for module in HAN} <= set(FLOORS)


@pytest.mark.parametrize("module", HAN)
def test_imports_go_only_down(module: str) -> None:
    own = floor_name(module)
    used = {floor_name(name) for name in imports(HAN[module]) if name.startswith("han.")} - {own, "types"}
    assert {name for name in used if FLOORS[name] >= FLOORS[own]} == set()


def test_the_library_does_not_know_its_jobs_and_services() -> None:
    assert {name: packages(path) & {"jobs", "serve"} for name, path in HAN.items() if packages(path) & {"jobs", "serve"}} == {}


def test_ray_is_imported_only_by_the_ray_modules() -> None:
    assert [name for name, path in HAN.items() if "ray" in packages(path) and not name.startswith("han.ray_")] == []


def test_torchtext_is_imported_only_by_vectors() -> None:
    assert [path.name for path in SOURCES if "torchtext" in packages(path) and path != HAN["han.vectors"]] == []


def test_a_tokenising_worker_never_loads_torch(tmp_path: Path) -> None:
    finished = run(f"import sys, {', '.join(TOKENISING)}; print('torch' in sys.modules, 'ray' in sys.modules)", tmp_path)
    assert (finished.stdout, finished.stderr) == ("False False\n", "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not packages(path) & PICKLES
    assert not {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & PICKLING_CALLS
    assert not {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)} & {"allow_pickle", "weights_only"}


@pytest.mark.parametrize("secret", [OF_THIS_MACHINE, PACKAGE_REGISTRY], ids=["a path of one machine", "a package registry"])
def test_no_file_under_version_control_names(secret: re.Pattern[str]) -> None:
    assert [(name, found[0]) for name, text in tracked_texts() if (found := secret.search(text))] == []


def test_importing_the_library_writes_no_file_and_sets_up_no_logging(tmp_path: Path) -> None:
    finished = run(
        f"import logging, {', '.join(HAN)}\n"
        "loggers = [logging.root, *(logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith('han'))]\n"
        "print([handler for logger in loggers for handler in logger.handlers])",
        tmp_path,
    )
    assert (finished.stdout, finished.stderr) == ("[]\n", "")
    assert list(tmp_path.rglob("*")) == []
