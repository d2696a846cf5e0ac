"""Cautious AdamC against a loop over single numbers, and its state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from isoflop.shapes import ModelShape
from isoflop.training.model import Decoder
from isoflop.training.optimizer import CautiousAdamC, clip_gradients, parameter_groups

SHAPE = ModelShape(
    width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_width=40, vocab_size=50, seq_len=24
)
MAX_LR = 0.02
RATES = [0.0, 0.01, 0.02, 0.02, 0.015, 0.005]  # warm-up, stable, decay


def reference_weights(
    weight: list[float],
    gradients: list[list[float]],
    rates: list[float],
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> list[float]:
    """Return the weights after all steps, number by number, by the formulas of the papers."""
    beta1, beta2 = betas
    weight, mean, square = list(weight), [0.0] * len(weight), [0.0] * len(weight)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        updates = []
        for i, g in enumerate(gradient):
            mean[i] = beta1 * mean[i] + (1 - beta1) * g
            square[i] = beta2 * square[i] + (1 - beta2) * g * g
            corrected_mean, corrected_square = (
                mean[i] / (1 - beta1**step),
                square[i] / (1 - beta2**step),
            )
            updates.append(corrected_mean / (corrected_square**0.5 + eps))
        agree = [u * g > 0 for u, g in zip(updates, gradient, strict=True)]
        share = sum(agree) / len(agree)
        for i, (u, agrees) in enumerate(zip(updates, agree, strict=True)):
            scaled = u / (share + eps) if agrees else 0.0
            weight[i] -= rate * scaled + weight_decay * rate**2 / MAX_LR * weight[i]
    return weight


def draw_gradients(shape: tuple[int, ...], seed: int, kind: str = "noise") -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in RATES]
    if kind == "sparse":  # rows have gradients in some steps only, as in an embedding
        rows = (shape[0], *(1 for _ in shape[1:]))
        return [gradient * (torch.rand(rows, generator=generator) > 0.6) for gradient in drawn]
    if kind == "tiny":
        return [1e-9 * gradient for gradient in drawn]
    return drawn


CASES = [
    ((7, 5), 0.1, (0.95, 0.98), 1e-15, "noise"),
    ((7, 5), 0.1, (0.95, 0.98 ** (2 / 128)), 1e-15, "noise"),
    ((12,), 0.0, (0.95, 0.98), 1e-15, "noise"),
    ((9, 4), 0.0, (0.9, 0.999), 1e-8, "sparse"),
    ((9, 4), 0.3, (0.0, 0.5), 1e-15, "tiny"),
    ((1,), 0.1, (0.95, 0.98), 1e-15, "noise"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("shape", "weight_decay", "betas", "eps", "kind"), CASES)
def test_steps_are_those_of_the_formula(
    shape: tuple[int, ...],
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    kind: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    numbers = torch.linspace(-1, 1, 40, dtype=torch.float64)
    initial = numbers[: torch.Size(shape).numel()].reshape(shape)
    gradients = draw_gradients(shape, seed=3, kind=kind)
    expected = reference_weights(
        initial.flatten().tolist(),
        [g.flatten().tolist() for g in gradients],
        RATES,
        weight_decay,
        betas,
        eps,
    )
    weight = torch.nn.Parameter(initial.to(dtype))
    optimizer = CautiousAdamC(
        [weight], max_lr=MAX_LR, betas=betas, eps=eps, weight_decay=weight_decay
    )
    for gradient, rate in zip(gradients, RATES, strict=True):
        take_step(optimizer, [weight], [gradient.to(dtype)], rate)
    assert weight.flatten().tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def take_step(
    optimizer: CautiousAdamC,
    weights: list[torch.nn.Parameter],
    gradients: list[Tensor],
    rate: float,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()


def test_the_first_step_moves_every_number_by_the_rate() -> None:
    """Bias correction makes the first update the gradient's sign, so all of it agrees."""
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = CautiousAdamC([weight], max_lr=0.1, betas=(0.95, 0.98), weight_decay=0.0)
    take_step(
        optimizer, [weight], [torch.tensor([3.0, -1e-3, 20.0, -7.0], dtype=torch.float64)], 0.1
    )
    assert weight.tolist() == pytest.approx([-0.1, 0.1, -0.1, 0.1])


def test_a_weight_of_very_many_numbers_moves_as_others_do() -> None:
    """In float32 a count in steps of one stops at 2^24, 45% of SODA's smallest head."""
    weight = torch.nn.Parameter(torch.zeros(3 << 23))
    weight.grad = torch.full_like(weight, 1e-3)
    CautiousAdamC([weight], max_lr=MAX_LR, betas=(0.95, 0.98), weight_decay=0.0).step()
    torch.testing.assert_close(
        weight.detach()[::1000], torch.full_like(weight.detach()[::1000], -MAX_LR)
    )


def test_gradients_of_very_many_numbers_are_clipped_by_their_norm() -> None:
    small, large = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(3 << 23))
    small.grad, large.grad = (
        torch.ones(1),
        torch.randn(3 << 23, generator=torch.Generator().manual_seed(0)),
    )
    exact = float((1 + large.grad.double().square().sum()).sqrt())
    before = large.grad[:1000].clone()
    assert float(clip_gradients([small, large], 2.0)) == pytest.approx(exact, rel=1e-4)
    torch.testing.assert_close(large.grad[:1000], before * 2 / exact, rtol=1e-4, atol=0.0)
    assert float(clip_gradients([small, large], 5.0)) == pytest.approx(2.0, rel=1e-4)
    torch.testing.assert_close(large.grad[:1000], before * 2 / exact, rtol=1e-4, atol=0.0)


def test_an_update_against_the_gradient_is_masked_and_the_rest_scaled_up() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = CautiousAdamC([weight], max_lr=0.1, betas=(0.95, 0.98), weight_decay=0.0)
    take_step(optimizer, [weight], [torch.ones(4, dtype=torch.float64)], 0.1)
    before = weight.detach().clone()
    # The mean of the last number still has the other sign.
    turned = torch.tensor([1.0, 1.0, 1.0, -0.5], dtype=torch.float64)
    take_step(optimizer, [weight], [turned], 0.1)
    change = (weight - before).tolist()
    assert change[3] == 0.0
    assert change[:3] == pytest.approx([-0.1 / 0.75] * 3)


@pytest.mark.parametrize(("rate", "shrink"), [(0.02, 0.1 * 0.02), (0.01, 0.1 * 0.005), (0.0, 0.0)])
def test_decay_falls_with_the_square_of_the_rate(rate: float, shrink: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
    optimizer = CautiousAdamC([weight], max_lr=MAX_LR, betas=(0.95, 0.98), weight_decay=0.1)
    take_step(optimizer, [weight], [torch.zeros(2, dtype=torch.float64)], rate)
    assert weight.tolist() == pytest.approx([2.0 * (1 - shrink), -3.0 * (1 - shrink)], rel=1e-14)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-45, 1e30])
def test_gradients_of_no_or_extreme_size_leave_finite_weights(scale: float) -> None:
    weight = torch.nn.Parameter(torch.ones(8))
    optimizer = CautiousAdamC([weight], max_lr=0.1, betas=(0.95, 0.98), weight_decay=0.0)
    for gradient in draw_gradients((8,), seed=0)[:4]:
        take_step(optimizer, [weight], [(gradient * scale).float().clamp(-1e18, 1e18)], 0.1)
    assert weight.isfinite().all()
    if scale == 0:
        assert torch.equal(weight, torch.ones(8))


def test_a_weight_that_joins_later_is_corrected_for_its_own_steps() -> None:
    early, late = (torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    alone = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    gradients = draw_gradients((3,), seed=5)
    both = CautiousAdamC([early, late], max_lr=MAX_LR, betas=(0.95, 0.98))
    single = CautiousAdamC([alone], max_lr=MAX_LR, betas=(0.95, 0.98))
    early.grad = gradients[0]
    both.step()
    take_step(both, [early, late], [gradients[1], gradients[2]], 0.01)
    take_step(single, [alone], [gradients[2]], 0.01)
    assert torch.equal(late, alone)


def group_names(model: Decoder) -> list[list[str]]:
    """Return the names of the weights that are views of each group's flat weight."""
    groups = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    return [
        [
            name
            for name, weight in model.named_parameters()
            if shares_memory(weight, group["params"][0])
        ]
        for group in groups
    ]


def shares_memory(weight: Tensor, flat: Tensor) -> bool:
    return weight.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def test_matrices_decay_norms_and_embedding_do_not() -> None:
    decayed, undecayed = group_names(Decoder(SHAPE))
    matrices = {"query", "key", "value", "output", "gate", "up", "down", "head"}
    norms = {"attention_norm", "mlp_norm", "query_norm", "key_norm", "norm"}
    assert {name.split(".")[-2] for name in decayed} == matrices
    assert {name.split(".")[-2] for name in undecayed} == norms | {"embedding"}
    assert len(decayed) + len(undecayed) == len(list(Decoder(SHAPE).parameters()))


def test_a_tied_head_does_not_decay() -> None:
    decayed, undecayed = group_names(Decoder(dataclasses.replace(SHAPE, tied=True)))
    assert "embedding.weight" in undecayed
    assert not any("head" in name for name in decayed)


def test_a_frozen_weight_is_in_no_group() -> None:
    model = Decoder(SHAPE)
    model.embedding.requires_grad_(False)
    decayed, undecayed = group_names(model)
    assert "embedding.weight" not in decayed + undecayed


@pytest.mark.parametrize("elements", [1, 300, 1 << 24])
def test_flat_weights_step_as_separate_weights_do(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoflop.training.optimizer.MAX_CHUNK_ELEMENTS", elements)
    torch.manual_seed(0)
    model, alone = Decoder(SHAPE).double(), Decoder(SHAPE).double()
    alone.load_state_dict(model.state_dict())
    weights = [list(decoder.parameters()) for decoder in (model, alone)]
    settings: dict[str, Any] = {"max_lr": MAX_LR, "betas": (0.95, 0.98), "eps": 1e-15}
    flat = CautiousAdamC(parameter_groups(model, 0.0), **settings)
    apart = CautiousAdamC(weights[1], weight_decay=0.0, **settings)
    for step, rate in enumerate(RATES):
        ids = torch.randint(
            SHAPE.vocab_size, (2, SHAPE.seq_len), generator=torch.Generator().manual_seed(step)
        )
        for decoder, optimizer in ((model, flat), (alone, apart)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(decoder(ids).flatten(0, 1), ids.flatten()).backward()
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[-1]["lr"] = rate
            optimizer.step()
    for together, single in zip(*weights, strict=True):
        torch.testing.assert_close(together, single, rtol=1e-9, atol=1e-12)


def trained(
    make_optimizer: Callable[[Decoder], CautiousAdamC], swap_at: int | None, path: str
) -> dict[str, Tensor]:
    """Return the weights after six steps.

    At step `swap_at` model and optimizer are saved to a file and loaded into new ones.
    """
    torch.manual_seed(0)
    model = Decoder(SHAPE)
    optimizer = make_optimizer(model)
    for step, rate in enumerate(RATES):
        if step == swap_at:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
            saved = torch.load(path, weights_only=True)
            model = Decoder(SHAPE)
            optimizer = make_optimizer(model)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        ids = torch.randint(
            SHAPE.vocab_size, (2, SHAPE.seq_len), generator=torch.Generator().manual_seed(step)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    steps = [state["step"] for state in optimizer.state.values()]
    return {**model.state_dict(), "steps": torch.tensor(steps)}


@pytest.mark.parametrize("swap_at", [1, 3, 5])
def test_a_restored_optimizer_continues_exactly(swap_at: int, tmp_path: object) -> None:
    def make_optimizer(model: Decoder) -> CautiousAdamC:
        return CautiousAdamC(parameter_groups(model, 0.1), max_lr=MAX_LR, betas=(0.95, 0.98))

    path = f"{tmp_path}/state.pt"
    whole, resumed = trained(make_optimizer, None, path), trained(make_optimizer, swap_at, path)
    assert whole["steps"].tolist() == [len(RATES)] * 2
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
