"""Losses by kind of token, summed since the last row of the log."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.training.distributed import Ranks
from isoflop.training.loss import KINDS


@dataclass
class Tally:
    """Sums (kinds,) of losses and of target tokens, float64, of this process alone."""

    sums: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, device: torch.device) -> Tally:
        return cls(*(torch.zeros(len(KINDS), dtype=torch.float64, device=device) for _ in range(2)))

    @classmethod
    def saved(cls, sums: Tensor, counts: Tensor, ranks: Ranks, device: torch.device) -> Tally:
        """This process's part of a checkpoint's (ranks, kinds); the first has all if their number has changed."""
        if len(sums) == ranks.size:
            mine = sums[ranks.rank], counts[ranks.rank]
        else:
            mine = sums.sum(0) * ranks.first, counts.sum(0) * ranks.first
        return cls(*(part.to(device) for part in mine))

    def add(self, sums: Tensor, counts: Tensor) -> None:
        self.sums += sums
        self.counts += counts

    def means(self) -> dict[str, tuple[int, float]]:
        """Targets and mean loss of every kind that there was."""
        pairs = zip(KINDS, self.counts.tolist(), self.sums.tolist(), strict=True)
        return {kind: (int(count), total / count) for kind, count, total in pairs if count}
