"""Cross-entropy of next tokens, in nats, and its sums by kind of target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_KINDS = ("all", "text", "semantic", "acoustic")
"""Order of the sums of `sum_by_kind`; control tokens count in `all` only."""

HEAD_ROW_MULTIPLE = 64
"""On a GPU the rows of the head are padded to a multiple of this: its products run on slow kernels
with an odd vocabulary."""


def token_losses(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each target (T,), float32, and the same with the z-loss.

    Training minimises the second. Head and loss are one function so that, compiled, no float32 copy
    of the logits is ever written.
    """
    size = len(weight_VD)
    if weight_VD.is_cuda:
        weight_VD = F.pad(weight_VD, (0, 0, 0, -size % HEAD_ROW_MULTIPLE))
    logits_TV = F.linear(hidden_TD, weight_VD)[:, :size].float()
    losses_T = F.cross_entropy(logits_TV, targets_T, reduction="none")
    return losses_T, losses_T + z_loss * logits_TV.logsumexp(-1).square() if z_loss else losses_T


def sum_by_kind(losses_T: Tensor, kinds_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of losses and numbers of targets for `LOSS_KINDS`, float64 (4,) each.

    `kinds_T` has the codes of `data.vocabulary.TokenKind`.
    """
    is_kind_KT = kinds_T == torch.arange(len(LOSS_KINDS), device=kinds_T.device)[:, None]
    is_kind_KT[0] = True  # the code of `all` is that of control tokens
    # Sums along a dimension repeat bit for bit on a GPU; index_add does not.
    sums_K = torch.where(is_kind_KT, losses_T.detach().double(), 0.0).sum(1)
    return sums_K, is_kind_KT.sum(1).double()
