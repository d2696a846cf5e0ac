"""Choices that depend on the device: Fabric, peak FLOP/s, compilation and micro-batch size."""

from __future__ import annotations

import logging
import math
import os
import warnings

import torch
from lightning_utilities.core import rank_zero

from isoflop.errors import RunError
from isoflop.node import is_job, node_name
from isoflop.planning.gpu_specs import find_gpu
from isoflop.planning.sizing import fit_memory
from isoflop.shapes import ModelShape
from isoflop.text import bytes_text, count_text
from isoflop.training.fabric import Fabric, LightningEnvironment

log = logging.getLogger("isoflop")

CPU_MICRO_BATCH_TOKENS = 4096

MIN_COMPILED_FLOPS = 1e16
"""Training FLOPs of a run from which compilation pays: some 10 seconds of each start for 1.4 to 2
times the speed."""


def make_fabric(precision: str, local_rank: int = 0) -> Fabric:
    """Return Fabric for one device: a GPU with bf16 if there is one, else the CPU with fp32.

    A `precision` other than `auto` replaces that of the device.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        rank_zero.log.setLevel(logging.WARNING)  # Lightning logs the precision at every start
    chosen = ("bf16" if cuda else "fp32") if precision == "auto" else precision
    plugin = {"bf16": "bf16-mixed", "fp32": "32-true"}[chosen]
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=[local_rank % torch.cuda.device_count()] if cuda else 1,
        precision=plugin,  # type: ignore[arg-type]
        # Without it Fabric reads SLURM's variables of the surrounding job, or warns about srun.
        plugins=LightningEnvironment(),
    )


def set_deterministic(deterministic: bool) -> None:
    """Restrict a GPU to kernels with sums that repeat bit for bit, or lift the restriction.

    Sums on a CPU always repeat.
    """
    if torch.cuda.is_available():
        # PyTorch requires it; it is read when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_gpus() -> None:
    """Check that a job with GPUs has one that torch can use: on a CPU it would hold them for weeks.

    Raises:
        RunError: torch finds none.
    """
    allocated = os.environ.get("SLURM_GPUS_ON_NODE", "0") if is_job() else "0"
    if allocated != "0" and not torch.cuda.is_available():
        raise RunError(
            f"SLURM gave this job {allocated} GPUs on {node_name()}, but torch {torch.__version__} "
            "finds none: either it is a build for CPUs, or the driver is older than it requires; "
            "run nvidia-smi on that node, and `isoflop doctor`"
        )


def use_one_core() -> None:
    """Use one thread a process on a machine without a GPU.

    Several runs share such a machine, and the sums of one thread repeat bit for bit.
    """
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def peak_flops(device: torch.device) -> float:
    """Return the dense bf16 FLOP/s of a GPU with known specifications; NaN for other devices.

    The `mfu` of a run is empty where this is NaN.
    """
    if device.type == "cuda":
        gpu = find_gpu(torch.cuda.get_device_name(device))
        return gpu.peak_flops if gpu else float("nan")
    return float("nan")


def should_compile(device: torch.device, train_flops: float) -> bool:
    """Return whether to compile a run's model: a long run on a GPU where torch.compile works."""
    return device.type == "cuda" and train_flops >= MIN_COMPILED_FLOPS and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile works and is allowed; log the reason if it does not work.

    PyTorch's own switch forbids it: `TORCH_COMPILE_DISABLE=1` in the environment.
    """
    import torch._dynamo
    import torch._inductor.config

    if torch._dynamo.config.disable:
        return False
    # A worker's earlier runs must not count towards the limit on versions of a function.
    torch._dynamo.reset()
    # Else timings choose among kernels, and a resumed run may get others.
    torch._inductor.config.deterministic = True
    # Operations in float32 are in float32 on purpose.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as problem:
        log.warning(
            "torch.compile does not work on this machine, so training is up to twice as slow: %s; "
            "install a C compiler (gcc) on the node, or set TORCH_COMPILE_DISABLE=1 to train "
            "without it",
            str(problem).partition("\n")[0].rstrip("."),
        )
        return False
    return True


def choose_micro_batch(
    shape: ModelShape,
    batch_size: int,
    device: torch.device,
    compiled: bool = False,
    bytes_per_value: int = 2,
) -> tuple[int, bool]:
    """Return the sequences of a batch to process at once, and whether to checkpoint activations.

    On a CPU the number keeps the logits in cache. It depends on nothing but the shape, so that sums
    repeat bit for bit. On a GPU it is the number that fits into memory by the planner's estimate.

    Raises:
        RunError: a model that the GPU can't hold.
    """
    if device.type != "cuda":
        parts = math.ceil(batch_size / max(1, CPU_MICRO_BATCH_TOKENS // shape.seq_len))
        return math.ceil(batch_size / parts), False
    memory = torch.cuda.get_device_properties(device).total_memory
    fit = fit_memory(shape, batch_size, memory, compiled, bytes_per_value)
    if fit is None:
        raise RunError(
            f"a model of {count_text(shape.params_total)} parameters does not fit into the "
            f"{bytes_text(memory)} of this GPU; train it on a larger GPU, or leave this width out"
        )
    return fit.micro_batch, fit.checkpointing
