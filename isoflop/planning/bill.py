"""The bill of a study on a cluster: GPUs, hours, cost, disk and finish time before submission."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.config.profile import ROOT_NOT_GIVEN, Profile
from isoflop.planning.calibration import Calibration
from isoflop.planning.job_arrays import UNLIMITED
from isoflop.planning.queue_simulation import Order, QueueSchedule
from isoflop.planning.sizing import Size
from isoflop.text import bytes_text


@dataclass(frozen=True)
class Total:
    """Totals of a study: hours from its submission to its end, and GPU-hours."""

    finish_hours: float
    gpu_hours: float


@dataclass(frozen=True)
class Bill:
    """Resources of a plan on a cluster; sequences are in the order of the plan's runs.

    Attributes:
        profile: the cluster.
        order: jobs that start first.
        sizes: GPUs, hours and memory of each run; hours without interruptions.
        hours: hours of each run with its checkpoints and the expected interruptions.
        starts: number of starts of each run under the time limit of a job (`slurm.time`).
        schedule: start and end of each run.
        alternatives: totals on half and on twice the GPUs, by their number; runs are sized for each
            number.
        disk_bytes: largest size of checkpoints and final weights at one moment of the schedule.
        weights_bytes: size of the final weights, which stay.
        calibration: measured speeds; None for a bill from the prior.
        interruptions_per_day: preemptions and failures of a job that the hours include.
        precision: `train.precision` of the study.
        max_array_size: largest number of tasks of an array.
    """

    profile: Profile
    order: Order
    sizes: tuple[Size, ...]
    hours: tuple[float, ...]
    starts: tuple[int, ...]
    schedule: QueueSchedule
    alternatives: dict[int, Total]
    disk_bytes: int
    weights_bytes: int
    calibration: Calibration | None = None
    interruptions_per_day: float = 0.0
    precision: str = "auto"
    max_array_size: int = UNLIMITED

    @property
    def source(self) -> str:
        """Source of the speeds, e.g. `measured 2026-11-25, extrapolated for 3 runs`."""
        if self.calibration is None:
            return "prior"
        extrapolated = sum(size.source == "extrapolated" for size in self.sizes)
        suffix = f", extrapolated for {extrapolated} runs" if extrapolated else ""
        return f"measured {self.calibration.day}{suffix}"

    @property
    def gpu_hours(self) -> float:
        """Return the GPU-hours that all runs hold, interruptions included."""
        return held_gpu_hours(self.sizes, self.hours)

    @property
    def cost(self) -> float | None:
        """Return the cost in the profile's currency; None without a price per GPU-hour."""
        price = self.profile.price_per_gpu_hour
        return None if price is None else price * self.gpu_hours

    @property
    def finish_hours(self) -> float:
        """Return the hours from submission to the end of the last run."""
        return self.schedule.finish_hours

    def warnings(self) -> tuple[str, ...]:
        """Return what to fix before submission, one line each."""
        messages = []
        root, quota = _existing_folder(self.profile.root), self.profile.disk_gb
        need = f"checkpoints and weights will take up to {bytes_text(self.disk_bytes)} at a time"
        if quota is not None and self.disk_bytes > quota * 1e9:
            messages.append(f"{need}, disk_gb allows {bytes_text(quota * 1e9)}")
        if root and self.disk_bytes > (free := shutil.disk_usage(root).free):
            messages.append(f"{need}, {root} has {bytes_text(free)} free")
        if self.precision == "fp32" and self.profile.gpu is not None and self.calibration is None:
            messages.append(
                "the hours are estimates for bf16, but train.precision is fp32; "
                "run `isoflop calibrate` to measure them"
            )
        return tuple(messages)


def held_gpu_hours(sizes: Sequence[Size], hours: Iterable[float]) -> float:
    """Return the GPU-hours that runs of some sizes hold in their hours."""
    return sum(size.held_gpus * duration for size, duration in zip(sizes, hours, strict=True))


def _existing_folder(root: str | None) -> Path | None:
    """Return the folder whose disk a root will use; None if this machine does not have it.

    A machine outside the cluster does not have the cluster's folder.
    """
    if root == ROOT_NOT_GIVEN:
        return None
    folder = Path(root or ".").expanduser().absolute()
    if not folder.is_dir() and folder.parent != Path(folder.anchor):
        folder = folder.parent  # the first submission makes the root
    return folder if folder.is_dir() else None
