"""The processes that train one run together: each takes a part of every batch, and gradients are summed.

One sum a flat gradient, in the same layout at every step, so that a run that was killed and resumed has the very sums
of one that was not; buckets that are built anew after each start would not.
"""

from __future__ import annotations

import atexit
import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others before it gives up."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run; alone by default, and then nothing is sent."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, *tensors: Tensor) -> None:
        """Replaces tensors by their sums over all processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is set in any process: all processes get the same answer."""
        if self.size == 1:
            return list(flags)
        both = torch.tensor(flags, dtype=torch.int32, device=self._device)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return [bool(flag) for flag in both.tolist()]

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, stacked by rank: (ranks, ...)."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    @property
    def _device(self) -> str:
        return "cuda" if dist.get_backend() == "nccl" else "cpu"


ALONE = Ranks()


def join(on_gpus: bool = True) -> Ranks:
    """Meets the other processes of this job as SLURM and submitit name them; alone where there are no others.

    Args:
        on_gpus: take a GPU each, where there are any; else leave them to the programs that the processes start.
    """
    if int(os.environ.get("SLURM_NTASKS", 1)) == 1 or "SLURM_PROCID" not in os.environ:
        return Ranks()
    import submitit

    found = submitit.helpers.TorchDistributedEnvironment().export()
    return meet(found.rank, found.world_size, found.local_rank, nccl=on_gpus and torch.cuda.is_available())


def meet(rank: int, size: int, local: int, place: str = "env://", *, nccl: bool = False) -> Ranks:
    """Meets the other processes of a run.

    Args:
        rank: of this process.
        size: how many they are.
        local: of this process among those of its machine.
        place: where, as `init_process_group` names it.
        nccl: each has a GPU of its own, by which they talk; else they talk over the network (gloo).
    """
    if nccl:
        torch.cuda.set_device(local % torch.cuda.device_count())
    dist.init_process_group("nccl" if nccl else "gloo", place, timeout=TIMEOUT, rank=rank, world_size=size)
    if not nccl:  # threads that gloo leaves behind may end the process with SIGABRT; NCCL's end waits for the others
        atexit.register(dist.destroy_process_group)
    return Ranks(rank, size, local)
