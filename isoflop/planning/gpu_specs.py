"""What is known of GPUs before anything is measured: peak FLOP/s, memory, and the share of the peak to expect."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from isoflop.config.profile import Gpu
from isoflop.errors import ConfigError
from isoflop.shapes import ModelShape


@dataclass(frozen=True)
class GpuType:
    """A GPU: how CUDA names it (a part of that name), dense bf16 FLOP/s, memory in GB."""

    device_name: str
    peak_flops: float
    memory_gb: float


GPUS = {
    "h200-sxm": GpuType("H200", 989e12, 141),
    "h100-sxm": GpuType("H100", 989e12, 80),
    "h200-nvl": GpuType("H200 NVL", 835.5e12, 141),
    "h100-nvl": GpuType("H100 NVL", 835.5e12, 94),
    "h100-pcie": GpuType("H100 PCIe", 756e12, 80),
    "a100-sxm-80gb": GpuType("A100-SXM4-80GB", 312e12, 80),
    "a100-sxm-40gb": GpuType("A100-SXM4-40GB", 312e12, 40),
    "a100-pcie-80gb": GpuType("A100 80GB PCIe", 312e12, 80),
    "l40s": GpuType("L40S", 362e12, 48),
    "l40": GpuType("L40", 181e12, 48),
    "rtx-6000-ada": GpuType("RTX 6000 Ada", 364e12, 48),
    "rtx-4090": GpuType("RTX 4090", 165e12, 24),
    "l4": GpuType("L4", 121e12, 24),
}
"""By the names that profiles use; figures of NVIDIA's data sheets, without sparsity."""


def gpu_type(gpu: Gpu) -> GpuType:
    """The figures of a profile's GPU: its own `peak_tflops` and `memory_gb`, else those of its type.

    Raises:
        ConfigError: a type that is not known, and no figures for it.
    """
    known = GPUS.get(gpu.type)
    if known is None and (gpu.peak_tflops is None or gpu.memory_gb is None):
        near = difflib.get_close_matches(gpu.type, GPUS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"gpu.type {gpu.type!r} is not known; did you mean {near}? For another GPU give gpu.peak_tflops "
            "(dense bf16) and gpu.memory_gb"
        )
    peak = known.peak_flops if gpu.peak_tflops is None and known else 1e12 * (gpu.peak_tflops or 0)
    memory = known.memory_gb if gpu.memory_gb is None and known else gpu.memory_gb or 0
    return GpuType(known.device_name if known else gpu.type, peak, memory)


def find_gpu(device_name: str) -> GpuType | None:
    """The GPU that CUDA names so, by whole words; of several that fit, the longest. None for a part of one (MIG)."""
    words = device_name.split()
    if "MIG" in words:
        return None
    fitting = [gpu for gpu in GPUS.values() if f" {gpu.device_name} " in f" {' '.join(words)} "]
    return max(fitting, key=lambda gpu: len(gpu.device_name), default=None)


MFU_LIMIT, MFU_WIDTH = 0.65, 600
PARALLEL_EFFICIENCY = 0.95


def mfu_prior(shape: ModelShape, gpus: int) -> float:
    """Share of the peak to expect of a model on `gpus` GPUs, as long as nothing is measured: 0.65 d / (d + 600), and
    5 % less for each doubling of the GPUs.

    The first is a little under what SODA's shapes reached on one H200, 0.20 at width 256 and 0.54 at 2304
    (benchmarks/gpu.md); the second is a guess. Other GPUs were not measured.
    """
    return (
        MFU_LIMIT
        * shape.width
        / (shape.width + MFU_WIDTH)
        * PARALLEL_EFFICIENCY ** (gpus.bit_length() - 1)
    )
