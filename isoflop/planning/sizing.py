"""How many GPUs a run takes, how its batch goes through their memory, and how long it will take."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.config.profile import Gpu, Profile
from isoflop.errors import ConfigError
from isoflop.planning.gpus import GpuType, gpu_type, mfu_prior
from isoflop.planning.runspec import RunSpec
from isoflop.shapes import ModelShape

STATE_BYTES = 18
"""Bytes a parameter on every GPU: weights, gradients and two moments in fp32, and the bf16 copy that autocast makes."""

MEMORY_SHARE = 0.85
"""Of a GPU's memory; the rest is for CUDA, workspaces, fragments and the optimizer's temporaries."""

LONG_ENOUGH_H = 6.0
"""A run that ends within these hours is not spread over more GPUs: each doubling costs efficiency."""


@dataclass(frozen=True)
class Fit:
    """How a GPU's part of a batch goes through its memory.

    Attributes:
        micro_batch: sequences at once.
        checkpointing: whether layers are computed again in the backward pass.
        memory_bytes: estimated.
    """

    micro_batch: int
    checkpointing: bool
    memory_bytes: int


@dataclass(frozen=True)
class Size:
    """The resources of one run: its GPUs on all nodes, hours from start to end without interruptions, and memory."""

    gpus: int
    nodes: int
    hours: float
    fit: Fit

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.hours


def fit_memory(shape: ModelShape, sequences: int, memory_bytes: float) -> Fit | None:
    """The largest micro-batch of `sequences` that fits, without checkpointing if one does; None where nothing fits."""
    states = STATE_BYTES * shape.params_total
    for checkpointing in (False, True):
        micro = sequences
        while True:
            needed = states + shape.activation_bytes(micro, checkpointing=checkpointing)
            if needed <= memory_bytes * MEMORY_SHARE:
                return Fit(micro, checkpointing, needed)
            if micro == 1:
                break
            micro = (micro + 1) // 2
    return None


def choose_sizes(runs: tuple[RunSpec, ...], profile: Profile) -> list[Size]:
    """The resources of each run: the fewest GPUs with which none holds up the study.

    A run is spread over more GPUs than its memory needs only where it would take longer alone than all runs together
    on `max_gpus`, or than a day where the profile names no `max_gpus`.

    Raises:
        ConfigError: a profile without GPUs or of an unknown type, or a model too large for its GPUs.
    """
    if profile.gpu is None:
        raise ConfigError("gpu: missing; a bill needs the GPUs of the nodes, e.g. gpu: {type: h100-sxm, per_node: 8}")
    gpu = gpu_type(profile.gpu)
    options = {key: _options(key, profile.gpu, gpu, profile.max_gpus) for key in {_key(run) for run in runs}}
    for run in runs:
        if not options[_key(run)]:
            raise _too_large(run, gpu)
    sizes = [[_size(run, gpus, fit, profile.gpu, gpu) for gpus, fit in options[_key(run)]] for run in runs]
    longest = 24.0
    if profile.max_gpus is not None:
        longest = max(LONG_ENOUGH_H, sum(size[0].gpu_hours for size in sizes) / profile.max_gpus)
    return [next((size for size in row if size.hours <= longest), row[-1]) for row in sizes]


def _key(run: RunSpec) -> tuple[ModelShape, int]:
    return run.shape, run.batch_size


def _options(key: tuple[ModelShape, int], gpu: Gpu, kind: GpuType, most: int | None) -> list[tuple[int, Fit]]:
    """Numbers of GPUs that share the batch evenly and fill a part of one node or whole nodes, with how it fits."""
    shape, batch_size = key
    found, gpus = [], 1
    while gpus <= batch_size and (most is None or gpus <= most):
        whole = gpus <= gpu.per_node or gpus % gpu.per_node == 0
        if batch_size % gpus == 0 and whole and (fit := fit_memory(shape, batch_size // gpus, kind.memory_gb * 1e9)):
            found.append((gpus, fit))
        gpus *= 2
    return found


def _size(run: RunSpec, gpus: int, fit: Fit, gpu: Gpu, kind: GpuType) -> Size:
    speed = gpus * kind.peak_flops * mfu_prior(run.shape, gpus)
    recomputed = 4 / 3 if fit.checkpointing else 1.0  # one more forward pass
    return Size(gpus, -(-gpus // gpu.per_node), recomputed * run.train_flops / speed / 3600, fit)


def _too_large(run: RunSpec, gpu: GpuType) -> ConfigError:
    needed = STATE_BYTES * run.params_total + run.shape.activation_bytes(1, checkpointing=True)
    return ConfigError(
        f"{run.run_id}: {run.params_total:,} parameters need about {needed / 1e9:.0f} GB on each GPU, of which "
        f"{gpu.device_name} has {gpu.memory_gb:.0f} GB; take larger GPUs, or leave out the widest models"
    )
