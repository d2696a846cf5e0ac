"""Cross-entropy of next tokens, in nats, and its sums by kind of target."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("all", "text", "semantic", "acoustic")
"""Order of the sums of `by_kind`; control tokens count in `all` only."""


def by_kind(losses_T: Tensor, kinds_T: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of losses and numbers of targets for `KINDS`, float64 (4,) each; kinds are those of `data.vocabulary`."""
    losses_T = losses_T.detach().double()
    sums = torch.zeros(len(KINDS), dtype=torch.float64, device=losses_T.device)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, kinds_T, losses_T)
    counts.index_add_(0, kinds_T, torch.ones_like(losses_T))
    sums[0], counts[0] = sums.sum(), counts.sum()  # slot 0 held the control tokens
    return sums, counts
