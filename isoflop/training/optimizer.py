"""Cautious AdamW with corrected weight decay (AdamC), the optimizer of SODA's sweep."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MAX_CHUNK_ELEMENTS = 1 << 24
"""Elements that one operation updates: few operations for small weights, little memory for large
ones. Up to this number a sum of ones in float32 is exact in any order."""

NORM_CHUNK_ELEMENTS = 1 << 20
"""Elements whose norm is taken in one operation: on a CPU the norm of very many is too small."""


class CautiousAdamC(torch.optim.Optimizer):
    """Cautious AdamC, with this update of a weight w with gradient g.

        u = m / (sqrt(v) + eps)
        u *= [u g > 0] / mean [u g > 0]
        w -= lr (u + weight_decay (lr / max_lr) w)

    Adam's moments m and v are bias-corrected. The mask keeps the coordinates where the update
    agrees with the gradient (Liang et al. 2024, arXiv 2411.16085); its mean is taken per tensor.
    The decay of a step is weight_decay lr^2 / max_lr (Defazio 2025, arXiv 2506.02285).
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
        """Update every weight that has a gradient, in place; `closure` is not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_weight(weight, weight.grad, group)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Fill gradients with zeros in place: the model's gradients are views of flat ones."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.zero_()

    def _step_weight(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
        state["step"] += 1
        chunks: list[list[int]] = group.get("sizes") or [[weight.numel()]]
        lengths = [sum(sizes) for sizes in chunks]
        vectors = (
            weight.view(-1),
            state["mean"].view(-1),
            state["square"].view(-1),
            gradient.reshape(-1),
        )
        pieces = (vector.split(lengths) for vector in vectors)
        for sizes, *chunk in zip(chunks, *pieces, strict=True):
            self._update(chunk, sizes, state["step"], group["lr"], group["weight_decay"])

    def _update(
        self, chunk: list[Tensor], sizes: list[int], step: int, lr: float, weight_decay: float
    ) -> None:
        """Update adjacent tensors of the given sizes.

        `chunk` is weight, mean, square and gradient, (sum of sizes,) each.
        """
        weight, mean, square, gradient = chunk
        root, unbias = (1 - self.betas[1] ** step) ** 0.5, 1 - self.betas[0] ** step
        update, mask = self._masked_update(
            mean, square, gradient, root, unbias, *self.betas, self.eps
        )
        if len(sizes) > 1:
            agreeing = torch.stack(torch._foreach_norm(mask.split(sizes), 1))
        else:
            agreeing = mask.sum()[None]
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
    """Update the moments in place; return the masked update and its mask.

    The mask is 1 where the update agrees with the gradient, else 0.
    """
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = square.sqrt().div_(root).add_(eps)
    update = mean.div(scale).div_(unbias)
    mask = (update * gradient > 0).to(update.dtype)
    return update.mul_(mask), mask


def clip_gradients(weights: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients with a larger norm down to `max_norm`; return their norm before."""
    chunks = [
        chunk
        for weight in weights
        if weight.grad is not None
        for chunk in weight.grad.split(NORM_CHUNK_ELEMENTS)
    ]
    norm = torch.nn.utils.get_total_norm(chunks)
    torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
    return norm


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices with decay; norms (one dimension) and the embedding without.

    This division is that of SODA's sweep. Each group has one flat weight, and the model's weights
    become views of it. An update then takes a dozen operations, not a dozen for every weight, which
    would be a third of a tiny model's step. `sizes` of a group has the sizes of the model's
    weights, in order, in chunks that are updated together.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    decayed = [weight for name, weight in named if weight.ndim > 1 and "embedding" not in name]
    undecayed = [weight for name, weight in named if weight.ndim <= 1 or "embedding" in name]
    return [_flat_group(decayed, weight_decay), _flat_group(undecayed, 0.0)]


def _flat_group(weights: list[nn.Parameter], weight_decay: float) -> dict[str, Any]:
    sizes = [weight.numel() for weight in weights]
    flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights]))
    flat.grad = torch.zeros_like(flat)
    parts = zip(weights, flat.data.split(sizes), flat.grad.split(sizes), strict=True)
    for weight, values, gradient in parts:
        weight.data, weight.grad = values.view_as(weight), gradient.view_as(weight)
    return {"params": [flat], "sizes": _split_sizes(sizes), "weight_decay": weight_decay}


def _split_sizes(sizes: list[int]) -> list[list[int]]:
    """Return sizes in chunks of at most `MAX_CHUNK_ELEMENTS`; a larger size is a chunk alone."""
    chunks: list[list[int]] = []
    for size in sizes:
        if chunks and sum(chunks[-1]) + size <= MAX_CHUNK_ELEMENTS:
            chunks[-1].append(size)
        else:
            chunks.append([size])
    return chunks
