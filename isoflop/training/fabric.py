"""Lightning Fabric without its import of torchmetrics.

Fabric 2.6.6 imports torchmetrics for a version number that only its spike detection needs.
Torchmetrics imports SciPy's signal processing and, where it is installed, transformers: together
more than half of the CPU time of importing Fabric, at every start of every process of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Make imports of a package fail as if it were not installed, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


# `lightning.fabric` is the same code, but needs all of Lightning and with it torchmetrics.
with _without("torchmetrics"):
    from lightning_fabric import Fabric
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

__all__ = ["Fabric", "LightningEnvironment", "TensorBoardLogger"]
