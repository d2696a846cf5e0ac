"""How many GPUs a run takes, how its batch goes through their memory, and how long it will take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from isoflop.config.profile import Gpu, Profile
from isoflop.config.sbatch import fixed_gpus
from isoflop.errors import ConfigError
from isoflop.planning.calibration import Calibration
from isoflop.planning.gpu_specs import GpuType, gpu_type, mfu_prior
from isoflop.planning.run_spec import RunSpec
from isoflop.shapes import ModelShape

STATE_BYTES = 18
"""Bytes a parameter on every GPU: weights, gradients and two moments in fp32, and the bf16 copy that autocast makes."""

MEMORY_SHARE = 0.85
"""Of a GPU's memory; the rest is for CUDA, workspaces, fragments and the optimizer's temporaries."""

LONG_ENOUGH_H = 6.0
"""A run that ends within these hours is not spread over more GPUs: each doubling costs efficiency."""

Source = Literal["prior", "measured", "extrapolated"]
"""Where a speed comes from; extrapolated: measured on other numbers of GPUs, or of smaller or larger models only."""


@dataclass(frozen=True)
class Fit:
    """How a GPU's part of a batch goes through its memory.

    Attributes:
        micro_batch: sequences at once.
        checkpointing: whether layers are computed again in the backward pass.
        memory_bytes: estimated, or what measurements make of the estimate.
    """

    micro_batch: int
    checkpointing: bool
    memory_bytes: int


@dataclass(frozen=True)
class Size:
    """The resources of one run.

    Attributes:
        gpus: that it trains on, on all nodes; 0: on CPUs.
        nodes: that they are on.
        held: GPUs that it keeps from others and that are paid for; more than `gpus` where it holds whole nodes.
        hours: of training from start to end, without interruptions and checkpoints.
        fit: its memory.
        source: where its speed comes from.
    """

    gpus: int
    nodes: int
    held: int
    hours: float
    fit: Fit
    source: Source = "prior"

    @property
    def gpu_hours(self) -> float:
        return self.held * self.hours


@dataclass(frozen=True)
class Option:
    """Resources that a run may take (as `Size`), and the training FLOP/s (3 x forward) to expect."""

    gpus: int
    nodes: int
    held: int
    fit: Fit
    flops_per_second: float
    source: Source

    def hours(self, train_flops: float) -> float:
        return train_flops / self.flops_per_second / 3600


def value_bytes(precision: str) -> int:
    """Bytes of an activation on a GPU, by `train.precision`."""
    return 4 if precision == "fp32" else 2


def needed_bytes(
    shape: ModelShape,
    micro_batch: int,
    checkpointing: bool,
    compiled: bool = True,
    bytes_per_value: int = 2,
) -> int:
    """Estimated memory of a GPU that trains a model on `micro_batch` sequences at once."""
    activations = shape.activation_bytes(
        micro_batch, bytes_per_value, checkpointing=checkpointing, compiled=compiled
    )
    return STATE_BYTES * shape.params_total + activations


def fit_memory(
    shape: ModelShape,
    sequences: int,
    memory_bytes: float,
    compiled: bool = True,
    bytes_per_value: int = 2,
) -> Fit | None:
    """The largest micro-batch of `sequences` that fits, without checkpointing if one does; None where nothing fits."""
    for checkpointing in (False, True):
        micro = sequences
        while True:
            needed = needed_bytes(shape, micro, checkpointing, compiled, bytes_per_value)
            if needed <= memory_bytes * MEMORY_SHARE:
                return Fit(micro, checkpointing, needed)
            if micro == 1:
                break
            micro = (micro + 1) // 2
    return None


class Sizer:
    """Sizes a study's runs for any limit on GPUs; what a run may take is worked out once for each shape and batch.

    A run is spread over more GPUs than its memory needs only where it would take longer alone than all runs together
    on the study's GPUs, or than a day where nothing limits these.
    """

    def __init__(
        self,
        runs: Sequence[RunSpec],
        profile: Profile,
        calibration: Calibration | None = None,
        precision: str = "auto",
    ) -> None:
        """Of a study on a cluster.

        Args:
            runs: of a plan.
            profile: the cluster.
            calibration: what was measured there, in place of the prior.
            precision: `train.precision` of the study; fp32 takes more memory.

        Raises:
            ConfigError: GPUs of an unknown type, or CPUs of which nothing was measured.
        """
        self.calibration, self.profile, self.value_bytes = (
            calibration,
            profile,
            value_bytes(precision),
        )
        self.fixed = fixed_gpus(profile.slurm)
        self.runs = [(run, float(run.train_flops), (run.shape, run.batch_size)) for run in runs]
        self.options: dict[tuple[ModelShape, int], list[Option]] = {}
        for run, _, key in self.runs:
            if key not in self.options:
                self.options[key] = self._options(run)

    def choices(self, most: int | None, max_jobs: int | None = None) -> Iterator[list[Size]]:
        """Ways to size the runs with a limit on the study's GPUs, each on more GPUs than the one before.

        Only where `max_jobs` leaves GPUs idle may another than the first end sooner: then it takes a trial.

        Raises:
            ConfigError: a model too large for so many GPUs.
        """
        allowed = {
            key: [option for option in options if most is None or option.held <= most]
            for key, options in self.options.items()
        }
        rows = [(flops, allowed[key]) for _, flops, key in self.runs]
        for (run, _, _), (_, options) in zip(self.runs, rows, strict=True):
            if not options:
                raise self._too_large(run, most)
        longest = 24.0
        if most is not None:
            least = sum(options[0].held * options[0].hours(flops) for flops, options in rows)
            longest = max(LONG_ENOUGH_H, least / most)
        yield (sizes := [_first_within(longest, flops, options) for flops, options in rows])
        while max_jobs and any(
            size.held < options[-1].held for size, (_, options) in zip(sizes, rows, strict=True)
        ):
            longest /= 2**0.5
            before, sizes = (
                sizes,
                [_first_within(longest, flops, options) for flops, options in rows],
            )
            if sizes != before:
                yield sizes

    def _options(self, run: RunSpec) -> list[Option]:
        """Numbers of GPUs that share the batch evenly and fill a part of one node or whole nodes, with how it fits."""
        gpu = self.profile.gpu
        if gpu is None:
            return [self._on_cpus(run)]
        kind, found, gpus = gpu_type(gpu), [], 1
        while gpus <= run.batch_size and (gpus == 1 or self.profile.executor == "slurm"):
            whole = gpus <= gpu.per_node or gpus % gpu.per_node == 0
            if (
                run.batch_size % gpus == 0
                and whole
                and self._is_asked_for(gpus, -(-gpus // gpu.per_node))
            ):
                memory = kind.memory_gb * 1e9
                fit = fit_memory(
                    run.shape, run.batch_size // gpus, memory, bytes_per_value=self.value_bytes
                )
                found += [self._on_gpus(run, gpus, fit, gpu, kind)] if fit else []
            gpus *= 2
        fastest = {
            option.held: option
            for option in sorted(found, key=lambda option: option.flops_per_second)
        }
        return sorted(fastest.values(), key=lambda option: option.held)

    def _is_asked_for(self, gpus: int, nodes: int) -> bool:
        """Whether sbatch would give so many, where the profile's own options say how many a job gets."""
        return self.fixed is None or gpus == (
            self.fixed.gpus * (nodes if self.fixed.on_each_node else 1)
        )

    def _on_gpus(self, run: RunSpec, gpus: int, fit: Fit, gpu: Gpu, kind: GpuType) -> Option:
        nodes = -(-gpus // gpu.per_node)
        held = self.profile.held_gpus(gpus, nodes)
        if self.calibration is None:
            recomputed = 4 / 3 if fit.checkpointing else 1.0  # one more forward pass
            speed = gpus * kind.peak_flops * mfu_prior(run.shape, gpus) / recomputed
            return Option(gpus, nodes, held, fit, speed, "prior")
        speed, inside = self.calibration.flops_per_second(run.shape, run.batch_size, gpus)
        ratio, _ = self.calibration.at(
            run.shape,
            run.batch_size,
            gpus,
            lambda one: (
                one.memory_bytes / self._needed(one.shape, one.micro_batch, one.checkpointing)
            ),
        )
        fit = replace(fit, memory_bytes=round(ratio * fit.memory_bytes))
        return Option(gpus, nodes, held, fit, speed, "measured" if inside else "extrapolated")

    def _needed(self, shape: ModelShape, micro_batch: int, checkpointing: bool) -> int:
        return needed_bytes(shape, micro_batch, checkpointing, bytes_per_value=self.value_bytes)

    def _on_cpus(self, run: RunSpec) -> Option:
        """A run as the profile's options start it, which is how it was measured."""
        if self.calibration is None:
            raise ConfigError(
                "gpu: missing; a bill needs the GPUs of the nodes, e.g. gpu: {type: h100-sxm, per_node: 8}, "
                "or on CPUs what `isoflop calibrate` measures"
            )
        speed, inside = self.calibration.flops_per_second(run.shape, run.batch_size, 0)
        memory, _ = self.calibration.at(run.shape, run.batch_size, 0, lambda one: one.memory_bytes)
        fit = Fit(run.batch_size, False, round(memory))
        return Option(0, 1, 0, fit, speed, "measured" if inside else "extrapolated")

    def _too_large(self, run: RunSpec, most: int | None) -> ConfigError:
        assert self.profile.gpu is not None
        if options := self.options[run.shape, run.batch_size]:
            return ConfigError(
                f"max_gpus: {run.run_id} holds {options[0].held} GPUs at least, {most} are allowed; raise it, take "
                "larger GPUs, or leave out the widest models"
            )
        if self.fixed is not None:
            return ConfigError(
                f"slurm.{self.fixed.option}: asks for {self.fixed.gpus} GPUs, with which {run.run_id} (batch "
                f"{run.batch_size}) can't be trained; leave it out: a run asks for its own number, of the type "
                "gpu.slurm_name"
            )
        gpu = gpu_type(self.profile.gpu)
        needed = self._needed(run.shape, 1, True)
        return ConfigError(
            f"{run.run_id}: {run.params_total:,} parameters need about {needed / 1e9:.0f} GB on each GPU, of which "
            f"{gpu.device_name} has {gpu.memory_gb:.0f} GB, {MEMORY_SHARE:.0%} of it for this; take larger GPUs, or "
            "leave out the widest models"
        )


def _first_within(longest: float, train_flops: float, options: Sequence[Option]) -> Size:
    """The first of some resources with which a run takes up to `longest` hours, else the last."""
    option = next(
        (option for option in options if option.hours(train_flops) <= longest), options[-1]
    )
    return Size(
        option.gpus, option.nodes, option.held, option.hours(train_flops), option.fit, option.source
    )
