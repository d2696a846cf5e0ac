"""Where this process runs: its node as SLURM calls it, and whether it is a job that isoflop has submitted."""

from __future__ import annotations

import os


def node_name() -> str:
    """This node as SLURM calls it, which may be without the domain of its host name."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def is_job() -> bool:
    """Whether SLURM's variables are about this process: not those of a shell of somebody's own in an allocation."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
