"""The rows of a run's loss log: their steps, their contents, and the speed that they report."""

from __future__ import annotations

import math
import time
from typing import Any

from isoflop.errors import RunError
from isoflop.runs.loss_log import log_row
from isoflop.runs.run_directory import RunDirectory
from isoflop.shapes import ModelShape
from isoflop.training.loggers import Loggers
from isoflop.training.run_config import RunConfig

MeanLosses = dict[str, tuple[int, float]]
"""Number of targets and their mean loss, by kind: `LossSums.means`."""


def is_log_step(config: RunConfig, step: int) -> bool:
    """Return whether the log of a run has training rows for a step."""
    steps = config["run"]["steps"]
    return step % max(1, steps // config["log_points"]) == 0 or step == steps


def is_eval_step(config: RunConfig, step: int) -> bool:
    """Return whether the held-out loss is measured after a step."""
    steps, evals = config["run"]["steps"], config["evals"]
    return any(step == math.ceil(steps * k / evals) for k in range(1, evals + 1))


def check_log(run: RunDirectory, config: RunConfig, step: int) -> None:
    """Check that the log is complete up to the step from which a run resumes.

    Rows that somebody removed can't be written again.

    Raises:
        RunError: rows that are missing.
    """
    logged = run.log()
    for split, has_rows in (("train", is_log_step), (config["metric"]["set"], is_eval_step)):
        rows = set(logged.loc[(logged["split"] == split) & (logged["kind"] == "all"), "step"])
        missing = [
            earlier
            for earlier in range(1, step + 1)
            if has_rows(config, earlier) and earlier not in rows
        ]
        if missing:
            raise RunError(
                f"{run.path / 'loss'}: no {split} rows for step {missing[0]}, although the run is "
                f"past it; restore them, or delete {run.path} to restart the run"
            )


class LossRecorder:
    """Recorder of a run's losses: keeps rows, shows them to loggers and writes them to the log.

    Args:
        run: directory of the run.
        config: its configuration.
        shape: shape of its model.
        peak_flops: FLOP/s of all its GPUs; NaN if not known.
        loggers: loggers that show the rows.
        writes: whether this process writes the log.
        step: step from which this process continues the run.
        wall_s: seconds spent on the run before.

    Attributes:
        loss: training loss of the last rows; None before the first.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        shape: ModelShape,
        peak_flops: float,
        loggers: Loggers,
        writes: bool,
        step: int,
        wall_s: float,
    ) -> None:
        self.run, self.config, self.shape = run, config, shape
        self.peak_flops, self.loggers, self.writes = peak_flops, loggers, writes
        self.batch_size = config["run"]["batch_size"]
        self.rows: list[dict[str, Any]] = []
        self.loss: float | None = None
        self.tokens_per_second: float | None = None
        self.start_time = self.row_start_time = time.monotonic()
        self.row_step, self.previous_wall_s = step, wall_s

    def add_training_rows(self, step: int, lr: float, means: MeanLosses, grad_norm: float) -> bool:
        """Add rows for the steps since the last ones; return whether loss and norm are finite."""
        now = time.monotonic()
        tokens = (step - self.row_step) * self.batch_size * self.shape.seq_len
        self.tokens_per_second = tokens / max(now - self.row_start_time, 1e-9)
        self._add(
            step,
            "train",
            lr,
            means,
            grad_norm=grad_norm,
            tokens_per_second=self.tokens_per_second,
        )
        self.row_start_time, self.row_step, self.loss = now, step, means["all"][1]
        return math.isfinite(self.loss) and math.isfinite(grad_norm)

    def add_heldout_rows(self, step: int, lr: float, means: MeanLosses, start_time: float) -> bool:
        """Add rows of held-out loss; return whether it is finite.

        The measurement began at `start_time` (`time.monotonic`). Its duration does not count in the
        speed of training.
        """
        nan = float("nan")
        self._add(
            step, self.config["metric"]["set"], lr, means, grad_norm=nan, tokens_per_second=nan
        )
        self.row_start_time += time.monotonic() - start_time
        return math.isfinite(means["all"][1])

    def _add(
        self,
        step: int,
        split: str,
        lr: float,
        means: MeanLosses,
        *,
        grad_norm: float,
        tokens_per_second: float,
    ) -> None:
        common = log_row(
            self.shape,
            self.batch_size,
            step,
            split=split,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=tokens_per_second,
            mfu=tokens_per_second * self.shape.train_flops_per_token / self.peak_flops,
            wall_s=self.wall_s(),
        )
        rows = [
            {**common, "kind": kind, "targets": count, "loss": loss}
            for kind, (count, loss) in means.items()
        ]
        self.rows += rows
        self.loggers.log(rows)

    def write(self) -> None:
        """Move the rows to the run's log."""
        if self.writes:
            self.run.append_log(self.rows)
        self.rows = []

    def wall_s(self) -> float:
        """Return the seconds spent on the run so far, in all attempts."""
        return self.previous_wall_s + time.monotonic() - self.start_time

    def speed_fields(self) -> dict[str, Any]:
        """Return the fields of `state.json` for the speed of the last rows and the time spent."""
        return {"tokens_per_second": self.tokens_per_second, "wall_s": self.wall_s()}
