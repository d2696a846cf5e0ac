from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.studies import trained

from isoflop.planning.plan import Plan
from isoflop.runs.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread as a worker does: small models are faster, and sums repeat."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, RunDirectory]:
    """Train an undisturbed run; return its root, plan and directory."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # this fixture is set up before `one_thread`
    study = trained(tmp_path_factory.mktemp("whole"))
    torch.set_num_threads(before)
    return study
