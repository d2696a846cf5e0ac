"""Loggers that people know, through Lightning's: TensorBoard and Weights & Biases show what the loss log has.

They are for looking only. A logger that fails is left out with a warning, and the run goes on; each time a run starts,
its loggers get the whole log again, so that they lack nothing, and no step is in them twice: TensorBoard gets a new
event file that takes the place of the one before, from the first step on, and W&B a new offline run of the same id
(online, where it goes on, it gets what it lacks).
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

OLDEST = {"tensorboard": (2, 18), "wandb": (0, 28)}
"""The loggers, called as their packages are, and the versions from which they are known to work."""

FOLDER = "loggers"
START_S, END_S = 30, 15
"""How long W&B's server may take at the start and the end of a run; what it didn't get by then is on the disk."""
log = logging.getLogger("isoflop")


def check_installed(names: Iterable[str]) -> None:
    """Refuses loggers whose package this Python doesn't have, or in too old a version.

    Raises:
        ConfigError: with the command that installs it.
    """
    for name in names:
        try:
            found = tuple(int(part) for part in version(name).split(".")[:2])
        except PackageNotFoundError:
            found = (0, 0)
        if found < OLDEST[name]:
            needed = f"'{name}>={OLDEST[name][0]}.{OLDEST[name][1]}'"
            raise ConfigError(
                f"train.loggers: {name} is {'too old' if any(found) else 'not installed'}; leave it out, or: "
                f"{sys.executable} -m pip install {needed}"
            )


class Loggers:
    """The loggers of a run at work, to be closed by a `with` block.

    Args:
        run: the run; its log up to now is the first that they get.
        config: of the run.
        first: whether this process is the first of the run; in others they do nothing.

    Raises:
        ConfigError: a logger that is not installed.
    """

    def __init__(self, run: RunDirectory, config: dict[str, Any], first: bool = True) -> None:
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
                self._leave_out(name, error)
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
                self._leave_out(name, error)

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Shows rows of the loss log, which are in order of steps."""
        if not self._open:
            return
        for step, together in itertools.groupby(rows, lambda row: row["step"]):
            metrics = {name: value for row in together for name, value in _metrics(row)}
            for name in list(self._open):
                try:
                    self._open[name].log(int(step), metrics)
                except Exception as error:
                    self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        why = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning(
            "%s failed and is left out until the run starts again; training goes on (%s)", name, why
        )


def _metrics(row: dict[str, Any]) -> Iterable[tuple[str, float]]:
    """What a row has, by name: `train/loss`, `train/loss_text`, `train/lr`, ...; not what is not known."""
    split, kind = row["split"], row["kind"]
    yield (f"{split}/loss" if kind == "all" else f"{split}/loss_{kind}"), row["loss"]
    if split == "train" and kind == "all":
        for name in ("lr", "grad_norm", "tokens_per_second", "mfu"):
            if not math.isnan(row[name]):
                yield f"train/{name}", row[name]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What the run is: its identity, and its place in the study."""
    return {
        **config["identity"],
        **config["run"],
        "metric": config["metric"],
        "precision": config["precision"],
    }


class TensorBoard:
    """An event file in `loggers/tensorboard`, a new one each time the run starts."""

    def __init__(self, run: RunDirectory, config: dict[str, Any]) -> None:
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        _count_as_first()
        self._settings, self._result = _settings(config), f"{config['metric']['set']}/loss"
        self._told = False
        for older in (run.path / FOLDER / "tensorboard").glob("events.out.tfevents.*"):
            older.unlink()  # it would count as newer, by its name, if it came from a machine whose clock is ahead
        self._logger = TensorBoardLogger(
            run.path / FOLDER, name="tensorboard", version="", purge_step=0
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self._result in metrics and not self._told:
            # Its table of hyperparameters needs a number to go with them, and would else get one that is made up.
            self._logger.log_hyperparams(
                self._settings, {self._result: metrics[self._result]}, step
            )
            metrics = {name: value for name, value in metrics.items() if name != self._result}
            self._told = True
        self._logger.log_metrics(metrics, step)
        self._logger.save()

    def close(self) -> None:
        self._logger.finalize("success")


class WandB:
    """A run of W&B by the run's name, in the project of the sweep's name; offline in `loggers/wandb`, unless
    $WANDB_MODE says otherwise."""

    def __init__(self, run: RunDirectory, config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it is not offline else
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        _count_as_first()
        os.environ.pop(
            "WANDB_SERVICE", None
        )  # of the process that started this one, which may be on another machine
        if (
            wandb.run is not None
        ):  # of a run before, in this process, that was left out; Lightning would go on in it
            wandb.finish()
        self._logger = WandbLogger(
            name=run.run_id,
            version=run.run_id,
            project=config["run"]["sweep"],
            save_dir=run.path / FOLDER,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(
                console="off", silent=True, init_timeout=START_S, finish_timeout=END_S
            ),
        )
        (run.path / FOLDER).mkdir(exist_ok=True)
        self._logger.log_hyperparams(_settings(config))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step >= self._logger.experiment.step:
            # Not by Lightning's own method, which counts calls, so that a step could be there twice.
            self._logger.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    def close(self) -> None:
        self._logger.experiment.finish()


def _count_as_first() -> None:
    """Lightning's loggers do nothing but in the process that it counts as the first, which it may take from SLURM."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    vars(rank_zero_only)["rank"] = 0
