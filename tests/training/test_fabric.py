"""Fabric is imported without the packages that it needs only for their version."""

from __future__ import annotations

import subprocess
import sys

import pytest

NAMES = """
import sys
import isoflop.training.loop
print(*(name for name in ("torchmetrics", "scipy.signal", "transformers") if name in sys.modules))
import torchmetrics
print(torchmetrics.MeanMetric.__name__)
"""


def test_a_process_of_the_trainer_imports_no_torchmetrics_and_can_do_so_later() -> None:
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "MeanMetric"]


@pytest.mark.parametrize("first", ["torchmetrics", "lightning.pytorch"])
def test_packages_that_a_user_has_imported_before_stay(first: str) -> None:
    code = f"import sys, {first}, isoflop.training.fabric; print(sys.modules['torchmetrics'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("<module")
