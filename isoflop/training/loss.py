"""Cross-entropy of next tokens, in nats, and its sums by kind of target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("all", "text", "semantic", "acoustic")
"""Order of the sums of `by_kind`; control tokens count in `all` only."""


ALIGNED = 64
"""Rows of the head come in such bunches on a GPU: with an odd vocabulary its products run on slow kernels."""


def token_losses(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each target (T,), float32, and the same with the z-loss, which training minimises.

    Head and loss are one function so that, compiled, no float32 copy of the logits is ever written.
    """
    size = len(weight_VD)
    if weight_VD.is_cuda:
        weight_VD = F.pad(weight_VD, (0, 0, 0, -size % ALIGNED))
    logits_TV = F.linear(hidden_TD, weight_VD)[:, :size].float()
    losses_T = F.cross_entropy(logits_TV, targets_T, reduction="none")
    return losses_T, losses_T + z_loss * logits_TV.logsumexp(-1).square() if z_loss else losses_T


def by_kind(losses_T: Tensor, kinds_T: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of losses and numbers of targets for `KINDS`, float64 (4,) each; kinds are those of `data.vocabulary`."""
    of_kind_KT = kinds_T == torch.arange(len(KINDS), device=kinds_T.device)[:, None]
    of_kind_KT[0] = True  # its code is that of control tokens
    # Sums along a dimension repeat bit for bit on a GPU; index_add does not.
    return torch.where(of_kind_KT, losses_T.detach().double(), 0.0).sum(1), of_kind_KT.sum(
        1
    ).double()
