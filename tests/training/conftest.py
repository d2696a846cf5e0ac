from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.tiny_studies import SHORT, trained

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
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, RunDirectory]:
    """Train an undisturbed run of 71 steps; return its root, plan and directory."""
    return _trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, RunDirectory]:
    """Train an undisturbed run of 22 steps; return its root, plan and directory."""
    return _trained(tmp_path_factory.mktemp("short"), *SHORT)


def _trained(folder: Path, *overrides: str) -> tuple[Path, Plan, RunDirectory]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # fixtures of the session are set up before `one_thread`
    study = trained(folder, *overrides)
    torch.set_num_threads(before)
    return study
