"""Speed and memory that were measured on a cluster: data that planning takes, and what lies between the measurements.

A measurement is of a class: a shape, a batch, and a number of GPUs. Between two classes on the same number of GPUs
FLOP/s are interpolated over training FLOPs per token, both as logarithms; outside of them the nearest counts.
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
from isoflop.planning.gpu_specs import PARALLEL_EFFICIENCY
from isoflop.planning.run_spec import RunSpec
from isoflop.recipes import find_recipe
from isoflop.shapes import ModelShape

FOLDER = "calibrations"
"""In the folder of runs."""


@dataclass(frozen=True)
class Measurement:
    """What a class of runs was measured to do.

    Attributes:
        shape: the model.
        gpus: of a run, on all its nodes; 0 for CPUs.
        batch_size: sequences in a step, of all GPUs together.
        micro_batch: sequences that went through a GPU at once.
        checkpointing: whether layers were computed again in the backward pass.
        tokens_per_second: training tokens, of all GPUs together.
        mfu: share of the GPUs' peak; None where the peak is not known, as on CPUs.
        memory_bytes: most that a process held, by CUDA's allocator, on a CPU all that was resident.
        measured: seconds since 1970.
        device: what the machine calls its GPU or CPU.
        save_seconds: that training waited for a checkpoint; None where that was not measured.
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
        speed, when = self.tokens_per_second, self.measured
        require(1e-9 <= speed <= 1e15, "tokens_per_second", f"expected 1e-9 to 1e15, got {speed}")
        require(0 <= when <= 1e11, "measured", f"expected seconds since 1970, got {when}")
        if self.save_seconds is not None:
            save = self.save_seconds
            require(0 < save <= 1e6, "save_seconds", f"expected more than 0, up to 1e6, got {save}")

    @property
    def flops_per_second(self) -> float:
        """Training FLOP/s (3 x forward) of one GPU, or of the whole run on CPUs."""
        return self.tokens_per_second * self.shape.train_flops_per_token / max(1, self.gpus)

    @property
    def key(self) -> tuple[ModelShape, int, int]:
        return self.shape, self.gpus, self.batch_size


@dataclass(frozen=True)
class Calibration:
    """What was measured for the runs of one recipe on one cluster; there is at least one measurement."""

    measurements: tuple[Measurement, ...]

    @property
    def day(self) -> str:
        """When the newest measurement was made: 2026-11-25."""
        return time.strftime(
            "%Y-%m-%d", time.gmtime(max(found.measured for found in self.measurements))
        )

    def with_more(self, more: Iterable[Measurement]) -> Calibration:
        """These measurements and newer ones, which replace those of the same classes."""
        found = {one.key: one for one in (*self.measurements, *more)}
        return Calibration(
            tuple(
                sorted(
                    found.values(), key=lambda one: (one.gpus, _place(one.shape), one.batch_size)
                )
            )
        )

    def flops_per_second(self, shape: ModelShape, batch_size: int, gpus: int) -> tuple[float, bool]:
        """Training FLOP/s of a run, and whether it lies within what was measured.

        For a number of GPUs that was not measured it is that of the nearest, with the prior's loss for each doubling.
        """
        value, inside = self.at(shape, batch_size, gpus, lambda one: one.flops_per_second)
        doublings = (
            math.log2(gpus / counted) if (counted := self._near(gpus)[0].gpus) and gpus else 0.0
        )
        return value * max(1, gpus) * PARALLEL_EFFICIENCY**doublings, inside

    def at(
        self, shape: ModelShape, batch_size: int, gpus: int, value: Callable[[Measurement], float]
    ) -> tuple[float, bool]:
        """A positive value of a class, between those of the measured ones, and whether it lies within them."""
        near = self._near(gpus)
        points: dict[float, Measurement] = {}
        for one in sorted(near, key=lambda one: -_distance(one, batch_size, gpus)):
            points[_place(one.shape)] = one  # of several batches the nearest stays
        places = sorted(points)
        here = min(max(_place(shape), places[0]), places[-1])
        inside = math.isclose(here, _place(shape)) and near[0].gpus == gpus
        after = bisect_left(places, here)
        if places[after] == here:
            return value(points[here]), inside
        low, high = places[after - 1], places[after]
        share = (here - low) / (high - low)
        return value(points[low]) ** (1 - share) * value(points[high]) ** share, inside

    def save_seconds(self, shape: ModelShape) -> float | None:
        """Of a model's checkpoint, by the measured model that is nearest in size; None where none was measured."""
        size = shape.checkpoint_bytes
        found = [
            (one.shape.checkpoint_bytes, one.save_seconds)
            for one in self.measurements
            if one.save_seconds
        ]
        near = min(found, key=lambda one: abs(math.log(one[0] / size)), default=None)
        return near and near[1] * size / near[0]

    def _near(self, gpus: int) -> list[Measurement]:
        """The measurements on the number of GPUs that is nearest."""
        nearest = min(
            {one.gpus for one in self.measurements}, key=lambda count: abs(_log(count) - _log(gpus))
        )
        return [one for one in self.measurements if one.gpus == nearest]


def _place(shape: ModelShape) -> float:
    return math.log(shape.train_flops_per_token)


def _log(gpus: int) -> float:
    return math.log2(gpus) if gpus else -1.0


def _distance(one: Measurement, batch_size: int, gpus: int) -> float:
    """How different the sequences of a GPU are."""
    return abs(math.log(one.batch_size / max(1, one.gpus)) - math.log(batch_size / max(1, gpus)))


def choose_classes(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs to measure: of each number of GPUs and nodes the smallest, the middle and the largest in FLOPs a token.

    They come by number of GPUs, the smallest first.
    """
    sizes: dict[tuple[int, int], dict[tuple[ModelShape, int], RunSpec]] = {}
    for run in runs:
        sizes.setdefault((run.gpus or 0, run.nodes or 1), {}).setdefault(
            (run.shape, run.batch_size), run
        )
    chosen = []
    for _, found in sorted(sizes.items()):
        ranked = sorted(
            found.values(), key=lambda run: (run.shape.train_flops_per_token, run.batch_size)
        )
        chosen += [ranked[place] for place in sorted({0, len(ranked) // 2, len(ranked) - 1})]
    return chosen


# The file


def calibration_file(root: Path, sweep: Sweep, profile: Profile) -> Path:
    """Where the measurements for a sweep on a cluster are kept; another GPU, recipe or precision has another file."""
    return root / FOLDER / f"{profile.name}-{canonical_hash(_identity(sweep, profile))[:8]}.json"


def read_calibration(root: Path, sweep: Sweep, profile: Profile) -> Calibration | None:
    """What was measured for a sweep on a cluster; None where nothing was, or where another program trains.

    Raises:
        ConfigError: a file that can't be read.
    """
    file = calibration_file(root, sweep, profile)
    if sweep.train.trainer != "builtin" or not file.exists():
        return None
    try:
        document = json.loads(file.read_text())
        found = tuple(build(Measurement, one) for one in document["measurements"])
        if document["schema"] != 1 or not found:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError):
        raise ConfigError(
            f"{file}: damaged; delete it, and measure again with `isoflop calibrate`"
        ) from None
    return Calibration(found)


def write_calibration(root: Path, sweep: Sweep, profile: Profile, calibration: Calibration) -> Path:
    """Keeps what was measured."""
    file = calibration_file(root, sweep, profile)
    measurements = [dataclasses.asdict(one) for one in calibration.measurements]
    document = {"schema": 1, "of": _identity(sweep, profile), "measurements": measurements}
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return file


def _identity(sweep: Sweep, profile: Profile) -> dict[str, Any]:
    """What a measurement holds for."""
    recipe = find_recipe(sweep.recipe)
    return {
        "profile": profile.name,
        "executor": profile.executor,
        "gpu": profile.gpu and {"type": profile.gpu.type, "peak_tflops": profile.gpu.peak_tflops},
        "recipe": {"name": recipe.name, "version": recipe.version},
        "precision": sweep.train.precision,
    }
