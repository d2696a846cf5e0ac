"""The notebooks run from top to bottom on what is kept beside them, with other people's data and without."""

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


def executed(name: str) -> list[Any]:
    """The outputs of all cells, run anew."""
    notebook = read(name)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ANALYSIS)}}).execute()
    return outputs(notebook)


def outputs(notebook: Any) -> list[Any]:
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def text(found: list[Any]) -> str:
    return "\n".join(output.get("data", {}).get("text/html", "") for output in found)


def images(found: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in found)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_kept_was_executed_without_a_fault(name: str) -> None:
    notebook = read(name)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    found = outputs(notebook)
    assert images(found) >= 2
    assert not [output for output in found if output.output_type in ("error", "stream")]


@pytest.mark.slow
def test_our_study_runs_and_shows_figures() -> None:
    found = executed("isoflop.ipynb")
    assert not [output for output in found if output.output_type in ("error", "stream")]
    assert images(found) >= 5


@pytest.mark.slow
def test_published_studies_without_their_data_show_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ISOFLOP_REFERENCE_DATA", str(tmp_path))
    found = executed("published.ipynb")
    assert not [output for output in found if output.output_type in ("error", "stream")]
    assert images(found) == images(outputs(read("published.ipynb")))
    assert "our study stands in" in found[0]["data"]["text/plain"]
    assert "Besiroglu" not in text(found)


@pytest.mark.slow
@pytest.mark.skipif(
    not (REFERENCE / "chinchilla_epoch.csv").exists(), reason="the published data are not here"
)
def test_published_studies_have_the_published_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_REFERENCE_DATA", str(REFERENCE.resolve()))
    found = executed("published.ipynb")
    assert not [output for output in found if output.output_type in ("error", "stream")]
    for number in (
        *("0.34731", "0.36717", "0.51390", "0.001018274018"),
        *("481.93", "2085.00", "1.81684", "0.34780", "0.36584"),
        *("12845.61", "0.45305", "0.56464", "0.001826010523", "0.004121009"),
        *("17.9", "92.8", "0.536779", "0.299355", "0.5142816193"),
    ):
        assert number in text(found), number
