"""The page of figures is rendered from the figures."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_says_what_the_files_of_figures_say() -> None:
    spec = importlib.util.spec_from_file_location("numbers_page", ROOT / "benchmarks" / "numbers.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8") == page.render(ROOT / "docs" / "numbers")
