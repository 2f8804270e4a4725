"""docs/numbers.md is rendered from the files of figures."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_numbers_is_rendered_from_its_files() -> None:
    render = runpy.run_path(str(ROOT / "benchmarks" / "numbers.py"))["render"]
    assert (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8") == render(ROOT / "docs" / "numbers")
