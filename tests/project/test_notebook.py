"""The notebook runs from the first cell to the last and defines nothing."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "explore.ipynb"


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jupyter's own event loop
def test_every_cell_runs_and_both_reviews_are_drawn() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=100, kernel_name="python3").execute()
    drawn = [output for cell in book.cells for output in cell.get("outputs", []) if "text/html" in output.get("data", {})]
    assert len(drawn) == 2
    assert all("han-" in output["data"]["text/html"] for output in drawn)


def test_the_notebook_defines_nothing() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.If) for node in ast.walk(ast.parse(cell.source)))
