"""Loggers that show the loss log, through Lightning's: TensorBoard and Weights & Biases (W&B).

They are for display only. A logger that fails is disabled with a warning, and the run continues.
At each start of a run its loggers get the whole log again, so that no row is missing and no step is
in them twice. TensorBoard gets a new event file from the first step on, which replaces the previous
one. W&B gets a new offline run of the same id; online, where the run continues, it gets the rows
that it lacks.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

from isoflop.errors import ConfigError
from isoflop.runs.run_directory import RunDirectory
from isoflop.training.run_config import RunConfig

MIN_VERSIONS = {"tensorboard": (2, 18), "wandb": (0, 28)}
"""Loggers by the name of their package, with the oldest versions that are known to work."""

LOGGERS_FOLDER = "loggers"

WANDB_START_TIMEOUT_S, WANDB_FINISH_TIMEOUT_S = 30, 15
"""Longest wait for W&B's server at the start and the end of a run; rows that it did not get by then
are on the disk."""

log = logging.getLogger("isoflop")


def check_installed(names: Iterable[str]) -> None:
    """Check that the packages of loggers are installed in this Python, in a recent version.

    Raises:
        ConfigError: a package that is missing or too old, with the command that installs it.
    """
    for name in names:
        try:
            installed = tuple(int(number) for number in version(name).split(".")[:2])
        except PackageNotFoundError:
            installed = (0, 0)
        if installed < MIN_VERSIONS[name]:
            major, minor = MIN_VERSIONS[name]
            problem = "too old" if any(installed) else "not installed"
            raise ConfigError(
                f"train.loggers: {name} is {problem}; leave it out, or run: "
                f"{sys.executable} -m pip install '{name}>={major}.{minor}'"
            )


class Loggers:
    """Loggers of a run in progress; a context manager that closes them.

    Args:
        run: directory of the run; its log so far is shown first.
        config: configuration of the run.
        first: whether this process is the first of the run; in others the loggers do nothing.

    Raises:
        ConfigError: a logger that is not installed or too old.
    """

    def __init__(self, run: RunDirectory, config: RunConfig, first: bool = True) -> None:
        names = config.get("loggers", ())
        check_installed(names)
        self._open: dict[str, TensorBoard | WandB] = {}
        if not (names and first):
            return
        logged = run.log().to_dict("records")
        for name in names:
            try:
                self._open[name] = {"tensorboard": TensorBoard, "wandb": WandB}[name](run, config)
            except Exception as error:
                self._disable(name, error)
        self.log(logged)

    def __enter__(self) -> Loggers:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for name in list(self._open):
            try:
                self._open[name].close()
            except Exception as error:
                self._disable(name, error)

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Show rows of the loss log, which are in order of steps."""
        if not self._open:
            return
        for step, step_rows in itertools.groupby(rows, lambda row: row["step"]):
            metrics = {name: value for row in step_rows for name, value in _metrics(row)}
            for name in list(self._open):
                try:
                    self._open[name].log(int(step), metrics)
                except Exception as error:
                    self._disable(name, error)

    def _disable(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning(
            "%s failed and is disabled until the run starts again; training continues (%s)",
            name,
            reason,
        )


def _metrics(row: dict[str, Any]) -> Iterable[tuple[str, float]]:
    """Yield the known values of a row: `train/loss`, `train/loss_text`, `train/lr`, ..."""
    split, kind = row["split"], row["kind"]
    yield (f"{split}/loss" if kind == "all" else f"{split}/loss_{kind}"), row["loss"]
    if split == "train" and kind == "all":
        for name in ("lr", "grad_norm", "tokens_per_second", "mfu"):
            if not math.isnan(row[name]):
                yield f"train/{name}", row[name]


def _hyperparameters(config: RunConfig) -> dict[str, Any]:
    """Return a run's identity and settings, the metric of its study, and its precision."""
    return {
        **config["identity"],
        **config["run"],
        "metric": config["metric"],
        "precision": config["precision"],
    }


class TensorBoard:
    """An event file in `loggers/tensorboard`, a new one at each start of the run."""

    def __init__(self, run: RunDirectory, config: RunConfig) -> None:
        from isoflop.training.fabric import TensorBoardLogger

        _act_as_rank_zero()
        self._hyperparameters = _hyperparameters(config)
        self._result = f"{config['metric']['set']}/loss"
        self._has_hyperparameters = False
        # An older file from a machine whose clock is ahead would count as newer, by its name.
        for older in (run.path / LOGGERS_FOLDER / "tensorboard").glob("events.out.tfevents.*"):
            older.unlink()
        self._logger = TensorBoardLogger(
            run.path / LOGGERS_FOLDER, name="tensorboard", version="", purge_step=0
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of a step, by name such as `train/loss`.

        The run's hyperparameters are written with the first loss on the metric's set.
        """
        if self._result in metrics and not self._has_hyperparameters:
            # The table of hyperparameters needs a result, and Lightning would else invent one.
            self._logger.log_hyperparams(
                self._hyperparameters, {self._result: metrics[self._result]}, step
            )
            metrics = {name: value for name, value in metrics.items() if name != self._result}
            self._has_hyperparameters = True
        self._logger.log_metrics(metrics, step)
        self._logger.save()

    def close(self) -> None:
        """Finish the event file."""
        self._logger.finalize("success")


class WandB:
    """A run of W&B with the run's id, in the project of the sweep's name.

    It is offline, in `loggers/wandb`, unless $WANDB_MODE has another mode.
    """

    def __init__(self, run: RunDirectory, config: RunConfig) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it is not offline
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        _act_as_rank_zero()
        # The service of the parent process may be on another machine.
        os.environ.pop("WANDB_SERVICE", None)
        # Lightning would continue an earlier run of this process whose logger was disabled.
        if wandb.run is not None:
            wandb.finish()
        self._logger = WandbLogger(
            name=run.run_id,
            version=run.run_id,
            project=config["run"]["sweep"],
            save_dir=run.path / LOGGERS_FOLDER,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=WANDB_START_TIMEOUT_S,
                finish_timeout=WANDB_FINISH_TIMEOUT_S,
            ),
        )
        (run.path / LOGGERS_FOLDER).mkdir(exist_ok=True)
        self._logger.log_hyperparams(_hyperparameters(config))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Send the metrics of a step, by name; leave out a step older than the last one sent."""
        if step >= self._logger.experiment.step:
            # Lightning's own method counts calls, so that a step could be logged twice.
            self._logger.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    def close(self) -> None:
        """Finish the run of W&B."""
        self._logger.experiment.finish()


def _act_as_rank_zero() -> None:
    """Make Lightning treat this process as its first: in others its loggers do nothing.

    Lightning may take the rank from SLURM's variables.
    """
    from lightning_utilities.core.rank_zero import rank_zero_only

    vars(rank_zero_only)["rank"] = 0
