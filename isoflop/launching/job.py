"""The module name in pickles of run jobs, for one release (`RunJob.__module__`)."""

from __future__ import annotations

from isoflop.launching.worker.slurm_job import RunJob

__all__ = ["RunJob"]
