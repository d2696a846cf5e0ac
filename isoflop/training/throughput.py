"""How fast a run trains, and in how much memory: a few steps of the very trainer, timed."""

from __future__ import annotations

import contextlib
import platform
import shutil
import statistics
import time
from pathlib import Path

import torch

from isoflop.errors import RunError
from isoflop.planning.calibration import Measurement
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.distributed import ALONE, Ranks
from isoflop.training.loop import Trainer

WARM_UP = 3
"""Steps that don't count: the first ones allocate, and choose kernels."""

PARTS = 5
MOST_STEPS = 10_000


def measure(
    run: RunDirectory, root: Path, seconds: float, gpus: int = 0, ranks: Ranks = ALONE
) -> Measurement:
    """Trains a run for a while, writes one checkpoint of it, and leaves nothing.

    Args:
        run: a directory that `RunDirectory.create` made, of many steps.
        root: folder that holds `data/`.
        seconds: about how long; at least `WARM_UP` + `PARTS` steps.
        gpus: that the plan gives the run; 0 for what the machine has.
        ranks: the processes that train the run together.

    Returns:
        Tokens a second of the median of `PARTS` parts; memory of the process that held the most; the time of the
        checkpoint.

    Raises:
        RunError: fewer GPUs than the plan gives the run.
    """
    seen = ranks.size if torch.cuda.is_available() else 0
    if gpus and seen != gpus:
        raise RunError(
            f"the job asks for {gpus} GPUs, and its processes see {seen}; see `isoflop doctor`"
        )
    _forget_peak()
    bench = _Bench(run, root, ranks)
    step_s = bench.step_seconds(seconds)
    memory, save_s = int(bench.highest(_peak_bytes())), bench.save_seconds()
    speed = bench.order.batch_size * bench.shape.seq_len / step_s
    gpu = bench.fabric.device.type == "cuda"
    micro, checkpointing = bench.micro, bench.model.checkpointing
    mfu = speed * bench.shape.train_flops_per_token / bench.peak
    return Measurement(
        shape=bench.shape,
        gpus=gpus,
        batch_size=bench.order.batch_size,
        micro_batch=micro,
        checkpointing=checkpointing,
        tokens_per_second=speed,
        mfu=mfu if mfu == mfu else None,
        memory_bytes=memory,
        save_seconds=save_s,
        measured=time.time(),
        device=torch.cuda.get_device_name(bench.fabric.device) if gpu else _cpu_name(),
    )


class _Bench(Trainer):
    """A trainer that only takes steps, and saves."""

    def step_seconds(self, seconds: float) -> float:
        """Seconds a step: the median of parts that together take about `seconds`, the same steps on all ranks."""
        *_, last = (self._time(1) for _ in range(WARM_UP))
        wanted = seconds / PARTS / max(self.highest(last), 1e-9)
        steps = min(MOST_STEPS, max(1, round(wanted)))
        return self.highest(statistics.median(self._time(steps) / steps for _ in range(PARTS)))

    def _time(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            self._update()
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        return time.perf_counter() - began

    def save_seconds(self) -> float:
        """Seconds that training waits for a checkpoint, which is removed."""
        began = time.perf_counter()
        if self.ranks.first:
            self._save_checkpoint()
        self.ranks.wait()
        took = time.perf_counter() - began
        if self.ranks.first:
            shutil.rmtree(self.run.checkpoints)
        return self.highest(took)

    def highest(self, value: float) -> float:
        """The largest of a value over the ranks."""
        return float(self.ranks.gather(torch.tensor(float(value), device=self.fabric.device)).max())


# Memory


def _forget_peak() -> None:
    """Begins to look for the most memory anew."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(
            OSError
        ):  # where the kernel can't, the peak is that of the largest model so far
            Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """The most that CUDA's allocator gave out; without a GPU the most that was resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _cpu_name() -> str:
    """As the kernel names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
