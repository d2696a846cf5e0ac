"""Fabric is imported without the packages that it needs only for their version."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from support.tiny_studies import start

from isoflop.training import fabric

PACKAGES = ("torchmetrics", "scipy.signal", "transformers")


def _write_imported_packages(file: Path) -> None:
    imported = [name for name in PACKAGES if name in sys.modules]
    file.write_text(f"{imported} {find_spec('torchmetrics') is not None}")


@pytest.mark.slow
def test_a_process_of_the_trainer_imports_no_torchmetrics_and_can_do_so_later(
    tmp_path: Path,
) -> None:
    process = start(_write_imported_packages, tmp_path / "packages")
    process.join()
    assert (tmp_path / "packages").read_text() == "[] True"


def test_packages_that_a_user_has_imported_before_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    users = ModuleType("torchmetrics")
    monkeypatch.setitem(sys.modules, "torchmetrics", users)
    with fabric._without("torchmetrics"):
        assert importlib.import_module("torchmetrics") is users
    assert sys.modules["torchmetrics"] is users


@pytest.mark.slow
def test_the_trainer_imports_no_pandas() -> None:
    """Every process of a job imports it; only the first writes tables."""
    code = "import sys, isoflop.training.loop; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
