"""Cautious AdamW with corrected weight decay (AdamC), as SODA's sweep trains with."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

AT_ONCE = 1 << 24
"""Numbers that an update goes through at once: few operations for small weights, little memory for large ones. Up to
here a sum of ones in float32 is exact in any order."""

NORM_PART = 1 << 20
"""Numbers whose norm is taken at once: on a CPU a norm of very many comes out too small."""


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
        compiled: bool = False,
    ) -> None:
        super().__init__(params, {"lr": max_lr, "weight_decay": weight_decay})
        self.max_lr, self.betas, self.eps = max_lr, betas, eps
        self._masked_update = (
            torch.compile(masked_update, dynamic=True) if compiled else masked_update
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_weight(weight, weight.grad, group)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Fills gradients with zeros: those of flat weights must stay where the model's gradients are views of them."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.zero_()

    def _step_weight(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
        state["step"] += 1
        bunches: list[list[int]] = group.get("sizes") or [[weight.numel()]]
        lengths = [sum(sizes) for sizes in bunches]
        whole = (
            weight.view(-1),
            state["mean"].view(-1),
            state["square"].view(-1),
            gradient.reshape(-1),
        )
        for sizes, *part in zip(bunches, *(tensor.split(lengths) for tensor in whole), strict=True):
            self._update(part, sizes, state["step"], group["lr"], group["weight_decay"])

    def _update(
        self, part: list[Tensor], sizes: list[int], step: int, lr: float, weight_decay: float
    ) -> None:
        """Updates weights that are neighbours; `part` is weight, mean, square and gradient, (sum of sizes,) each."""
        weight, mean, square, gradient = part
        root, unbias = (1 - self.betas[1] ** step) ** 0.5, 1 - self.betas[0] ** step
        update, mask = self._masked_update(
            mean, square, gradient, root, unbias, *self.betas, self.eps
        )
        agreeing = (
            torch.stack(torch._foreach_norm(mask.split(sizes), 1))
            if len(sizes) > 1
            else mask.sum()[None]
        )
        share = agreeing / torch.tensor(sizes, dtype=agreeing.dtype, device=agreeing.device)
        torch._foreach_div_(update.split(sizes), list((share + self.eps).unbind()))
        if weight_decay:
            update.add_(weight, alpha=weight_decay * lr / self.max_lr)
        weight.add_(update, alpha=-lr)


def masked_update(
    mean: Tensor,
    square: Tensor,
    gradient: Tensor,
    root: float,
    unbias: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Moves the moments on; the update where it agrees with the gradient, and a mask of where."""
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = square.sqrt().div_(root).add_(eps)
    update = mean.div(scale).div_(unbias)
    mask = (update * gradient > 0).to(update.dtype)
    return update.mul_(mask), mask


def clip_gradients(weights: list[nn.Parameter], most: float) -> Tensor:
    """Scales gradients down to a norm of `most` where theirs, which is returned, is larger."""
    parts = [
        part
        for weight in weights
        if weight.grad is not None
        for part in weight.grad.split(NORM_PART)
    ]
    norm = torch.nn.utils.get_total_norm(parts)
    torch.nn.utils.clip_grads_with_norm_(weights, most, norm)
    return norm


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay; norms (one dimension) and the embedding do not (as in SODA's sweep).

    Each is one flat weight, of which the model's weights become views: an update takes a dozen operations instead of a
    dozen for every weight, which would be a third of a tiny model's step. `sizes` are the parts', in order, in bunches
    that are updated at once.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    decayed = [weight for name, weight in named if weight.ndim > 1 and "embedding" not in name]
    kept = [weight for name, weight in named if weight.ndim <= 1 or "embedding" in name]
    return [_flat_group(decayed, weight_decay), _flat_group(kept, 0.0)]


def _flat_group(weights: list[nn.Parameter], weight_decay: float) -> dict[str, Any]:
    sizes = [weight.numel() for weight in weights]
    flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights]))
    flat.grad = torch.zeros_like(flat)
    parts = zip(weights, flat.data.split(sizes), flat.grad.split(sizes), strict=True)
    for weight, values, gradient in parts:
        weight.data, weight.grad = values.view_as(weight), gradient.view_as(weight)
    return {"params": [flat], "sizes": _bunches(sizes), "weight_decay": weight_decay}


def _bunches(sizes: list[int]) -> list[list[int]]:
    """Neighbours up to `AT_ONCE` together; what is larger stands alone."""
    bunches: list[list[int]] = []
    for size in sizes:
        if bunches and sum(bunches[-1]) + size <= AT_ONCE:
            bunches[-1].append(size)
        else:
            bunches.append([size])
    return bunches
