"""Data parallelism: each process of a run takes a share of every batch, and gradients are summed.

Each flat gradient is summed in one operation, with the same layout at every step. A run that was
killed and resumed therefore has exactly the sums of an undisturbed one. Buckets that are rebuilt
after each start would not repeat them.
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

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)
"""Longest wait for the other processes in a collective operation, such as a sum."""

BARRIER_TIMEOUT = datetime.timedelta(hours=2)
"""Longest wait at a barrier, where another process may be writing a checkpoint to a slow disk."""

RENDEZVOUS_VARIABLES = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
)

FIRST_PORT, PORT_COUNT = 20_000, 12_768
"""Ports for the rendezvous: below 32768, where Linux begins to give ports to connections that
request none."""

PORTS_PER_JOB = 8
"""Ports of a job, in turn for each start: its last start may still hold one. Jobs share ports only
if their ids differ by a multiple of 1,596. Submitit 1.5.4 draws a port from the id instead, which
two jobs on a node may have in common."""

PORT_TIMEOUT_S = 60.0
"""Longest wait of the first process for a port that is in use."""

GLOO_PEER_LOSS = ("Connection closed", "Socket closed", "Read error", "writev")
"""Texts in gloo's errors about a connection whose other end is gone; those about a slow one have
a time instead."""

NCCL_PEER_LOSS = ("ncclRemoteError", "remote process exit", "communicator was aborted")


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of its run; by default the only one, without communication.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process among those of its machine, from 0.
        store: key-value store that the processes share; None for a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: dist.Store | None = None
    _barriers: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def sum(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process; the same answer in all of them."""
        if self.size == 1:
            return list(flags)
        maxima = torch.tensor(flags, dtype=torch.int32, device=self._device)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return [bool(flag) for flag in maxima.tolist()]

    def broadcast(self, number: int) -> int:
        """Return the whole number of the first process, however long that one takes to find it."""
        if self.size == 1:
            return number
        self.barrier()
        shared = torch.tensor(number, dtype=torch.int64, device=self._device)
        dist.broadcast(shared, 0)
        return int(shared)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, stacked by rank: (ranks, ...)."""
        if self.size == 1:
            return tensor[None]
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(tensors, tensor)
        return torch.stack(tensors)

    def barrier(self, timeout: datetime.timedelta | None = None) -> None:
        """Wait for all processes, by default up to `BARRIER_TIMEOUT`.

        In a collective operation they would give up after `COLLECTIVE_TIMEOUT`.
        """
        if self.store is not None:
            number = next(self._barriers)
            if self.store.add(f"isoflop/here/{number}", 1) == self.size:
                self.store.set(f"isoflop/all/{number}", "")
            self.store.wait([f"isoflop/all/{number}"], timeout or BARRIER_TIMEOUT)

    @property
    def _device(self) -> str:
        return "cuda" if dist.get_backend() == "nccl" else "cpu"


SINGLE_PROCESS = Ranks()


def is_peer_loss(error: Exception) -> bool:
    """Return whether an error only reports that another process is gone.

    Such an error has no cause: the lost process or SLURM has it.
    """
    if isinstance(error, dist.DistBackendError):
        return any(text in str(error) for text in NCCL_PEER_LOSS)
    if isinstance(error, dist.DistNetworkError):
        return True  # the store of the first process
    return (
        isinstance(error, RuntimeError)
        and "/gloo/" in str(error)
        and any(text in str(error) for text in GLOO_PEER_LOSS)
    )


def join_job(on_gpus: bool = True) -> Ranks:
    """Connect this process to the others of its SLURM job, as SLURM and submitit number them.

    Return a single process if there are no others.

    Args:
        on_gpus: take a GPU each, if there are any; else leave them to the programs that the
            processes start.
    """
    if not is_job() or int(os.environ.get("SLURM_NTASKS", 1)) == 1:
        return Ranks()
    import submitit

    for name in RENDEZVOUS_VARIABLES:  # of another job, from which this one was submitted
        os.environ.pop(name, None)
    # Each process keeps the GPUs that SLURM gives it: a program that it may start gets them all.
    environment = submitit.helpers.TorchDistributedEnvironment()
    job_id = int(os.environ["SLURM_JOB_ID"])
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    environment.master_port = rendezvous_port(job_id, restarts)
    environment.export(set_cuda_visible_devices=False)
    store = _open_store(
        environment.master_addr,
        environment.master_port,
        environment.rank == 0,
        f"isoflop/{job_id}.{restarts}",
    )
    return connect(
        store,
        environment.rank,
        environment.world_size,
        environment.local_rank,
        nccl=on_gpus and torch.cuda.is_available(),
    )


def rendezvous_port(job_id: int, restarts: int) -> int:
    """Return the port at which the processes of a start of a SLURM job meet."""
    return FIRST_PORT + (PORTS_PER_JOB * job_id + restarts % PORTS_PER_JOB) % PORT_COUNT


def _open_store(address: str, port: int, first: bool, name: str) -> dist.Store:
    """Open the key-value store of a job's processes, which the first of them serves.

    Raises:
        DistNetworkError: a port that stays in use for `PORT_TIMEOUT_S`, or the store of another
            job.
    """
    limit = time.monotonic() + PORT_TIMEOUT_S
    while True:
        try:
            server = dist.TCPStore(
                address, port, None, first, COLLECTIVE_TIMEOUT, wait_for_workers=False
            )
            break
        except dist.DistNetworkError as error:
            if "EADDRINUSE" not in str(error) or time.monotonic() > limit:
                raise
            time.sleep(1.0)
    store = dist.PrefixStore(name, server)
    if first:
        store.set("open", "")
    else:
        try:
            store.wait(["open"], datetime.timedelta(seconds=PORT_TIMEOUT_S))
        except dist.DistStoreError:
            raise dist.DistNetworkError(f"{address}:{port} serves another job") from None
    return store


def connect(
    store: dist.Store, rank: int, size: int, local_rank: int, *, nccl: bool = False
) -> Ranks:
    """Connect this process to the other processes of its run.

    Args:
        store: key-value store that they share.
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process among those of its machine.
        nccl: whether this process has a GPU. If all have one, they communicate by NCCL, else over
            the network by gloo.
    """
    ranks = Ranks(rank, size, local_rank, store)
    store.add("isoflop/gpus", int(nccl))
    ranks.barrier(COLLECTIVE_TIMEOUT)
    if nccl := store.add("isoflop/gpus", 0) == size:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    dist.init_process_group(
        "nccl" if nccl else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    if not nccl:
        # Threads that gloo leaves behind may end the process with SIGABRT. The end of NCCL's group
        # would wait for the others.
        atexit.register(dist.destroy_process_group)
    return ranks
