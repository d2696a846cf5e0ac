"""Losses by kind of token, summed since the last row of the log."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.training.distributed import Ranks
from isoflop.training.loss import LOSS_KINDS


@dataclass
class LossSums:
    """Sums (kinds,) of losses and of target tokens, float64, of this process alone."""

    sums: Tensor
    counts: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> LossSums:
        """Return sums of no tokens, (kinds,) each, on a device."""
        return cls(
            *(torch.zeros(len(LOSS_KINDS), dtype=torch.float64, device=device) for _ in range(2))
        )

    @classmethod
    def from_checkpoint(
        cls, sums: Tensor, counts: Tensor, ranks: Ranks, device: torch.device
    ) -> LossSums:
        """Return this process's share of the sums (ranks, kinds) of a checkpoint.

        The first process gets all of them if the number of processes has changed.
        """
        if len(sums) == ranks.size:
            shares = sums[ranks.rank], counts[ranks.rank]
        else:
            shares = sums.sum(0) * ranks.first, counts.sum(0) * ranks.first
        return cls(*(share.to(device) for share in shares))

    def add(self, sums: Tensor, counts: Tensor) -> None:
        """Add the sums and the target counts, (kinds,) each, of a batch."""
        self.sums += sums
        self.counts += counts

    def means(self) -> dict[str, tuple[int, float]]:
        """Return the number of targets and their mean loss for every kind with targets."""
        pairs = zip(LOSS_KINDS, self.counts.tolist(), self.sums.tolist(), strict=True)
        return {kind: (int(count), total / count) for kind, count, total in pairs if count}
