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
    """As in a worker: small models are faster so, and sums repeat."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, RunDirectory]:
    """A run that nothing disturbed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each test, but this fixture is made before
    study = trained(tmp_path_factory.mktemp("whole"))
    torch.set_num_threads(before)
    return study
