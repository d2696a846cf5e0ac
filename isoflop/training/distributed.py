"""The processes that train one run together: each takes a part of every batch, and gradients are summed.

One sum a flat gradient, in the same layout at every step, so that a run that was killed and resumed has the very sums
of one that was not; buckets that are built anew after each start would not.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import atexit
import datetime
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from isoflop.node import is_job

TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others in a sum before it gives up."""

SLOW_TIMEOUT = datetime.timedelta(hours=2)
"""The same while one of them may be writing a checkpoint, to a disk that may be slow."""

RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

FIRST_PORT, PORTS = 20_000, 12_768
"""Where processes meet: below 32768, where Linux begins to give ports to connections that name none."""

PORT_S = 60.0
"""How long the first process tries to have a port that is taken."""

GONE = ("Connection closed", "Socket closed", "Read error", "writev")
"""What gloo says of a connection whose other end is gone; of one that is only slow it says a time."""

NCCL_GONE = ("ncclRemoteError", "remote process exit", "communicator was aborted")


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run; alone by default, and then nothing is sent.

    Attributes:
        rank: its number.
        size: how many they are.
        local: its number among those of its machine.
        store: what they share beside sums; None where it is alone.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    store: dist.Store | None = None
    _waits: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

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

    def of_first(self, number: int) -> int:
        """A whole number as the first process has it, however long that one takes to find it."""
        if self.size == 1:
            return number
        self.wait()
        shared = torch.tensor(number, dtype=torch.int64, device=self._device)
        dist.broadcast(shared, 0)
        return int(shared)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, stacked by rank: (ranks, ...)."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def wait(self) -> None:
        """Until all processes are here, however long one of them writes: in a sum the others would give up."""
        if self.store is not None:
            number = next(self._waits)
            if self.store.add(f"isoflop/here/{number}", 1) == self.size:
                self.store.set(f"isoflop/all/{number}", "")
            self.store.wait([f"isoflop/all/{number}"], SLOW_TIMEOUT)

    @property
    def _device(self) -> str:
        return "cuda" if dist.get_backend() == "nccl" else "cpu"


ALONE = Ranks()


def is_end_of_another(error: Exception) -> bool:
    """Whether an error only says that another process is gone: not why, which that one or SLURM knows."""
    if isinstance(error, dist.DistBackendError):
        return any(words in str(error) for words in NCCL_GONE)
    if isinstance(error, dist.DistNetworkError):
        return True  # the store of the first process
    return (
        isinstance(error, RuntimeError)
        and "/gloo/" in str(error)
        and any(words in str(error) for words in GONE)
    )


def join(on_gpus: bool = True) -> Ranks:
    """Meets the other processes of this job as SLURM and submitit name them; alone where there are no others.

    Args:
        on_gpus: take a GPU each, where there are any; else leave them to the programs that the processes start.
    """
    if not is_job() or int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        return Ranks()
    import submitit

    for name in RENDEZVOUS:  # of another job, which this one was submitted from
        os.environ.pop(name, None)
    # Each process sees the GPUs that SLURM gives it, and the program that it may start gets them all.
    found = submitit.helpers.TorchDistributedEnvironment()
    again = int(
        os.environ.get("SLURM_RESTART_COUNT", 0)
    )  # the last start of a job may still hold its own port
    found.master_port = FIRST_PORT + (found.master_port + again) % PORTS
    found.export(set_cuda_visible_devices=False)
    store = _store(found.master_addr, found.master_port, found.world_size, found.rank == 0)
    return meet(
        store,
        found.rank,
        found.world_size,
        found.local_rank,
        nccl=on_gpus and torch.cuda.is_available(),
    )


def _store(address: str, port: int, size: int, first: bool) -> dist.Store:
    """What the processes of a job share, which the first of them serves.

    Raises:
        DistNetworkError: the port stays taken.
    """
    limit = time.monotonic() + PORT_S
    while True:
        try:
            return dist.TCPStore(address, port, size, first, TIMEOUT)
        except dist.DistNetworkError as error:
            if "EADDRINUSE" not in str(error) or time.monotonic() > limit:
                raise
            time.sleep(1.0)


def meet(store: dist.Store, rank: int, size: int, local: int, *, nccl: bool = False) -> Ranks:
    """Meets the other processes of a run.

    Args:
        store: what they share.
        rank: of this process.
        size: how many they are.
        local: of this process among those of its machine.
        nccl: it has a GPU. Where all have one, they talk by NCCL; else over the network, by gloo.
    """
    ranks = Ranks(rank, size, local, store)
    store.add("isoflop/gpus", int(nccl))
    ranks.wait()
    if nccl := store.add("isoflop/gpus", 0) == size:
        torch.cuda.set_device(local % torch.cuda.device_count())
    dist.init_process_group(
        "nccl" if nccl else "gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT
    )
    if not nccl:  # threads that gloo leaves behind may end the process with SIGABRT; NCCL's end waits for the others
        atexit.register(dist.destroy_process_group)
    return ranks
