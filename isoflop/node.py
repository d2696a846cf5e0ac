"""This process's node, its visible GPUs, and a test for a job that isoflop submitted."""

from __future__ import annotations

import itertools
import os
from pathlib import Path


def node_name() -> str:
    """Return SLURM's name of this node, which may lack the domain of its host name."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def is_job() -> bool:
    """Return whether isoflop submitted this process as a job of SLURM.

    SLURM's variables alone do not decide: a user's shell in an allocation has them too.
    """
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Imports no torch.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [
            str(number) for number in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))
        ]
    return list(itertools.takewhile(_names_gpu, map(str.strip, visible.split(","))))


def _names_gpu(entry: str) -> bool:
    """Return whether CUDA takes an entry for a GPU; it stops reading at the first other one."""
    return entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))
