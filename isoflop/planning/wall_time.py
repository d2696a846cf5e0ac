"""How long a run takes on a cluster beside its training: checkpoints, interruptions, and jobs of limited time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from isoflop.config.profile import Profile
from isoflop.config.sbatch import hours_of
from isoflop.config.schema import Train
from isoflop.errors import ConfigError
from isoflop.planning.calibration import Calibration
from isoflop.planning.run_spec import RunSpec
from isoflop.shapes import ModelShape

RESTART_HOURS = 0.25
"""From an interruption to the next step: the queue, the start, and reading the checkpoint. A prior."""

SAVE_BYTES_PER_S = 0.5e9
"""At least what a shared file system takes of a checkpoint; a prior."""

SAVED = 3
"""Of the weights' bytes, what a checkpoint has: the weights and the optimizer's two moments."""


@dataclass(frozen=True)
class Time:
    """Hours of a run from its first start to its end, and how often it is started."""

    hours: float
    starts: int


class Clock:
    """How long runs take on a cluster beside their training."""

    def __init__(
        self,
        train: Train,
        interruptions_per_day: float,
        profile: Profile,
        calibration: Calibration | None = None,
    ) -> None:
        self.calibration = calibration
        self.minutes = train.checkpoint_minutes
        self.saves = train.trainer == "builtin"  # another program saves as it likes
        self.per_hour = interruptions_per_day / 24
        self.limit, self.limit_text = time_limit_hours(profile), profile.slurm.get("time")
        self._known: dict[tuple[ModelShape, int, float], Time] = {}

    def time(self, run: RunSpec, trained: float) -> Time:
        """A run's time in jobs of limited hours, each of which ends with a checkpoint; each further start costs too.

        Raises:
            ConfigError: jobs too short to write a checkpoint.
        """
        key = run.shape, run.steps, trained  # which seeds share
        if key not in self._known:
            self._known[key] = self._time(run, trained)
        return self._known[key]

    def _time(self, run: RunSpec, trained: float) -> Time:
        # One after the last step too, and never more than one a step; training waits while it is written.
        saves = 1 + math.floor(min(run.steps - 1, 60 * trained / self.minutes)) if self.saves else 0
        save = self._save_seconds(run) / 3600
        lost = min(self.minutes / 60, trained) / 2
        hours = (1 + self.per_hour * (lost + RESTART_HOURS)) * (trained + saves * save)
        if math.isinf(self.limit):
            return Time(hours, 1)
        usable = self.limit - save_lead_s(run.shape.checkpoint_bytes, self.limit) / 3600
        if self.saves and save >= usable and hours > usable:
            raise ConfigError(
                f"slurm.time: {self.limit_text} is too short for a checkpoint of {run.run_id}, which takes about "
                f"{3600 * save:,.0f} s to write; give jobs more time"
            )
        starts = max(1, math.ceil(hours / usable))
        return Time(hours + (starts - 1) * RESTART_HOURS, starts)

    def _save_seconds(self, run: RunSpec) -> float:
        measured = self.calibration and self.calibration.save_seconds(run.shape)
        return measured or run.shape.weight_bytes() * SAVED / SAVE_BYTES_PER_S


def time_limit_hours(profile: Profile) -> float:
    """Longest time of one job by the profile's `slurm.time`; infinite where it names none."""
    text = profile.slurm.get("time")
    return math.inf if text is None else hours_of(text)


def save_lead_s(checkpoint_bytes: int, limit_hours: float = math.inf) -> float:
    """How long before its time limit a job is told to save: long enough to write its checkpoint."""
    lead = max(90.0, 60 + checkpoint_bytes / SAVE_BYTES_PER_S)
    return lead if math.isinf(limit_hours) else max(10.0, min(lead, 360 * limit_hours))
