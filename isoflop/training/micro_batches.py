"""Losses and gradients of batches, in micro-batches that fit into the memory of the device."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isoflop.data.shards import Windows
from isoflop.errors import RunError
from isoflop.training.fabric import Fabric
from isoflop.training.loss import sum_by_kind
from isoflop.training.loss_sums import LossSums

if TYPE_CHECKING:  # its pandas would be another 90 MB in every process
    from isoflop.frames import Ints

log = logging.getLogger("isoflop")


class MicroBatches:
    """Forward and backward passes of a process. Micro-batches shrink when GPU memory runs out.

    The planner's estimate of their memory is not exact, and other processes may use the GPU.

    Args:
        fabric: device and precision.
        model: the decoder, set up by `fabric`.
        optimizer: its optimizer, set up by `fabric`.
        kinds_V: kind of each token id, on the device.
        size: sequences in a micro-batch of training.

    Attributes:
        size: sequences in a micro-batch of training, at present.
        max_size: largest number of sequences in any micro-batch, after the GPU ran out of memory.
    """

    def __init__(
        self, fabric: Fabric, model: Any, optimizer: Any, kinds_V: Tensor, size: int
    ) -> None:
        self.fabric, self.model, self.optimizer, self.kinds_V = fabric, model, optimizer, kinds_V
        self.size, self.max_size = size, sys.maxsize

    def add_gradients(self, windows_BS: Tensor, targets: int, z_loss: float, step: int) -> LossSums:
        """Add this process's gradients of a batch; return its losses.

        Args:
            windows_BS: windows of this process.
            targets: number of targets in the batch of all processes, which divides the gradients.
            z_loss: weight of the z-loss.
            step: number of steps taken, for the log.

        Raises:
            RunError: a single sequence does not fit into the GPU.
        """
        while (loss_sums := self._try_gradients(windows_BS, targets, z_loss)) is None:
            self.size = self._halve(self.size, windows_BS.shape[1] - 1, step)
            self.optimizer.zero_grad()
        return loss_sums

    def _try_gradients(self, windows_BS: Tensor, targets: int, z_loss: float) -> LossSums | None:
        """Add the gradients of a batch; return its losses, or None if the GPU ran out of memory."""
        loss_sums = LossSums.zeros(self.fabric.device)
        try:
            for micro_BS in windows_BS.split(self.size):
                losses_T, objective_T, kinds_T = self.losses(micro_BS, z_loss)
                self.fabric.backward(objective_T.sum() / targets)
                loss_sums.add(*sum_by_kind(losses_T, kinds_T))
        except torch.OutOfMemoryError:
            return None
        return loss_sums

    def sum_heldout_losses(self, windows: Windows, indices: Ints, size: int, step: int) -> LossSums:
        """Return the losses on some of the windows, up to `size` of them at once.

        Raises:
            RunError: a single sequence does not fit into the GPU.
        """
        size = min(size, self.max_size)
        self.model.eval()
        while (loss_sums := self._try_heldout_losses(windows, indices, size)) is None:
            size = self._halve(size, windows.seq_len, step)
        self.model.train()
        return loss_sums

    @torch.no_grad()
    def _try_heldout_losses(self, windows: Windows, indices: Ints, size: int) -> LossSums | None:
        """Return the losses on some of the windows, or None if the GPU ran out of memory."""
        loss_sums = LossSums.zeros(self.fabric.device)
        try:
            for start in range(0, len(indices), size):
                micro_BS = torch.from_numpy(windows[indices[start : start + size]])
                losses_T, _, kinds_T = self.losses(micro_BS)
                loss_sums.add(*sum_by_kind(losses_T, kinds_T))
        except torch.OutOfMemoryError:
            return None
        return loss_sums

    def _halve(self, sequences: int, seq_len: int, step: int) -> int:
        """Return half of the sequences that did not fit into the GPU, from now on the maximum.

        Raises:
            RunError: a single sequence that did not fit.
        """
        if sequences == 1:
            raise RunError(
                f"out of memory with a micro-batch of one sequence of {seq_len} tokens; "
                "train this model on a larger GPU, or check (nvidia-smi) for other processes on "
                "this one"
            )
        self.max_size = (sequences + 1) // 2
        log.warning(
            "out of memory: from step %d on a micro-batch has at most %d sequences",
            step,
            self.max_size,
        )
        torch.cuda.empty_cache()
        return self.max_size

    def losses(self, windows_BS: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses (T,), training objectives (T,) and kinds of the targets (T,) of windows."""
        windows_BS = windows_BS.to(self.fabric.device, non_blocking=True)
        targets_BS = windows_BS[:, 1:]
        with self.fabric.autocast():
            losses_T, objective_T = self.model.losses(windows_BS[:, :-1], targets_BS, z_loss)
        return losses_T, objective_T, self.kinds_V[targets_BS.flatten()]
