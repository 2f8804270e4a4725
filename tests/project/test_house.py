"""Rules of the repository: imports between packages, forbidden modules, and imports without side effects."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAN = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted((ROOT / "han").rglob("*.py"))
}
LINTER = str(Path(sys.executable).with_name("lint-imports"))
SOURCES = sorted(path for folder in ("deploy", "han", "jobs", "serve") for path in (ROOT / folder).rglob("*.py"))

PACKAGES_AT_MOST = FILES_AT_MOST = 9  # what a reader keeps in mind
TOKENISING = ("han.types", "han.text.tokenise", "han.text.vocabulary", "han.data.sources", "han.text.encode")

PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {"torch.load", "yaml.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"}
# in brackets, so that this file does not find itself
OF_THIS_MACHINE = re.compile(r"(?<![\w.])/(?:[w]ork|[r]oot|[o]pt|[f]arm)/")
PACKAGE_REGISTRY = re.compile(r"[p]ypi\.org|[p]ythonhosted\.org|[d]ownload\.pytorch\.org|[c]onda\.anaconda\.org")


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: relative imports are not used here"
            assert node.module
            yield node.module


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


def test_the_library_has_at_most_nine_packages_of_at_most_nine_files() -> None:
    modules = [path for path in HAN.values() if path.name != "__init__.py" and path.parent != ROOT / "han"]
    sizes = Counter(path.parent.relative_to(ROOT / "han").parts[0] for path in modules)
    assert len(sizes) <= PACKAGES_AT_MOST
    assert {name: size for name, size in sizes.items() if size > FILES_AT_MOST} == {"data": FILES_AT_MOST + 1}
    assert [path.name for path in modules if path.parent.name == "samples"] == ["planted.py"]  # the exception that docs/design.md states


def test_the_tree_of_the_design_document_equals_the_tree_on_disk() -> None:
    document = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = document.partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    named, folders = set(), [""]
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        words = line.split()
        if words[0].endswith("/"):
            folders = [*folders[: depth + 1], f"{folders[depth]}{words[0]}"]
            words = words[1:]
        named |= {f"{folders[-1] if word != words[0] else folders[depth]}{word}" for word in words if word.endswith(".py")}
    on_disk = {str(path.relative_to(ROOT)) for folder in ("han", "jobs", "serve") for path in (ROOT / folder).rglob("*.py")}
    assert named == {name for name in on_disk if not name.endswith("__init__.py")}


def test_imports_go_only_down() -> None:
    """pyproject.toml has the contracts: which package may import which, where Ray and torch may be, no cycle."""
    done = subprocess.run([LINTER, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ray_is_forbidden_in_every_module_that_the_design_document_does_not_list() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each.get("forbidden_modules") == ["ray"]]
    without_ray = contract["source_modules"]
    document = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    listed = document.partition("only where work is distributed")[2].partition(")")[0]
    with_ray = {f"han.{name.replace('/', '.')}" for name in re.findall("`([^`]+)`", listed)}
    modules = {name for name, path in HAN.items() if path.name not in ("__init__.py", "__main__.py")}
    free = {name for name in modules if any(f"{name}.".startswith(f"{source}.") for source in without_ray)}
    assert len(with_ray) > 10
    assert modules - free == with_ray
    assert [source for source in without_ray if source not in HAN] == []


def test_the_picture_of_the_design_document_names_every_package_and_shared_module() -> None:
    document = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    picture = document.partition("## What may import what")[2].split("```")[1]
    names = {name.split(".")[1] for name in HAN if "." in name} - {"__main__"}
    assert names - set(re.findall(r"\w+", picture)) == set()


def test_every_package_has_the_names_that_it_exports() -> None:
    for module, path in HAN.items():
        if path.name == "__init__.py":
            package = importlib.import_module(module)
            assert all(getattr(package, name) is not None for name in getattr(package, "__all__", []))


def test_a_worker_that_tokenises_does_not_load_torch(tmp_path: Path) -> None:
    finished = run(f"import sys, {', '.join(TOKENISING)}; print('torch' in sys.modules, 'ray' in sys.modules)", tmp_path)
    assert (finished.stdout, finished.stderr) == ("False False\n", "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not packages(path) & PICKLES
    assert not {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & PICKLING_CALLS
    assert not {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)} & {"allow_pickle", "weights_only"}


@pytest.mark.parametrize("secret", [OF_THIS_MACHINE, PACKAGE_REGISTRY], ids=["a path of one machine", "a package registry"])
def test_no_file_names_a_path_of_one_machine_or_a_package_registry(secret: re.Pattern[str]) -> None:
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
