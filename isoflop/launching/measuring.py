"""The module name in pickles of calibration jobs, for one release (`MeasureJob.__module__`)."""

from __future__ import annotations

from isoflop.launching.worker.calibration_job import MeasureJob

__all__ = ["MeasureJob"]
