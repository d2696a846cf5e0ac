"""Training one run, from its directory and to its directory; killed at any moment, it goes on as if it had not been."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.data.order import Order
from isoflop.data.shards import Manifest, Windows
from isoflop.errors import DataError, RunError
from isoflop.planning.sizing import value_bytes
from isoflop.runs.run_directory import RunDirectory, State
from isoflop.shapes import ModelShape
from isoflop.training.checkpoint import load_checkpoint, load_same, save_checkpoint
from isoflop.training.devices import make_fabric, may_compile, micro_batch, peak_flops, repeat_sums
from isoflop.training.distributed import ALONE, Ranks
from isoflop.training.loggers import Loggers
from isoflop.training.loss import by_kind
from isoflop.training.loss_recorder import Record, check_log, is_eval, is_row
from isoflop.training.loss_sums import Tally
from isoflop.training.model import Decoder
from isoflop.training.optimizer import CautiousAdamC, clip_gradients, parameter_groups
from isoflop.training.schedule import wsd
from isoflop.training.weights import save_weights

log = logging.getLogger("isoflop")
HEARTBEAT_S = 1.0

REPORT_EVERY = 100
"""Times as long as a report takes, two syncs of a shared disk that training waits for, until the next is due."""


def train(
    run: RunDirectory,
    root: Path,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> State:
    """Trains a run to its end, or until `should_stop()` is true at a step boundary.

    Args:
        run: a directory that `RunDirectory.create` made.
        root: folder that holds `data/`.
        should_stop: asked after every step.
        ranks: the processes that train the run together; the first of them writes.

    Returns:
        `done`, `diverged` (a loss that is not finite; the log is kept) or `pending` (stopped, to be resumed).

    Raises:
        DataError: shards that are missing, damaged, too small, or not those that the run began with.
        RunError: checkpoints that can't be used.
    """
    if run.done:
        run.remove_checkpoints()
        return "done"
    return Trainer(run, root, ranks or ALONE).train(should_stop)


class Trainer:
    """One run in this process: its data, model, optimizer, and where it is."""

    def __init__(self, run: RunDirectory, root: Path, ranks: Ranks = ALONE) -> None:
        self.run, self.ranks = run, ranks
        self.config = run.config()
        self.plan: dict[str, Any] = self.config["run"]
        self.shape = ModelShape(**self.config["identity"]["shape"])
        repeat_sums(self.config.get("deterministic", False))
        self.fabric = make_fabric(self.config["precision"], ranks.local)
        self._open_data(root / "data" / self.config["data"])
        self._build()
        self.tally = Tally.empty(self.fabric.device)
        self.earlier_s = 0.0
        self._restore()

    # Setting up

    def _open_data(self, folder: Path) -> None:
        manifest = Manifest.read(folder)
        began_with = self.run.state().get("data_checksum", manifest.checksum)
        if manifest.checksum != began_with:
            raise DataError(
                f"{folder}: its checksum is {manifest.checksum[:12]}, {self.run.run_id} began with {began_with[:12]}; "
                "restore that data, or delete the run's directory to start it again"
            )
        if manifest.vocabulary.size != self.shape.vocab_size:
            raise DataError(
                f"{folder}: its vocabulary has {manifest.vocabulary.size:,} ids, the model {self.shape.vocab_size:,}; "
                "delete the folder and prepare again"
            )
        gpus = self.ranks.size if self.fabric.device.type == "cuda" else 0
        self._tell("running", data_checksum=manifest.checksum, steps=self.plan["steps"], gpus=gpus)
        self.windows = Windows(folder, "train", self.shape.seq_len, manifest)
        self.heldout = Windows(folder, self.config["metric"]["set"], self.shape.seq_len, manifest)
        self.kinds = torch.from_numpy(manifest.vocabulary.kinds).long().to(self.fabric.device)
        self.order = Order(len(self.windows), self.plan["batch_size"], self.plan["seed"])

    def _build(self) -> None:
        self.fabric.seed_everything(self.plan["seed"], verbose=False)
        fails = not may_compile(self.fabric.device, self.plan["budget"])
        self.ranks.wait()  # in a sum it would give up while another still reads from a slow disk
        self.compiled = not self.ranks.any(fails)[
            0
        ]  # replicas that round differently would drift apart
        self.most = sys.maxsize  # sequences at once, as long as memory is not found to be short
        self.micro, checkpointing = self._micro_batch(
            max(1, self.plan["batch_size"] // self.ranks.size)
        )
        decoder = Decoder(self.shape, checkpointing)
        if self.compiled:
            decoder.compile_parts()
        self.model = self.fabric.setup_module(decoder)
        settings = self.config["identity"]["optimizer"]
        groups = parameter_groups(
            self.model, settings["weight_decay"]
        )  # on the device: they hold the weights
        self.flat_weights = [weight for group in groups for weight in group["params"]]
        optimizer = CautiousAdamC(
            groups,
            max_lr=self.plan["lr"],
            betas=(settings["beta1"], self.plan["beta2"]),
            eps=settings["eps"],
            compiled=self.compiled,
        )
        self.optimizer: Any = self.fabric.setup_optimizers(optimizer)
        self.peak = peak_flops(self.fabric.device) * self.ranks.size

    def _micro_batch(self, sequences: int) -> tuple[int, bool]:
        values = value_bytes(self.config["precision"])
        return micro_batch(self.shape, sequences, self.fabric.device, self.compiled, values)

    def _restore(self) -> None:
        first = self.ranks.first
        saved = (
            load_checkpoint(self.run.checkpoints, self._warn) if first else None
        )  # it removes what is damaged
        step = 0 if saved is None else saved["step"]
        if first:
            self.run.remove_abandoned()
            self.run.cut_log(step)
            check_log(self.run, self.config, step)
        self.step = self.ranks.of_first(step)
        if self.step and not first:
            saved = load_same(self.run.checkpoints, self.step)
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.earlier_s = saved["wall_s"]
            self.tally = Tally.saved(saved["sums"], saved["counts"], self.ranks, self.fabric.device)
            log.info("%s resumes at step %d of %d", self.run.run_id, self.step, self.plan["steps"])
        self.ranks.wait()

    def _warn(self, what: str) -> None:
        """Says it in the attempt's log, and keeps it in the run's state, where people see it."""
        log.warning("%s", what)
        self._tell("running", warning=what)

    # Training

    def train(self, should_stop: Callable[[], bool]) -> State:
        first = self.ranks.first
        with Loggers(self.run, self.config, first) as loggers:
            began = self.step, self.earlier_s
            self.record = Record(
                self.run, self.config, self.shape, self.peak, loggers, first, *began
            )
            return self._train(should_stop)

    def _train(self, should_stop: Callable[[], bool]) -> State:
        saved_at = time.monotonic()
        report_at = saved_at + HEARTBEAT_S
        while self.step < self.plan["steps"]:
            grad_norm = self._update()
            if is_row(self.config, self.step) and not self._log_train(float(grad_norm)):
                return self._end_diverged()
            if is_eval(self.config, self.step) and not self._log_heldout():
                return self._end_diverged()
            now = time.monotonic()
            if now > report_at:
                self._report()
                report_at = now + max(HEARTBEAT_S, REPORT_EVERY * (time.monotonic() - now))
            due = self.ranks.first and now - saved_at > 60 * self.config["checkpoint_minutes"]
            stop, due = self.ranks.any(should_stop(), due)
            if self.step == self.plan["steps"] or not (stop or due):
                continue
            if not self._save():
                return self._end_diverged()
            saved_at = time.monotonic()
            if stop:
                self._tell(
                    "pending", "stopped; resumes where it was", step=self.step, **self.record.pace()
                )
                return "pending"
        return self._end_done() if self._save() else self._end_diverged()

    def _update(self) -> Tensor:
        """One optimizer step; the gradient's norm before clipping."""
        train = self.config["identity"]
        schedule = train["schedule"]
        factor = wsd(
            self.step,
            self.plan["steps"],
            schedule["warmup"],
            schedule["decay"],
            schedule["min_lr_ratio"],
        )
        self.lr = self.plan["lr"] * factor
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        windows = torch.from_numpy(
            self.windows[self.order.batch(self.step, self.ranks.rank, self.ranks.size)]
        )
        while (found := self._gradients(windows, train["z_loss"])) is None:
            self.micro = self._less_than(self.micro)
            self.optimizer.zero_grad()
        self.tally.add(found.sums, found.counts)
        self.ranks.sum(*(weight.grad for weight in self.flat_weights))
        norm = clip_gradients(self.flat_weights, train["optimizer"]["grad_clip"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return norm

    def _gradients(self, windows_BS: Tensor, z_loss: float) -> Tally | None:
        """Adds a step's gradients; its losses, or None where the GPU had too little memory."""
        tally = Tally.empty(self.fabric.device)
        try:
            for part_BS in windows_BS.split(self.micro):
                losses_T, objective_T, kinds_T = self._losses(part_BS, z_loss)
                self.fabric.backward(
                    objective_T.sum() / (self.order.batch_size * self.shape.seq_len)
                )
                tally.add(*by_kind(losses_T, kinds_T))
        except torch.OutOfMemoryError:
            return None
        return tally

    def _less_than(self, sequences: int) -> int:
        """Half of the sequences that the GPU could not take at once: what they need is an estimate, and others may be
        at work there.

        Raises:
            RunError: it was one.
        """
        if sequences == 1:
            raise RunError(
                f"out of memory with one sequence of {self.shape.seq_len} tokens at a time; train this model on a "
                "larger GPU, or see (nvidia-smi) what else uses this one"
            )
        self.most = (sequences + 1) // 2
        log.warning(
            "out of memory: from step %d on %d sequences go through at once", self.step, self.most
        )
        torch.cuda.empty_cache()
        return self.most

    def _losses(self, windows_BS: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (T,), what training minimises (T,), and the kinds of the targets (T,) of some windows."""
        windows_BS = windows_BS.to(self.fabric.device, non_blocking=True)
        targets_BS = windows_BS[:, 1:]
        with self.fabric.autocast():
            losses_T, objective_T = self.model.losses(windows_BS[:, :-1], targets_BS, z_loss)
        return losses_T, objective_T, self.kinds[targets_BS.flatten()]

    def _evaluate(self) -> Tally:
        """Losses on held-out windows, evenly spaced over the split and the same for every run of a sweep."""
        whole = self.heldout.spread(self.config["metric"]["tokens"])
        chosen = whole[self.ranks.rank :: self.ranks.size]
        size = min(self._micro_batch(len(whole))[0], self.most)
        self.model.eval()
        while (tally := self._measured(chosen, size)) is None:
            size = self._less_than(size)
        self.model.train()
        self.ranks.sum(tally.sums, tally.counts)
        return tally

    @torch.no_grad()
    def _measured(self, chosen: np.ndarray, size: int) -> Tally | None:
        """Losses of some held-out windows, `size` at once; None where the GPU had too little memory."""
        tally = Tally.empty(self.fabric.device)
        try:
            for begin in range(0, len(chosen), size):
                losses_T, _, kinds_T = self._losses(
                    torch.from_numpy(self.heldout[chosen[begin : begin + size]])
                )
                tally.add(*by_kind(losses_T, kinds_T))
        except torch.OutOfMemoryError:
            return None
        return tally

    # Records

    def _log_train(self, grad_norm: float) -> bool:
        whole, self.tally = self.tally, Tally.empty(self.fabric.device)
        self.ranks.sum(whole.sums, whole.counts)
        return self.record.train(self.step, self.lr, whole.means(), grad_norm)

    def _log_heldout(self) -> bool:
        began = time.monotonic()
        return self.record.heldout(self.step, self.lr, self._evaluate().means(), began)

    def _report(self) -> None:
        self._tell("running", step=self.step, loss=self.record.loss, **self.record.pace())

    def _tell(self, state: State, reason: str = "", **more: Any) -> None:
        """Writes the run's state, once for all its processes."""
        if self.ranks.first:
            self.run.set_state(state, reason, **more)

    def _save(self) -> bool:
        """Writes the log, then a checkpoint, or the final weights; False, and neither, where a loss is not finite."""
        self.record.write()
        sums, counts = self.ranks.gather(self.tally.sums), self.ranks.gather(self.tally.counts)
        if not all(bool(torch.isfinite(values).all()) for values in (sums, *self.flat_weights)):
            return False
        if self.ranks.first and self.step == self.plan["steps"]:
            save_weights(self.run, self.model)
        elif self.ranks.first:
            self._save_checkpoint(sums=sums.cpu(), counts=counts.cpu(), wall_s=self.record.wall_s())
        self.ranks.wait()
        return True

    def _save_checkpoint(self, **more: Any) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            **more,
        }
        save_checkpoint(self.run.checkpoints, self.step, state)

    def _end_done(self) -> State:
        if self.ranks.first:
            self.run.mark_done()
        self._tell("done", step=self.step, loss=self.record.loss, **self.record.pace())
        if self.ranks.first:
            self.run.remove_checkpoints()
            self.run.remove_abandoned()
        return "done"

    def _end_diverged(self) -> State:
        self.record.write()
        reason = (
            f"the loss was not finite by step {self.step}; look at the data, or lower train.lr_scale, which is another "
            "study (name=...)"
        )
        self._tell("diverged", reason, step=self.step, **self.record.pace())
        return "diverged"
