"""Priors for GPUs without measurements: peak FLOP/s, memory, and the expected share of the peak."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from isoflop.config.profile import Gpu
from isoflop.errors import ConfigError
from isoflop.shapes import ModelShape


@dataclass(frozen=True)
class GpuType:
    """Specification of a GPU.

    Attributes:
        device_name: part of the name that CUDA reports.
        peak_flops: dense bf16 FLOP/s.
        memory_gb: memory in GB.
    """

    device_name: str
    peak_flops: float
    memory_gb: float


GPU_TYPES = {
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
"""GPUs by their names in profiles; values of NVIDIA's data sheets, without sparsity."""


def resolve_gpu(gpu: Gpu) -> GpuType:
    """Return the specification of a profile's GPU: its own values, else those of its type.

    Raises:
        ConfigError: an unknown type without `peak_tflops` and `memory_gb`.
    """
    known = GPU_TYPES.get(gpu.type)
    if known is None and (gpu.peak_tflops is None or gpu.memory_gb is None):
        near = difflib.get_close_matches(gpu.type, GPU_TYPES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"gpu.type {gpu.type!r} is not known; did you mean {near}? For another GPU set "
            "gpu.peak_tflops (dense bf16) and gpu.memory_gb"
        )
    peak = known.peak_flops if gpu.peak_tflops is None and known else 1e12 * (gpu.peak_tflops or 0)
    memory = known.memory_gb if gpu.memory_gb is None and known else gpu.memory_gb or 0
    return GpuType(known.device_name if known else gpu.type, peak, memory)


def find_gpu(device_name: str) -> GpuType | None:
    """Return the GPU with a name of CUDA, by whole words; of several matches, the longest.

    None for an unknown GPU, and for a part of a GPU (MIG).
    """
    tokens = device_name.split()
    if "MIG" in tokens:
        return None
    name = f" {' '.join(tokens)} "
    matching = [gpu for gpu in GPU_TYPES.values() if f" {gpu.device_name} " in name]
    return max(matching, key=lambda gpu: len(gpu.device_name), default=None)


MAX_MFU = 0.65
HALF_MFU_WIDTH = 600
"""Width of a model that reaches half of MAX_MFU."""

EFFICIENCY_PER_DOUBLING = 0.95
"""Speed per GPU on twice the GPUs, as a share."""


def mfu_prior(shape: ModelShape, gpus: int) -> float:
    """Return the expected share of the peak on `gpus` GPUs without measurements.

    It is 0.65 d / (d + 600) at width d, and 5% less for each doubling of the GPUs. The first factor
    is a little under the values of SODA's shapes on one H200, 0.20 at width 256 and 0.54 at 2304
    (benchmarks/gpu.md); the second is a guess. Other GPUs were not measured.
    """
    return (
        MAX_MFU
        * shape.width
        / (shape.width + HALF_MFU_WIDTH)
        * EFFICIENCY_PER_DOUBLING ** (gpus.bit_length() - 1)
    )
