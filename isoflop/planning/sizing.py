"""Size of a run on a cluster: its GPUs, the use of their memory, and its hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from isoflop.config.profile import Gpu, Profile
from isoflop.config.sbatch import fixed_gpus
from isoflop.errors import ConfigError
from isoflop.planning.calibration import Calibration, Measurement
from isoflop.planning.gpu_specs import GpuType, mfu_prior, resolve_gpu
from isoflop.planning.run_spec import RunSpec
from isoflop.shapes import ModelShape
from isoflop.text import bytes_text, percent_text

STATE_BYTES_PER_PARAM = 18
"""On every GPU: weights, gradients and two moments in fp32, and the bf16 copy of autocast."""

USABLE_MEMORY_SHARE = 0.85
"""Share of a GPU's memory that a run may take.

The rest is for CUDA, workspaces, fragments and the optimizer's temporaries.
"""

MIN_SPREAD_HOURS = 6.0
"""Hours of a run up to which it takes no more GPUs: each doubling costs efficiency."""

MAX_RUN_HOURS = 24.0
"""Hours of a run above which it takes more GPUs, if the study's GPUs have no limit."""

SpeedSource = Literal["prior", "measured", "extrapolated"]
"""Source of a speed; extrapolated: measured only on other numbers of GPUs, or only for smaller or
larger models.
"""


@dataclass(frozen=True)
class MemoryFit:
    """Use of a GPU's memory for its part of a batch.

    Attributes:
        micro_batch: sequences at a time.
        checkpointing: True if layers are recomputed in the backward pass.
        memory_bytes: the estimate, corrected by measurements if there are any.
    """

    micro_batch: int
    checkpointing: bool
    memory_bytes: int


@dataclass(frozen=True)
class Size:
    """Resources of one run.

    Attributes:
        gpus: GPUs that train, on all nodes; 0 on CPUs.
        nodes: nodes of these GPUs.
        held_gpus: GPUs that are reserved and paid for; more than `gpus` if the run holds whole
            nodes.
        hours: hours of training, without interruptions and checkpoints.
        memory_fit: use of each GPU's memory.
        source: source of the speed.
    """

    gpus: int
    nodes: int
    held_gpus: int
    hours: float
    memory_fit: MemoryFit
    source: SpeedSource = "prior"

    @property
    def gpu_hours(self) -> float:
        """Return the GPU-hours that are reserved and paid for."""
        return self.held_gpus * self.hours


@dataclass(frozen=True)
class ResourceOption:
    """Resources that a run may take (as in `Size`), and its expected training FLOP/s (3 x
    forward).
    """

    gpus: int
    nodes: int
    held_gpus: int
    memory_fit: MemoryFit
    flops_per_second: float
    source: SpeedSource

    def hours(self, train_flops: float) -> float:
        """Return the hours of a run of `train_flops` training FLOPs (3 x forward)."""
        return train_flops / self.flops_per_second / 3600


def activation_value_bytes(precision: str) -> int:
    """Return the bytes of one activation value on a GPU, by `train.precision`."""
    return 4 if precision == "fp32" else 2


def estimate_memory_bytes(
    shape: ModelShape,
    micro_batch: int,
    checkpointing: bool,
    compiled: bool = True,
    bytes_per_value: int = 2,
) -> int:
    """Return the estimated memory of a GPU that trains on `micro_batch` sequences at a time."""
    activations = shape.activation_bytes(
        micro_batch, bytes_per_value, checkpointing=checkpointing, compiled=compiled
    )
    return STATE_BYTES_PER_PARAM * shape.params_total + activations


def fit_memory(
    shape: ModelShape,
    sequences: int,
    memory_bytes: float,
    compiled: bool = True,
    bytes_per_value: int = 2,
) -> MemoryFit | None:
    """Return the largest micro-batch of `sequences` that fits; None if not even one sequence does.

    Activation checkpointing is used only if nothing fits without it.
    """
    for checkpointing in (False, True):
        micro = sequences
        while True:
            needed = estimate_memory_bytes(shape, micro, checkpointing, compiled, bytes_per_value)
            if needed <= memory_bytes * USABLE_MEMORY_SHARE:
                return MemoryFit(micro, checkpointing, needed)
            if micro == 1:
                break
            micro = (micro + 1) // 2
    return None


class Sizer:
    """Sizes of a study's runs under any limit on GPUs.

    The options of a shape and batch are computed once. A run takes more GPUs than its memory needs
    only if it would otherwise take longer than all runs together on the study's GPUs, or longer
    than `MAX_RUN_HOURS` if their number has no limit.
    """

    def __init__(
        self,
        runs: Sequence[RunSpec],
        profile: Profile,
        calibration: Calibration | None = None,
        precision: str = "auto",
    ) -> None:
        """Compute the options of every shape and batch.

        Args:
            runs: runs of a plan.
            profile: the cluster.
            calibration: measurements on the cluster, which replace the prior.
            precision: `train.precision` of the study; fp32 takes more memory.

        Raises:
            ConfigError: GPUs of an unknown type, or CPUs without measurements.
        """
        self.calibration, self.profile = calibration, profile
        self.value_bytes = activation_value_bytes(precision)
        self.fixed = fixed_gpus(profile.slurm)
        self.runs = [(run, float(run.train_flops), (run.shape, run.batch_size)) for run in runs]
        self.options: dict[tuple[ModelShape, int], list[ResourceOption]] = {}
        for run, _, key in self.runs:
            if key not in self.options:
                self.options[key] = self._options(run)

    def choices(self, max_gpus: int | None, max_jobs: int | None = None) -> Iterator[list[Size]]:
        """Yield sizes of all runs under a limit on the study's GPUs, each on more GPUs than before.

        A later choice can end sooner than the first only if `max_jobs` leaves GPUs idle; a trial
        decides.

        Raises:
            ConfigError: a model too large for `max_gpus` GPUs.
        """
        allowed = {
            key: [option for option in options if max_gpus is None or option.held_gpus <= max_gpus]
            for key, options in self.options.items()
        }
        rows = [(flops, allowed[key]) for _, flops, key in self.runs]
        for (run, _, _), (_, options) in zip(self.runs, rows, strict=True):
            if not options:
                raise self._too_large(run, max_gpus)
        longest = MAX_RUN_HOURS
        if max_gpus is not None:
            least = sum(options[0].held_gpus * options[0].hours(flops) for flops, options in rows)
            longest = max(MIN_SPREAD_HOURS, least / max_gpus)
        yield (sizes := [_first_within(longest, flops, options) for flops, options in rows])
        while max_jobs and any(
            size.held_gpus < options[-1].held_gpus
            for size, (_, options) in zip(sizes, rows, strict=True)
        ):
            longest /= 2**0.5
            before = sizes
            sizes = [_first_within(longest, flops, options) for flops, options in rows]
            if sizes != before:
                yield sizes

    def _options(self, run: RunSpec) -> list[ResourceOption]:
        """Return the resources that a run may take, by held GPUs.

        GPUs share the batch evenly, and fill a part of one node or whole nodes.
        """
        gpu = self.profile.gpu
        if gpu is None:
            return [self._on_cpus(run)]
        gpu_type, options, gpus = resolve_gpu(gpu), [], 1
        memory_bytes = gpu_type.memory_gb * 1e9
        while gpus <= run.batch_size and (gpus == 1 or self.profile.executor == "slurm"):
            fills_nodes = gpus <= gpu.per_node or gpus % gpu.per_node == 0
            nodes = -(-gpus // gpu.per_node)
            if run.batch_size % gpus == 0 and fills_nodes and self._is_requested(gpus, nodes):
                sequences = run.batch_size // gpus
                fit = fit_memory(
                    run.shape, sequences, memory_bytes, bytes_per_value=self.value_bytes
                )
                if fit:
                    options.append(self._on_gpus(run, gpus, fit, gpu, gpu_type))
            gpus *= 2
        by_speed = sorted(options, key=lambda option: option.flops_per_second)
        fastest = {option.held_gpus: option for option in by_speed}
        return sorted(fastest.values(), key=lambda option: option.held_gpus)

    def _is_requested(self, gpus: int, nodes: int) -> bool:
        """Return whether a job gets this number of GPUs, if the profile's own options fix it."""
        return self.fixed is None or gpus == (
            self.fixed.gpus * (nodes if self.fixed.on_each_node else 1)
        )

    def _on_gpus(
        self, run: RunSpec, gpus: int, fit: MemoryFit, gpu: Gpu, gpu_type: GpuType
    ) -> ResourceOption:
        nodes = -(-gpus // gpu.per_node)
        held = self.profile.held_gpus(gpus, nodes)
        if self.calibration is None:
            recomputation = 4 / 3 if fit.checkpointing else 1.0  # one more forward pass
            speed = gpus * gpu_type.peak_flops * mfu_prior(run.shape, gpus) / recomputation
            return ResourceOption(gpus, nodes, held, fit, speed, "prior")
        speed, inside = self.calibration.flops_per_second(run.shape, run.batch_size, gpus)
        ratio, _ = self.calibration.interpolate(
            run.shape, run.batch_size, gpus, self._memory_over_estimate
        )
        fit = replace(fit, memory_bytes=round(ratio * fit.memory_bytes))
        source = "measured" if inside else "extrapolated"
        return ResourceOption(gpus, nodes, held, fit, speed, source)

    def _memory_over_estimate(self, measurement: Measurement) -> float:
        return measurement.memory_bytes / self._estimate_bytes(
            measurement.shape, measurement.micro_batch, measurement.checkpointing
        )

    def _estimate_bytes(self, shape: ModelShape, micro_batch: int, checkpointing: bool) -> int:
        return estimate_memory_bytes(
            shape, micro_batch, checkpointing, bytes_per_value=self.value_bytes
        )

    def _on_cpus(self, run: RunSpec) -> ResourceOption:
        """Return a run's resources as the profile's options start it, which is how it was measured.

        Raises:
            ConfigError: no measurements.
        """
        if self.calibration is None:
            raise ConfigError(
                "gpu: missing; a cost estimate needs the GPUs of the nodes, e.g. "
                "gpu: {type: h100-sxm, per_node: 8}, or on CPUs the measurements of "
                "`isoflop calibrate`"
            )
        speed, inside = self.calibration.flops_per_second(run.shape, run.batch_size, 0)
        memory, _ = self.calibration.interpolate(
            run.shape, run.batch_size, 0, lambda measurement: measurement.memory_bytes
        )
        fit = MemoryFit(run.batch_size, False, round(memory))
        return ResourceOption(0, 1, 0, fit, speed, "measured" if inside else "extrapolated")

    def _too_large(self, run: RunSpec, max_gpus: int | None) -> ConfigError:
        assert self.profile.gpu is not None
        if options := self.options[run.shape, run.batch_size]:
            return ConfigError(
                f"max_gpus: {run.run_id} holds at least {options[0].held_gpus} GPUs, {max_gpus} "
                "are allowed; raise it, use larger GPUs, or leave out the widest models"
            )
        if self.fixed is not None:
            return ConfigError(
                f"slurm.{self.fixed.option}: requests {self.fixed.gpus} GPUs, with which "
                f"{run.run_id} (batch {run.batch_size}) can't be trained; leave it out: each run "
                "requests its own number of GPUs, of the type gpu.slurm_name"
            )
        gpu = resolve_gpu(self.profile.gpu)
        needed = self._estimate_bytes(run.shape, 1, True)
        return ConfigError(
            f"{run.run_id}: {run.params_total:,} parameters need about {bytes_text(needed)} on "
            f"each GPU, but {gpu.device_name} has {bytes_text(gpu.memory_gb * 1e9)}, of which "
            f"{percent_text(USABLE_MEMORY_SHARE)} are usable; use larger GPUs, or leave out the "
            "widest models"
        )


def _first_within(longest: float, train_flops: float, options: Sequence[ResourceOption]) -> Size:
    """Return the first resources with which a run takes up to `longest` hours, else the last."""
    option = next(
        (option for option in options if option.hours(train_flops) <= longest), options[-1]
    )
    return Size(
        option.gpus,
        option.nodes,
        option.held_gpus,
        option.hours(train_flops),
        option.memory_fit,
        option.source,
    )
