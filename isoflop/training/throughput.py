"""Training speed and memory of a run, measured over a few timed steps of the real trainer."""

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
from isoflop.training.distributed import SINGLE_PROCESS, Ranks
from isoflop.training.loop import Trainer

WARM_UP_STEPS = 3
"""Steps that don't count: the first ones allocate memory and choose kernels."""

TIMED_INTERVALS = 5
MAX_INTERVAL_STEPS = 10_000


def measure(
    run: RunDirectory, root: Path, seconds: float, gpus: int = 0, ranks: Ranks = SINGLE_PROCESS
) -> Measurement:
    """Train a run for some seconds, write one checkpoint, and remove all traces.

    Args:
        run: a directory that `RunDirectory.create` made, of many steps.
        root: folder that holds `data/`.
        seconds: approximate duration; at least `WARM_UP_STEPS` + `TIMED_INTERVALS` steps are taken.
        gpus: number of GPUs that the plan gives the run; 0 for whatever the machine has.
        ranks: processes that train the run together.

    Returns:
        Median tokens a second of `TIMED_INTERVALS` intervals; memory of the process that held the
        most; time of the checkpoint.

    Raises:
        RunError: fewer GPUs than the plan gives the run.
    """
    visible = ranks.size if torch.cuda.is_available() else 0
    if gpus and visible != gpus:
        raise RunError(
            f"the job requests {gpus} GPUs, but its processes find {visible}; run `isoflop doctor`"
        )
    _reset_peak_memory()
    trainer = _TimedTrainer(run, root, ranks)
    step_s = trainer.step_seconds(seconds)
    memory, save_s = int(trainer.max_over_ranks(_peak_memory_bytes())), trainer.save_seconds()
    tokens_per_second = trainer.order.batch_size * trainer.shape.seq_len / step_s
    gpu = trainer.fabric.device.type == "cuda"
    micro_batch, checkpointing = trainer.micro_batches.size, trainer.model.checkpointing
    mfu = tokens_per_second * trainer.shape.train_flops_per_token / trainer.peak_flops
    return Measurement(
        shape=trainer.shape,
        gpus=gpus,
        batch_size=trainer.order.batch_size,
        micro_batch=micro_batch,
        checkpointing=checkpointing,
        tokens_per_second=tokens_per_second,
        mfu=mfu if mfu == mfu else None,
        memory_bytes=memory,
        save_seconds=save_s,
        measured=time.time(),
        device=torch.cuda.get_device_name(trainer.fabric.device) if gpu else _cpu_name(),
    )


class _TimedTrainer(Trainer):
    """A trainer that only takes steps and saves a checkpoint, and times them."""

    def step_seconds(self, seconds: float) -> float:
        """Return the median seconds a step over intervals that together take about `seconds`.

        All ranks take the same steps.
        """
        *_, last = (self._time(1) for _ in range(WARM_UP_STEPS))
        interval_steps = seconds / TIMED_INTERVALS / max(self.max_over_ranks(last), 1e-9)
        steps = min(MAX_INTERVAL_STEPS, max(1, round(interval_steps)))
        return self.max_over_ranks(
            statistics.median(self._time(steps) / steps for _ in range(TIMED_INTERVALS))
        )

    def _time(self, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            self._update()
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        return time.perf_counter() - start

    def save_seconds(self) -> float:
        """Return the seconds that training waits for a checkpoint, which is then removed."""
        start = time.perf_counter()
        if self.ranks.first:
            self._save_checkpoint()
        self.ranks.barrier()
        duration = time.perf_counter() - start
        if self.ranks.first:
            shutil.rmtree(self.run.checkpoints)
        return self.max_over_ranks(duration)

    def max_over_ranks(self, value: float) -> float:
        return float(self.ranks.gather(torch.tensor(float(value), device=self.fabric.device)).max())


# Memory


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        # If the kernel can't reset it, the peak is that of the largest model so far.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes() -> int:
    """Return the peak of CUDA's allocator; without a GPU the peak of resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _cpu_name() -> str:
    """Return the model name of the CPU from the kernel, or else the machine's architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
