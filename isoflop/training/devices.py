"""What the device decides: Fabric, its peak FLOP/s, and how much of a batch goes through at once."""

from __future__ import annotations

import math

import torch
from lightning.fabric import Fabric

from isoflop.shapes import ModelShape

PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 6000 Ada": 364e12, "L4": 121e12}
"""Dense bf16 FLOP/s by a part of the device's name (NVIDIA's data sheets, SXM where there are several)."""

CPU_MICRO_TOKENS = 4096
GPU_MEMORY_SHARE = 0.6


def make_fabric(precision: str) -> Fabric:
    """Fabric for one device: a GPU with bf16 where there is one, else the CPU with fp32; `precision` may pin it."""
    cuda = torch.cuda.is_available()
    chosen = ("bf16" if cuda else "fp32") if precision == "auto" else precision
    plugin = {"bf16": "bf16-mixed", "fp32": "32-true"}[chosen]
    return Fabric(accelerator="cuda" if cuda else "cpu", devices=1, precision=plugin)  # type: ignore[arg-type]


def peak_flops(device: torch.device) -> float:
    """Dense bf16 FLOP/s of a GPU that is known; NaN for others, so that their `mfu` is empty."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK_BF16.items():
            if part in name:
                return peak
    return float("nan")


def micro_batch(shape: ModelShape, batch_size: int, device: torch.device) -> int:
    """Sequences of a batch that go through at once; the gradient is summed over the parts.

    On a CPU a number that keeps the logits in cache, and that depends on nothing but the shape, so that sums repeat bit
    for bit; on a GPU what its memory holds.
    """
    if device.type != "cuda":
        parts = math.ceil(batch_size / max(1, CPU_MICRO_TOKENS // shape.seq_len))
        return math.ceil(batch_size / parts)
    free = torch.cuda.mem_get_info(device)[0] * GPU_MEMORY_SHARE - 16 * shape.params_total
    micro = batch_size
    while micro > 1 and shape.activation_bytes(micro) > free:
        micro = (micro + 1) // 2
    return micro
