"""Wall time of a run on a cluster: training, checkpoints, interruptions, jobs of limited time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from isoflop.config.profile import Profile
from isoflop.config.sbatch import parse_time_limit
from isoflop.config.training_schema import Train
from isoflop.errors import ConfigError
from isoflop.planning.calibration import Calibration
from isoflop.planning.run_spec import RunSpec
from isoflop.shapes import ModelShape

RESTART_HOURS = 0.25
"""Hours from an interruption to the next step: queue, start, read of the checkpoint. A prior."""

CHECKPOINT_WRITE_BYTES_PER_S = 0.5e9
"""Least speed at which a shared file system takes a checkpoint. A prior."""

CHECKPOINT_TO_WEIGHT_BYTES = 3
"""Size of a checkpoint over that of the weights: the weights and the optimizer's two moments."""


@dataclass(frozen=True)
class WallTime:
    """Hours of a run from its first start to its end, and the number of its starts."""

    hours: float
    starts: int


class WallTimeModel:
    """Model of the wall time of a study's runs on a cluster."""

    def __init__(
        self,
        train: Train,
        interruptions_per_day: float,
        profile: Profile,
        calibration: Calibration | None = None,
    ) -> None:
        self.calibration = calibration
        self.checkpoint_minutes = train.checkpoint_minutes
        self.saves = train.trainer == "builtin"  # an external trainer saves at times of its choice
        self.interruptions_per_hour = interruptions_per_day / 24
        self.limit_hours, self.limit_text = max_job_hours(profile), profile.slurm.get("time")
        self._known: dict[tuple[ModelShape, int, float], WallTime] = {}

    def predict(self, run: RunSpec, training_hours: float) -> WallTime:
        """Return a run's wall time in jobs of limited hours.

        Each job ends with a checkpoint, and each further start costs `RESTART_HOURS`.

        Raises:
            ConfigError: jobs too short to write a checkpoint.
        """
        key = run.shape, run.steps, training_hours  # the same for all seeds
        if key not in self._known:
            self._known[key] = self._predict(run, training_hours)
        return self._known[key]

    def _predict(self, run: RunSpec, training_hours: float) -> WallTime:
        saves, save = 0, self._save_seconds(run) / 3600
        if self.saves:  # after the last step too, and at most one a step; training waits meanwhile
            saves = 1 + math.floor(
                min(run.steps - 1, 60 * training_hours / self.checkpoint_minutes)
            )
        lost = min(self.checkpoint_minutes / 60, training_hours) / 2
        hours = (1 + self.interruptions_per_hour * (lost + RESTART_HOURS)) * (
            training_hours + saves * save
        )
        if math.isinf(self.limit_hours):
            return WallTime(hours, 1)
        lead = save_lead_s(run.shape.checkpoint_bytes, self.limit_hours)
        usable = self.limit_hours - lead / 3600
        if self.saves and save >= usable and hours > usable:
            raise ConfigError(
                f"slurm.time: {self.limit_text} is too short for a checkpoint of {run.run_id}, "
                f"which takes about {3600 * save:,.0f} s to write; give jobs more time"
            )
        starts = max(1, math.ceil(hours / usable))
        return WallTime(hours + (starts - 1) * RESTART_HOURS, starts)

    def _save_seconds(self, run: RunSpec) -> float:
        measured = self.calibration and self.calibration.save_seconds(run.shape)
        return measured or (
            run.shape.weight_bytes() * CHECKPOINT_TO_WEIGHT_BYTES / CHECKPOINT_WRITE_BYTES_PER_S
        )


def max_job_hours(profile: Profile) -> float:
    """Return the longest time of one job by `slurm.time`; infinite if the profile has none."""
    text = profile.slurm.get("time")
    return math.inf if text is None else parse_time_limit(text)


def save_lead_s(checkpoint_bytes: int, limit_hours: float = math.inf) -> float:
    """Return how many seconds before its time limit a job is signalled to save.

    They suffice to write a checkpoint of `checkpoint_bytes`, unless the limit is short.
    """
    lead = max(90.0, 60 + checkpoint_bytes / CHECKPOINT_WRITE_BYTES_PER_S)
    return lead if math.isinf(limit_hours) else max(10.0, min(lead, 360 * limit_hours))
