"""Build the wheel, install it in an empty environment and score a review there, outside the checkout: `make check-wheel`.

The dependencies are those of this Python. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
REVIEW = "A wonderful film. I loved every minute of it, and the cast was great!"


def main() -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="han-wheel-") as name:
        folder = Path(name)
        wheel = build(folder)
        python = install(wheel, folder / "environment")
        (folder / "elsewhere").mkdir()
        code = "import han; from han.data import imdb; assert imdb.DEVELOPMENT.is_file(); print(han.__file__)"
        where = call([str(python), "-c", code], folder / "elsewhere").strip()
        if not Path(where).is_relative_to(folder):
            sys.exit(f"han was imported from {where}, not from the wheel")
        answer = json.loads(call([str(python.with_name("han")), "predict", REVIEW, "--json"], folder / "elsewhere"))
        if answer["label"] != "positive":
            sys.exit(f"the installed model calls this review {answer['label']}: {REVIEW}")
        size_mb = wheel.stat().st_size / 1e6
    print(f"{wheel.name}, {size_mb:.1f} MB, scores a review outside the checkout: {answer['probability']:.2%} {answer['label']}")
    print(f"built, installed and scored in {time.monotonic() - began:.0f} s")


def build(folder: Path) -> Path:
    """A wheel of the tracked files, in a copy: a build leaves files beside its sources."""
    source = folder / "source"
    listed = call(["git", "ls-files", "-z", "han", "jobs", "serve", "pyproject.toml", "README.md", "LICENSE"], ROOT)
    for name in listed.split("\0")[:-1]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    call([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."], source)
    return next(folder.glob("*.whl"))


def install(wheel: Path, environment: Path) -> Path:
    """Python of a new environment with the wheel. It finds the dependencies here, but not an editable install of the checkout."""
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    call(pip, environment)
    purelib = call([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], environment).strip()
    (Path(purelib) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    return python


def call(command: Sequence[str], folder: Path) -> str:
    """Standard output. A command that fails ends this one."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
