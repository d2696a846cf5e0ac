"""Cautious AdamW with corrected weight decay (AdamC), as SODA's sweep trains with."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class CautiousAdamC(torch.optim.Optimizer):
    """u = m / (sqrt(v) + eps); u *= [u g > 0] / mean [u g > 0]; w -= lr (u + weight_decay (lr / max_lr) w).

    Adam's moments m, v are bias-corrected. The mask keeps the coordinates where the update agrees with the gradient
    (Liang et al. 2024, arXiv 2411.16085), its mean is taken per tensor; the decay of a step is
    weight_decay lr^2 / max_lr (Defazio 2025, arXiv 2506.02285).
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        max_lr: float,
        betas: tuple[float, float],
        eps: float = 1e-15,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": max_lr, "weight_decay": weight_decay})
        self.max_lr, self.betas, self.eps = max_lr, betas, eps

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, [weight.grad for weight in weights], group["lr"], group["weight_decay"])

    def _update(self, weights: list[Tensor], gradients: list[Tensor], lr: float, weight_decay: float) -> None:
        states = [self.state[weight] for weight in weights]
        for weight, state in zip(weights, states, strict=True):
            if not state:
                state["step"] = 0
                state["mean"] = torch.zeros_like(weight)
                state["square"] = torch.zeros_like(weight)
            state["step"] += 1
        means, squares = [s["mean"] for s in states], [s["square"] for s in states]
        beta1, beta2 = self.betas
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, [(1 - beta2 ** s["step"]) ** 0.5 for s in states])
        torch._foreach_add_(scales, self.eps)
        updates = torch._foreach_div(means, scales)
        torch._foreach_div_(updates, [1 - beta1 ** s["step"] for s in states])
        for update, gradient in zip(updates, gradients, strict=True):
            mask = (update * gradient > 0).to(update.dtype)
            update.mul_(mask.div_(mask.mean() + self.eps))
        if weight_decay:
            torch._foreach_add_(updates, weights, alpha=weight_decay * lr / self.max_lr)
        torch._foreach_add_(weights, updates, alpha=-lr)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay; norms (one dimension) and the embedding do not (as in SODA's sweep)."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    decayed = [weight for name, weight in named if weight.ndim > 1 and "embedding" not in name]
    kept = [weight for name, weight in named if weight.ndim <= 1 or "embedding" in name]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
