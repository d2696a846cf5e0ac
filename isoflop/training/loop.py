"""The training loop of one run, which reads and writes the run's directory.

A run that is killed at any moment resumes to the same losses as an undisturbed one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoflop.data.order import SampleOrder
from isoflop.data.shards import Manifest, Windows
from isoflop.errors import DataError
from isoflop.planning.sizing import activation_value_bytes
from isoflop.runs.run_directory import RunDirectory, State
from isoflop.shapes import ModelShape
from isoflop.training.checkpoint import load_checkpoint, load_checkpoint_at, save_checkpoint
from isoflop.training.devices import (
    choose_micro_batch,
    make_fabric,
    peak_flops,
    set_deterministic,
    should_compile,
)
from isoflop.training.distributed import SINGLE_PROCESS, Ranks
from isoflop.training.loggers import Loggers
from isoflop.training.loss_recorder import LossRecorder, check_log, is_eval_step, is_log_step
from isoflop.training.loss_sums import LossSums
from isoflop.training.micro_batches import MicroBatches
from isoflop.training.model import Decoder
from isoflop.training.optimizer import CautiousAdamC, clip_gradients, parameter_groups
from isoflop.training.run_config import read_run_config
from isoflop.training.schedule import wsd
from isoflop.training.weights import save_weights

log = logging.getLogger("isoflop")
STATE_WRITE_S = 1.0

REPORT_INTERVAL_FACTOR = 100
"""Shortest time between reports, in durations of a report. Training waits for a report, which takes
two syncs of a shared disk."""


def train(
    run: RunDirectory,
    root: Path,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> State:
    """Train a run to its end, or until `should_stop()` is true at a step boundary.

    Args:
        run: a directory that `RunDirectory.create` made.
        root: folder that holds `data/`.
        should_stop: called after every step.
        ranks: processes that train the run together; the first of them writes.

    Returns:
        `done`, `diverged` (a loss is not finite; the log is kept) or `pending` (stopped, to be
        resumed).

    Raises:
        DataError: shards that are missing, damaged, too small, or other than at the run's start.
        RunError: checkpoints or a loss log that can't be used, or too little GPU memory.
    """
    if run.done:
        run.remove_checkpoints()
        return "done"
    return Trainer(run, root, ranks or SINGLE_PROCESS).train(should_stop)


class Trainer:
    """State of one run in this process: its data, model, optimizer and step."""

    def __init__(self, run: RunDirectory, root: Path, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.run, self.ranks = run, ranks
        self.config = read_run_config(run)
        self.settings = self.config["run"]
        self.shape = ModelShape(**self.config["identity"]["shape"])
        set_deterministic(self.config.get("deterministic", False))
        self.fabric = make_fabric(self.config["precision"], ranks.local_rank)
        self._open_data(root / "data" / self.config["data"])
        self._build()
        self.loss_sums = LossSums.zeros(self.fabric.device)
        self.previous_wall_s = 0.0
        self._restore()

    # Setting up

    def _open_data(self, folder: Path) -> None:
        manifest = Manifest.read(folder)
        first_checksum = self.run.state().get("data_checksum", manifest.checksum)
        if manifest.checksum != first_checksum:
            raise DataError(
                f"{folder}: its checksum is {manifest.checksum[:12]}, but {self.run.run_id} "
                f"started with {first_checksum[:12]}; restore that data, or delete the run's "
                "directory to restart the run"
            )
        if manifest.vocabulary.size != self.shape.vocab_size:
            raise DataError(
                f"{folder}: its vocabulary has {manifest.vocabulary.size:,} ids, the model "
                f"{self.shape.vocab_size:,}; delete the folder and prepare again"
            )
        gpus = self.ranks.size if self.fabric.device.type == "cuda" else 0
        self._set_state(
            "running", data_checksum=manifest.checksum, steps=self.settings["steps"], gpus=gpus
        )
        self.windows = Windows(folder, "train", self.shape.seq_len, manifest)
        self.heldout = Windows(folder, self.config["metric"]["set"], self.shape.seq_len, manifest)
        self.kinds_V = torch.from_numpy(manifest.vocabulary.kinds).long().to(self.fabric.device)
        self.order = SampleOrder(
            len(self.windows), self.settings["batch_size"], self.settings["seed"]
        )

    def _build(self) -> None:
        self.fabric.seed_everything(self.settings["seed"], verbose=False)
        is_eager = not should_compile(self.fabric.device, self.settings["budget"])
        # A collective operation would give up while another process still reads from a slow disk.
        self.ranks.barrier()
        # Replicas that round differently would drift apart: all are compiled, or none.
        self.compiled = not self.ranks.any(is_eager)[0]
        micro_batch, checkpointing = self._choose_micro_batch(
            max(1, self.settings["batch_size"] // self.ranks.size)
        )
        decoder = Decoder(self.shape, checkpointing)
        if self.compiled:
            decoder.compile_parts()
        self.model = self.fabric.setup_module(decoder)
        optimizer = self.config["identity"]["optimizer"]
        # After the model is on its device: the groups hold its weights.
        groups = parameter_groups(self.model, optimizer["weight_decay"])
        self.flat_weights = [weight for group in groups for weight in group["params"]]
        self.optimizer: Any = self.fabric.setup_optimizers(
            CautiousAdamC(
                groups,
                max_lr=self.settings["lr"],
                betas=(optimizer["beta1"], self.settings["beta2"]),
                eps=optimizer["eps"],
                compiled=self.compiled,
            )
        )
        self.micro_batches = MicroBatches(
            self.fabric, self.model, self.optimizer, self.kinds_V, micro_batch
        )
        self.peak_flops = peak_flops(self.fabric.device) * self.ranks.size

    def _choose_micro_batch(self, sequences: int) -> tuple[int, bool]:
        bytes_per_value = activation_value_bytes(self.config["precision"])
        return choose_micro_batch(
            self.shape, sequences, self.fabric.device, self.compiled, bytes_per_value
        )

    def _restore(self) -> None:
        first = self.ranks.first
        # In the first process only: it removes damaged checkpoints.
        saved = load_checkpoint(self.run.checkpoints, self._warn) if first else None
        step = 0 if saved is None else saved["step"]
        if first:
            self.run.remove_abandoned()
            self.run.truncate_log(step)
            check_log(self.run, self.config, step)
        self.step = self.ranks.broadcast(step)
        if self.step and not first:
            saved = load_checkpoint_at(self.run.checkpoints, self.step)
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.previous_wall_s = saved["wall_s"]
            self.loss_sums = LossSums.from_checkpoint(
                saved["sums"], saved["counts"], self.ranks, self.fabric.device
            )
            log.info(
                "%s resumes at step %d of %d", self.run.run_id, self.step, self.settings["steps"]
            )
        self.ranks.barrier()

    def _warn(self, message: str) -> None:
        """Write a warning to the attempt's log and to the run's state, which `status` shows."""
        log.warning("%s", message)
        self._set_state("running", warning=message)

    # Training

    def train(self, should_stop: Callable[[], bool]) -> State:
        """Train to the last step, or until `should_stop`, called after every step, returns True.

        Returns:
            `done`, `diverged` or `pending`, as `train`.
        """
        first = self.ranks.first
        with Loggers(self.run, self.config, first) as loggers:
            self.recorder = LossRecorder(
                self.run,
                self.config,
                self.shape,
                self.peak_flops,
                loggers,
                writes=first,
                step=self.step,
                wall_s=self.previous_wall_s,
            )
            return self._train(should_stop)

    def _train(self, should_stop: Callable[[], bool]) -> State:
        saved_at = time.monotonic()
        report_at = saved_at + STATE_WRITE_S
        while self.step < self.settings["steps"]:
            grad_norm = self._update()
            if is_log_step(self.config, self.step) and not self._log_training(float(grad_norm)):
                return self._end_diverged()
            if is_eval_step(self.config, self.step) and not self._log_heldout():
                return self._end_diverged()
            now = time.monotonic()
            if now > report_at:
                self._report()
                duration = time.monotonic() - now
                report_at = now + max(STATE_WRITE_S, REPORT_INTERVAL_FACTOR * duration)
            overdue = self.ranks.first and now - saved_at > 60 * self.config["checkpoint_minutes"]
            stop, save = self.ranks.any(should_stop(), overdue)
            if self.step == self.settings["steps"] or not (stop or save):
                continue
            if not self._save():
                return self._end_diverged()
            saved_at = time.monotonic()
            if stop:
                self._set_state(
                    "pending", "stopped; resumes from its checkpoint", **self._progress()
                )
                return "pending"
        return self._end_done() if self._save() else self._end_diverged()

    def _update(self) -> Tensor:
        """Take one optimizer step; return the gradient's norm before clipping."""
        identity = self.config["identity"]
        schedule = identity["schedule"]
        factor = wsd(
            self.step,
            self.settings["steps"],
            schedule["warmup"],
            schedule["decay"],
            schedule["min_lr_ratio"],
        )
        self.lr = self.settings["lr"] * factor
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        windows = torch.from_numpy(
            self.windows[self.order.batch(self.step, self.ranks.rank, self.ranks.size)]
        )
        targets = self.order.batch_size * self.shape.seq_len
        loss_sums = self.micro_batches.add_gradients(
            windows, targets, identity["z_loss"], self.step
        )
        self.loss_sums.add(loss_sums.sums, loss_sums.counts)
        self.ranks.sum(*(weight.grad for weight in self.flat_weights))
        norm = clip_gradients(self.flat_weights, identity["optimizer"]["grad_clip"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return norm

    def _evaluate(self) -> LossSums:
        """Return the losses on held-out windows.

        They are evenly spaced over the split, and the same for every run of a sweep.
        """
        indices = self.heldout.spread(self.config["metric"]["tokens"])
        own_indices = indices[self.ranks.rank :: self.ranks.size]
        size, _ = self._choose_micro_batch(len(indices))
        loss_sums = self.micro_batches.sum_heldout_losses(
            self.heldout, own_indices, size, self.step
        )
        self.ranks.sum(loss_sums.sums, loss_sums.counts)
        return loss_sums

    # Records

    def _log_training(self, grad_norm: float) -> bool:
        loss_sums, self.loss_sums = self.loss_sums, LossSums.zeros(self.fabric.device)
        self.ranks.sum(loss_sums.sums, loss_sums.counts)
        return self.recorder.add_training_rows(self.step, self.lr, loss_sums.means(), grad_norm)

    def _log_heldout(self) -> bool:
        start_time = time.monotonic()
        means = self._evaluate().means()
        return self.recorder.add_heldout_rows(self.step, self.lr, means, start_time)

    def _report(self) -> None:
        self._set_state("running", loss=self.recorder.loss, **self._progress())

    def _progress(self) -> dict[str, Any]:
        return {"step": self.step, **self.recorder.speed_fields()}

    def _set_state(self, state: State, reason: str = "", **fields: Any) -> None:
        """Write the run's state, once for all its processes."""
        if self.ranks.first:
            self.run.set_state(state, reason, **fields)

    def _save(self) -> bool:
        """Write the log, then a checkpoint, or after the last step the final weights.

        Return False, with only the log written, if a loss or a weight is not finite.
        """
        self.recorder.write()
        sums = self.ranks.gather(self.loss_sums.sums)
        counts = self.ranks.gather(self.loss_sums.counts)
        if not all(bool(torch.isfinite(values).all()) for values in (sums, *self.flat_weights)):
            return False
        if self.ranks.first and self.step == self.settings["steps"]:
            save_weights(self.run, self.model)
        elif self.ranks.first:
            self._save_checkpoint(
                sums=sums.cpu(), counts=counts.cpu(), wall_s=self.recorder.wall_s()
            )
        self.ranks.barrier()
        return True

    def _save_checkpoint(self, **entries: Any) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            **entries,
        }
        save_checkpoint(self.run.checkpoints, self.step, state)

    def _end_done(self) -> State:
        if self.ranks.first:
            self.run.mark_done()
        self._set_state("done", loss=self.recorder.loss, **self._progress())
        if self.ranks.first:
            self.run.remove_checkpoints()
            self.run.remove_abandoned()
        return "done"

    def _end_diverged(self) -> State:
        self.recorder.write()
        reason = (
            f"the loss was not finite by step {self.step}; check the data, or lower train.lr_scale "
            "in another study (name=...)"
        )
        self._set_state("diverged", reason, **self._progress())
        return "diverged"
