"""What the device decides: Fabric, its peak FLOP/s, and how much of a batch goes through at once."""

from __future__ import annotations

import logging
import math
import os
import warnings

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning_utilities.core import rank_zero

from isoflop.errors import RunError
from isoflop.node import is_job, node_name
from isoflop.planning.gpu_specs import find_gpu
from isoflop.planning.sizing import fit_memory
from isoflop.shapes import ModelShape

log = logging.getLogger("isoflop")

CPU_MICRO_TOKENS = 4096

COMPILED_FROM_FLOPS = 1e16
"""Training FLOPs of a run from which compiling pays: some 10 seconds of each start for 1.4 to 2 times the speed."""


def make_fabric(precision: str, local_rank: int = 0) -> Fabric:
    """Fabric for one device: a GPU with bf16 where there is one, else the CPU with fp32; `precision` may pin it."""
    cuda = torch.cuda.is_available()
    if cuda:
        rank_zero.log.setLevel(
            logging.WARNING
        )  # Lightning's: it tells of the precision at every start
    chosen = ("bf16" if cuda else "fp32") if precision == "auto" else precision
    plugin = {"bf16": "bf16-mixed", "fp32": "32-true"}[chosen]
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=[local_rank % torch.cuda.device_count()] if cuda else 1,
        precision=plugin,  # type: ignore[arg-type]
        plugins=LightningEnvironment(),  # else Fabric takes what SLURM set for the job this runs in, or warns of srun
    )


def repeat_sums(deterministic: bool) -> None:
    """Whether a GPU takes only kernels whose sums repeat bit for bit; those of a CPU always do."""
    if torch.cuda.is_available():
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # PyTorch asks for it; read when CUDA starts
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_gpus() -> None:
    """A job that was given GPUs must see one: on a CPU it would hold them for weeks.

    Raises:
        RunError: torch sees none.
    """
    given = os.environ.get("SLURM_GPUS_ON_NODE", "0") if is_job() else "0"
    if given != "0" and not torch.cuda.is_available():
        raise RunError(
            f"SLURM gave this job {given} GPUs on {node_name()}, and torch {torch.__version__} sees none: is "
            "it a build for CPUs, or is the driver older than it asks for? See nvidia-smi there, and `isoflop doctor`"
        )


def use_one_core() -> None:
    """One thread a process where there is no GPU: several runs share a machine, and sums repeat bit for bit."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def peak_flops(device: torch.device) -> float:
    """Dense bf16 FLOP/s of a GPU that is known; NaN for others, so that their `mfu` is empty."""
    if device.type == "cuda":
        gpu = find_gpu(torch.cuda.get_device_name(device))
        return gpu.peak_flops if gpu else float("nan")
    return float("nan")


def may_compile(device: torch.device, train_flops: float) -> bool:
    """Whether a run's model is compiled: a long run on a GPU of a machine where torch.compile works, and may.

    `TORCH_COMPILE_DISABLE=1` in the environment, which is PyTorch's own switch, forbids it.
    """
    return device.type == "cuda" and train_flops >= COMPILED_FROM_FLOPS and compiles_on(device)


def compiles_on(device: torch.device) -> bool:
    """Whether torch.compile may and can be used; where it can't, the log says why."""
    import torch._dynamo
    import torch._inductor.config

    if torch._dynamo.config.disable:
        return False
    torch._dynamo.reset()  # a worker's runs before this one don't count towards its limit on versions of a function
    torch._inductor.config.deterministic = (
        True  # else timings choose among kernels, and a resumed run has others
    )
    warnings.filterwarnings(
        "ignore", "TensorFloat32 tensor cores"
    )  # what is in float32 is meant to be
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as problem:
        log.warning(
            "torch.compile does not work here, and training is up to twice as slow: %s; "
            "install a C compiler (gcc) on the node, or set TORCH_COMPILE_DISABLE=1 to do without",
            str(problem).partition("\n")[0].rstrip("."),
        )
        return False
    return True


def micro_batch(
    shape: ModelShape,
    batch_size: int,
    device: torch.device,
    compiled: bool = False,
    bytes_per_value: int = 2,
) -> tuple[int, bool]:
    """Sequences of a batch that go through at once, and whether with activation checkpointing.

    On a CPU a number that keeps the logits in cache, and that depends on nothing but the shape, so that sums repeat bit
    for bit; on a GPU what the planner takes its memory to hold.

    Raises:
        RunError: a model that the GPU can't hold.
    """
    if device.type != "cuda":
        parts = math.ceil(batch_size / max(1, CPU_MICRO_TOKENS // shape.seq_len))
        return math.ceil(batch_size / parts), False
    memory = torch.cuda.get_device_properties(device).total_memory
    fit = fit_memory(shape, batch_size, memory, compiled, bytes_per_value)
    if fit is None:
        raise RunError(
            f"{shape.params_total:,} parameters don't fit into this GPU's {memory / 1e9:.0f} GB; "
            "train them on a larger GPU, or leave this width out"
        )
    return fit.micro_batch, fit.checkpointing
