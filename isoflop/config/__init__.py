"""Sweep files and cluster profiles: their schemas and readers, and the identity of a run."""

from isoflop.config.grid_schema import Point, Replicate, WidthRule
from isoflop.config.identity import data_hash, run_id, run_identity
from isoflop.config.profile import Profile, load_profile
from isoflop.config.schema import Data, Metric, Sweep
from isoflop.config.sweep_file import load_sweep, shipped_sweeps
from isoflop.config.training_schema import Optimizer, Schedule, Train

__all__ = [
    "Data",
    "Metric",
    "Optimizer",
    "Point",
    "Profile",
    "Replicate",
    "Schedule",
    "Sweep",
    "Train",
    "WidthRule",
    "data_hash",
    "load_profile",
    "load_sweep",
    "run_id",
    "run_identity",
    "shipped_sweeps",
]
