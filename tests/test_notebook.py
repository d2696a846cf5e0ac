"""The notebooks run from top to bottom on the committed study, with and without published data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ANALYSIS = Path(__file__).parents[1] / "analysis"
REFERENCE = Path(os.environ.get("ISOFLOP_REFERENCE_DATA", ANALYSIS.parents[1] / "shared" / "data"))
NOTEBOOKS = sorted(path.name for path in ANALYSIS.glob("*.ipynb"))


def read(name: str) -> Any:
    return nbformat.read(ANALYSIS / name, as_version=4)


def execute(name: str) -> list[Any]:
    """Execute a notebook again; return the outputs of all cells."""
    notebook = read(name)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ANALYSIS)}}).execute()
    return outputs(notebook)


def outputs(notebook: Any) -> list[Any]:
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def html_text(results: list[Any]) -> str:
    return "\n".join(output.get("data", {}).get("text/html", "") for output in results)


def count_images(results: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in results)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_committed_outputs_are_complete_and_without_errors(name: str) -> None:
    notebook = read(name)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    results = outputs(notebook)
    assert count_images(results) >= 2
    assert not [output for output in results if output.output_type in ("error", "stream")]


@pytest.mark.slow
def test_our_study_runs_and_shows_figures() -> None:
    results = execute("isoflop.ipynb")
    assert not [output for output in results if output.output_type in ("error", "stream")]
    assert count_images(results) >= 5


@pytest.mark.slow
def test_published_studies_without_their_data_show_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ISOFLOP_REFERENCE_DATA", str(tmp_path))
    results = execute("published.ipynb")
    assert not [output for output in results if output.output_type in ("error", "stream")]
    assert count_images(results) == count_images(outputs(read("published.ipynb")))
    assert "our study stands in" in results[0]["data"]["text/plain"]
    assert "Besiroglu" not in html_text(results)


@pytest.mark.slow
@pytest.mark.skipif(
    not (REFERENCE / "chinchilla_epoch.csv").exists(), reason="the published data are not here"
)
def test_published_studies_have_the_published_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_REFERENCE_DATA", str(REFERENCE.resolve()))
    results = execute("published.ipynb")
    assert not [output for output in results if output.output_type in ("error", "stream")]
    for number in (
        *("0.34731", "0.36717", "0.51390", "0.001018274018"),
        *("481.93", "2085.00", "1.81684", "0.34780", "0.36584"),
        *("12845.61", "0.45305", "0.56464", "0.001826010523", "0.004121009"),
        *("17.9", "92.8", "0.536779", "0.299355", "0.5142816193"),
    ):
        assert number in html_text(results), number
