"""Schema of a sweep's section `train`: trainer, optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from isoflop.config.validation import format_value, require

Logger = Literal["tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Cautious AdamC. Its peak learning rate and beta2 come from the recipe.

    The defaults are those of SODA's sweep.

    Attributes:
        name: the optimizer; cautious AdamC.
        beta1: decay rate of the first moment.
        eps: constant that is added to the root of the second moment.
        weight_decay: factor of the decay of the weights.
        grad_clip: largest norm of the gradient.
    """

    name: Literal["cautious-adamc"] = "cautious-adamc"
    beta1: float = 0.95
    eps: float = 1e-15
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.beta1 < 1, "beta1", f"expected 0 or more and under 1, got {self.beta1:g}")
        require(self.eps > 0, "eps", f"expected a number above 0, got {self.eps:g}")
        require(
            self.weight_decay >= 0, "weight_decay", f"expected 0 or more, got {self.weight_decay:g}"
        )
        require(self.grad_clip > 0, "grad_clip", f"expected a norm above 0, got {self.grad_clip:g}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over a run.

    Attributes:
        name: linear warm-up, constant rate, linear decay.
        warmup: share of the steps with rising learning rate.
        decay: share of the steps with falling learning rate.
        min_lr_ratio: last learning rate as a share of the peak.
    """

    name: Literal["wsd"] = "wsd"
    warmup: float = 0.1
    decay: float = 0.2
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "min_lr_ratio"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, f"expected a share from 0 to 1, got {value:g}")
        total = self.warmup + self.decay
        require(
            total <= 1 + 1e-9,
            "decay",
            f"warmup and decay add up to {total:g}; they share one run, so at most 1",
        )


@dataclass(frozen=True, kw_only=True)
class Train:
    """Training of a model.

    Attributes:
        optimizer: the optimizer.
        schedule: the learning rate over a run.
        z_loss: weight of the squared log-partition term of the loss.
        trainer: `builtin`; `{command: "PROGRAM ..."}` for an external program; `{simulated: LAW}`
            for losses drawn from a law.
        precision: `fp32`, `bf16`, or `auto`: bf16 on a GPU and fp32 on a CPU.
        deterministic: use only kernels whose sums repeat bit for bit on a GPU (untested on GPUs).
            Not part of a run's identity; may be changed at any time.
        lr_scale: factor on the recipe's learning rate.
        batch_scale: factor on the recipe's batch, a power of two.
        evals: number of held-out measurements in a run; the last one follows the last step.
        log_points: rows of the loss log for each split.
        checkpoint_minutes: minutes between checkpoints. Not part of a run's identity; may be
            changed at any time.
        loggers: `tensorboard`, `wandb`: programs that also show the loss log of the builtin
            trainer. Not part of a run's identity; a change counts from the next start of a run.
    """

    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    z_loss: float = 0.0
    trainer: str = "builtin"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: bool = False
    lr_scale: float = 1.0
    batch_scale: float = 1.0
    evals: int = 4
    log_points: int = 200
    checkpoint_minutes: float = 10.0
    loggers: tuple[Logger, ...] = ()

    def __post_init__(self) -> None:
        require(self.z_loss >= 0, "z_loss", f"expected 0 or more, got {self.z_loss:g}")
        kind, _, argument = self.trainer.partition(":")
        is_known = self.trainer == "builtin" or (
            kind in ("command", "simulated") and bool(argument.strip())
        )
        require(
            is_known,
            "trainer",
            'expected builtin, "command: PROGRAM ..." or "simulated: LAW", got '
            f"{format_value(self.trainer)}",
        )
        require(
            0 < self.lr_scale <= 1e6,
            "lr_scale",
            f"expected a factor above 0 and up to 1e6, got {self.lr_scale:g}",
        )
        is_power_of_two = (
            2**-20 <= self.batch_scale <= 2**20 and math.frexp(self.batch_scale)[0] == 0.5
        )
        require(
            is_power_of_two,
            "batch_scale",
            f"expected a power of two such as 0.5 or 2, got {self.batch_scale:g}",
        )
        require(self.evals >= 1, "evals", f"expected 1 or more, got {self.evals}")
        require(self.log_points >= 1, "log_points", f"expected 1 or more, got {self.log_points}")
        minutes = self.checkpoint_minutes
        require(minutes > 0, "checkpoint_minutes", f"expected a number above 0, got {minutes:g}")
        require(
            len(set(self.loggers)) == len(self.loggers),
            "loggers",
            "one is given twice; leave one out",
        )
        require(
            not (self.loggers and kind == "command"),
            "loggers",
            "an external program does its own logging; leave it out",
        )

    @property
    def program(self) -> tuple[str, str]:
        """Return the trainer and its argument, e.g. `("simulated", "soda")`."""
        kind, _, argument = self.trainer.partition(":")
        return kind, argument.strip()

    @property
    def starts_processes(self) -> bool:
        """Return True if the trainer is one process per node, which starts its own processes.

        The builtin trainer is one process per GPU.
        """
        return self.program[0] != "builtin"
