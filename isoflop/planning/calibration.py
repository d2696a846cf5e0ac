"""Measured speed and memory on a cluster, and interpolation between the measurements.

A measurement is of a class: a shape, a batch, and a number of GPUs. Between two classes on the same
number of GPUs, FLOP/s are interpolated over training FLOPs per token, both as logarithms; outside
of them the nearest class counts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.config.identity import canonical_hash
from isoflop.config.profile import Profile
from isoflop.config.schema import Sweep
from isoflop.config.validation import build, require
from isoflop.errors import ConfigError
from isoflop.files import replace_file
from isoflop.planning.gpu_specs import EFFICIENCY_PER_DOUBLING
from isoflop.planning.run_spec import RunSpec
from isoflop.recipes import find_recipe
from isoflop.shapes import ModelShape

CALIBRATIONS_FOLDER = "calibrations"
"""Name of the folder of measurements in the folder of runs."""


@dataclass(frozen=True)
class Measurement:
    """Measured speed and memory of one class of runs.

    Attributes:
        shape: the model.
        gpus: GPUs of a run, on all its nodes; 0 for CPUs.
        batch_size: sequences in a step, of all GPUs together.
        micro_batch: sequences on a GPU at a time.
        checkpointing: True if layers were recomputed in the backward pass.
        tokens_per_second: training tokens per second, of all GPUs together.
        mfu: share of the GPUs' peak; None if the peak is unknown, as on CPUs.
        memory_bytes: peak of one process: on a GPU by CUDA's allocator, on a CPU its resident
            memory.
        measured: time of the measurement, in seconds since 1970.
        device: the machine's name for its GPU or CPU.
        save_seconds: seconds that training waited for a checkpoint; None if not measured.
    """

    shape: ModelShape
    gpus: int
    batch_size: int
    micro_batch: int
    checkpointing: bool
    tokens_per_second: float
    mfu: float | None
    memory_bytes: int
    measured: float
    device: str
    save_seconds: float | None = None

    def __post_init__(self) -> None:
        for key in ("batch_size", "micro_batch", "memory_bytes"):
            require(getattr(self, key) >= 1, key, f"expected 1 or more, got {getattr(self, key)}")
        require(0 <= self.gpus <= 2**20, "gpus", f"expected 0 to 2^20, got {self.gpus}")
        speed, time_s = self.tokens_per_second, self.measured
        require(1e-9 <= speed <= 1e15, "tokens_per_second", f"expected 1e-9 to 1e15, got {speed}")
        require(0 <= time_s <= 1e11, "measured", f"expected seconds since 1970, got {time_s}")
        if self.save_seconds is not None:
            save = self.save_seconds
            require(0 < save <= 1e6, "save_seconds", f"expected more than 0, up to 1e6, got {save}")

    @property
    def flops_per_second(self) -> float:
        """Training FLOP/s (3 x forward) of one GPU, or of the whole run on CPUs."""
        return self.tokens_per_second * self.shape.train_flops_per_token / max(1, self.gpus)

    @property
    def key(self) -> tuple[ModelShape, int, int]:
        """Return shape, GPUs and batch size, which identify the measured class."""
        return self.shape, self.gpus, self.batch_size


@dataclass(frozen=True)
class Calibration:
    """Measurements for the runs of one recipe on one cluster, at least one."""

    measurements: tuple[Measurement, ...]

    @property
    def day(self) -> str:
        """Day of the newest measurement, e.g. 2026-11-25."""
        newest = max(measurement.measured for measurement in self.measurements)
        return time.strftime("%Y-%m-%d", time.gmtime(newest))

    def merge(self, newer: Iterable[Measurement]) -> Calibration:
        """Return these and newer measurements, which replace those of the same classes."""
        by_class = {measurement.key: measurement for measurement in (*self.measurements, *newer)}

        def rank(measurement: Measurement) -> tuple[int, float, int]:
            return measurement.gpus, _log_flops(measurement.shape), measurement.batch_size

        return Calibration(tuple(sorted(by_class.values(), key=rank)))

    def flops_per_second(self, shape: ModelShape, batch_size: int, gpus: int) -> tuple[float, bool]:
        """Return a run's training FLOP/s, and whether they lie within the measurements.

        For a number of GPUs without measurements, they are those of the nearest number, with the
        prior's loss for each doubling.
        """
        value, inside = self.interpolate(
            shape, batch_size, gpus, lambda measurement: measurement.flops_per_second
        )
        measured_gpus = self._on_nearest_gpus(gpus)[0].gpus
        doublings = math.log2(gpus / measured_gpus) if measured_gpus and gpus else 0.0
        return value * max(1, gpus) * EFFICIENCY_PER_DOUBLING**doublings, inside

    def interpolate(
        self, shape: ModelShape, batch_size: int, gpus: int, value: Callable[[Measurement], float]
    ) -> tuple[float, bool]:
        """Return a positive value of a class, and whether it lies within the measurements.

        It is interpolated between measured classes, as logarithms; outside, the nearest counts.
        """
        measurements = self._on_nearest_gpus(gpus)
        points: dict[float, Measurement] = {}
        # Of several batches of a shape, the nearest one stays.
        for measurement in sorted(
            measurements, key=lambda measurement: -_batch_distance(measurement, batch_size, gpus)
        ):
            points[_log_flops(measurement.shape)] = measurement
        xs = sorted(points)
        x = min(max(_log_flops(shape), xs[0]), xs[-1])
        inside = math.isclose(x, _log_flops(shape)) and measurements[0].gpus == gpus
        after = bisect_left(xs, x)
        if xs[after] == x:
            return value(points[x]), inside
        low, high = xs[after - 1], xs[after]
        share = (x - low) / (high - low)
        return value(points[low]) ** (1 - share) * value(points[high]) ** share, inside

    def save_seconds(self, shape: ModelShape) -> float | None:
        """Return the seconds to save a model's checkpoint; None without a measurement.

        They are those of the measured model nearest in size, in proportion to the size.
        """
        size = shape.checkpoint_bytes
        saves = [
            (measurement.shape.checkpoint_bytes, measurement.save_seconds)
            for measurement in self.measurements
            if measurement.save_seconds
        ]
        nearest = min(saves, key=lambda save: abs(math.log(save[0] / size)), default=None)
        return nearest and nearest[1] * size / nearest[0]

    def _on_nearest_gpus(self, gpus: int) -> list[Measurement]:
        """Return the measurements on the number of GPUs nearest to `gpus`."""
        counts = {measurement.gpus for measurement in self.measurements}
        nearest = min(counts, key=lambda count: abs(_log_gpus(count) - _log_gpus(gpus)))
        return [measurement for measurement in self.measurements if measurement.gpus == nearest]


def _log_flops(shape: ModelShape) -> float:
    return math.log(shape.train_flops_per_token)


def _log_gpus(gpus: int) -> float:
    return math.log2(gpus) if gpus else -1.0


def _batch_distance(measurement: Measurement, batch_size: int, gpus: int) -> float:
    """Return the distance of the sequences per GPU, in logarithms."""
    measured = math.log(measurement.batch_size / max(1, measurement.gpus))
    return abs(measured - math.log(batch_size / max(1, gpus)))


def choose_classes(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the runs to measure, by number of GPUs, the smallest first.

    Of each number of GPUs and nodes they are the smallest, the middle and the largest in FLOPs per
    token.
    """
    classes: dict[tuple[int, int], dict[tuple[ModelShape, int], RunSpec]] = {}
    for run in runs:
        by_shape = classes.setdefault((run.gpus or 0, run.nodes or 1), {})
        by_shape.setdefault((run.shape, run.batch_size), run)
    chosen = []
    for _, by_shape in sorted(classes.items()):
        ranked = sorted(
            by_shape.values(), key=lambda run: (run.shape.train_flops_per_token, run.batch_size)
        )
        chosen += [ranked[rank] for rank in sorted({0, len(ranked) // 2, len(ranked) - 1})]
    return chosen


# The file


def calibration_file(root: Path, sweep: Sweep, profile: Profile) -> Path:
    """Return the path of the measurements for a sweep on a cluster.

    Another GPU, recipe or precision has another file.
    """
    digest = canonical_hash(_identity(sweep, profile))
    return root / CALIBRATIONS_FOLDER / f"{profile.name}-{digest[:8]}.json"


def read_calibration(root: Path, sweep: Sweep, profile: Profile) -> Calibration | None:
    """Return the measurements for a sweep on a cluster.

    None if there are none, or if an external trainer trains.

    Raises:
        ConfigError: a file that can't be read.
    """
    file = calibration_file(root, sweep, profile)
    if sweep.train.trainer != "builtin" or not file.exists():
        return None
    try:
        document = json.loads(file.read_text())
        measurements = tuple(build(Measurement, item) for item in document["measurements"])
        if document["schema"] != 1 or not measurements:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError):
        raise ConfigError(
            f"{file}: damaged; delete it, and measure again with `isoflop calibrate`"
        ) from None
    return Calibration(measurements)


def write_calibration(root: Path, sweep: Sweep, profile: Profile, calibration: Calibration) -> Path:
    """Write the measurements for a sweep on a cluster; return the path of their file."""
    file = calibration_file(root, sweep, profile)
    measurements = [dataclasses.asdict(measurement) for measurement in calibration.measurements]
    document = {"schema": 1, "of": _identity(sweep, profile), "measurements": measurements}
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return file


def _identity(sweep: Sweep, profile: Profile) -> dict[str, Any]:
    """Return the properties of sweep and cluster that measurements hold for."""
    recipe = find_recipe(sweep.recipe)
    return {
        "profile": profile.name,
        "executor": profile.executor,
        "gpu": profile.gpu and {"type": profile.gpu.type, "peak_tflops": profile.gpu.peak_tflops},
        "recipe": {"name": recipe.name, "version": recipe.version},
        "precision": sweep.train.precision,
    }
