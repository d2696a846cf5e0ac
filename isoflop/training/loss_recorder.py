"""What a run leaves in its loss log, and the pace at which it does."""

from __future__ import annotations

import math
import time
from typing import Any

from isoflop.errors import RunError
from isoflop.runs.loss_log import log_row
from isoflop.runs.run_directory import RunDirectory
from isoflop.shapes import ModelShape
from isoflop.training.loggers import Loggers

Means = dict[str, tuple[int, float]]
"""Targets and mean loss of every kind that there was: `Tally.means`."""


def is_row(config: dict[str, Any], step: int) -> bool:
    """Whether a run's log has training rows for a step."""
    steps = config["run"]["steps"]
    return step % max(1, steps // config["log_points"]) == 0 or step == steps


def is_eval(config: dict[str, Any], step: int) -> bool:
    """Whether held-out loss is measured after a step."""
    steps, evals = config["run"]["steps"], config["evals"]
    return any(step == math.ceil(steps * k / evals) for k in range(1, evals + 1))


def check_log(run: RunDirectory, config: dict[str, Any], step: int) -> None:
    """The log up to a step that a run resumes from must be whole: a part that somebody removed can't be written again.

    Raises:
        RunError: rows that are missing.
    """
    logged = run.log()
    for split, wanted in (("train", is_row), (config["metric"]["set"], is_eval)):
        rows = set(logged.loc[(logged["split"] == split) & (logged["kind"] == "all"), "step"])
        missing = [
            earlier
            for earlier in range(1, step + 1)
            if wanted(config, earlier) and earlier not in rows
        ]
        if missing:
            raise RunError(
                f"{run.path / 'loss'}: no {split} rows for step {missing[0]}, which the run has passed; "
                f"restore them, or delete {run.path} to start the run again"
            )


class Record:
    """The rows of a run that are not written yet, since this process began or wrote the last.

    Attributes:
        loss: training loss of the last rows; None before the first.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: dict[str, Any],
        shape: ModelShape,
        peak: float,
        loggers: Loggers,
        writes: bool,
        step: int,
        wall_s: float,
    ) -> None:
        """From now on.

        Args:
            run: whose log it is.
            config: its configuration.
            shape: of its model.
            peak: FLOP/s of all its GPUs.
            loggers: who shows the rows too.
            writes: whether this is the process that does.
            step: that it goes on from.
            wall_s: spent on it before.
        """
        self.run, self.shape, self.peak, self.loggers, self.writes = (
            run,
            shape,
            peak,
            loggers,
            writes,
        )
        self.config = config
        self.batch_size: int = config["run"]["batch_size"]
        self.rows: list[dict[str, Any]] = []
        self.loss: float | None = None
        self.speed: float | None = None
        self.began = self.row_began = time.monotonic()
        self.row_step, self.earlier_s = step, wall_s

    def train(self, step: int, lr: float, means: Means, grad_norm: float) -> bool:
        """Adds rows for the steps since the last ones; whether their loss was finite."""
        now = time.monotonic()
        tokens = (step - self.row_step) * self.batch_size * self.shape.seq_len
        self.speed = tokens / max(now - self.row_began, 1e-9)
        self._add(step, "train", lr, means, grad_norm=grad_norm, tokens_per_second=self.speed)
        self.row_began, self.row_step, self.loss = now, step, means["all"][1]
        return math.isfinite(self.loss) and math.isfinite(grad_norm)

    def heldout(self, step: int, lr: float, means: Means, began: float) -> bool:
        """Adds rows of held-out loss, whose measurement began at a time; whether it was finite."""
        nan = float("nan")
        self._add(
            step, self.config["metric"]["set"], lr, means, grad_norm=nan, tokens_per_second=nan
        )
        self.row_began += time.monotonic() - began  # the training rows' speed is that of training
        return math.isfinite(means["all"][1])

    def _add(
        self,
        step: int,
        split: str,
        lr: float,
        means: Means,
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
            mfu=tokens_per_second * self.shape.train_flops_per_token / self.peak,
            wall_s=self.wall_s(),
        )
        rows = [
            {**common, "kind": kind, "targets": n, "loss": loss}
            for kind, (n, loss) in means.items()
        ]
        self.rows += rows
        self.loggers.log(rows)

    def write(self) -> None:
        """Puts the rows into the run's log."""
        if self.writes:
            self.run.append_log(self.rows)
        self.rows = []

    def wall_s(self) -> float:
        """Seconds spent on the run so far, by all that trained it."""
        return self.earlier_s + time.monotonic() - self.began

    def pace(self) -> dict[str, Any]:
        """Speed of the last rows, and time spent so far, for who looks from outside."""
        return {"tokens_per_second": self.speed, "wall_s": self.wall_s()}
