"""The notebook runs from top to bottom on the results that are kept beside it."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ANALYSIS = Path(__file__).parents[1] / "analysis"


@pytest.mark.slow
def test_the_notebook_runs_and_shows_figures() -> None:
    notebook = nbformat.read(ANALYSIS / "isoflop.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ANALYSIS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type in ("error", "stream")]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
