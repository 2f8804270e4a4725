"""The page of figures is rendered from the figures."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_says_what_the_files_of_figures_say() -> None:
    render = runpy.run_path(str(ROOT / "benchmarks" / "numbers.py"))["render"]
    assert (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8") == render(ROOT / "docs" / "numbers")
