"""Cluster and undisturbed study that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.slurm_bed import Bed, Submitted, submitted
from support.tiny_studies import FREQUENT_CHECKPOINTS, train_here

from isoflop.launching.records.sweep_directory import make_directory


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, bed: Bed) -> Path:
    """Train the same study in this process."""
    study = submitted(bed, tmp_path_factory.mktemp("undisturbed"), FREQUENT_CHECKPOINTS)
    make_directory(study.plan, study.directory.parent)
    for run in study.runs:
        train_here(run, study.directory.parent)
    return study.directory


@pytest.fixture(autouse=True)
def idle_nodes(bed: Bed) -> None:
    """Begin each test without the jobs and the lost nodes of those before it."""
    bed("clear")


@pytest.fixture
def study(bed: Bed, tmp_path: Path) -> Submitted:
    return submitted(bed, tmp_path, FREQUENT_CHECKPOINTS)
