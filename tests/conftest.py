from __future__ import annotations

from pathlib import Path

import pytest
from studies import tiny_study

from isoflop.planning.plan import Plan


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Plan]:
    """A root with a corpus and the untrained run directories of a tiny plan."""
    return tiny_study(tmp_path)
