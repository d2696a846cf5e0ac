"""IsoFLOP studies with known truth: a loss surface, a grid around its optima, log-normal noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Surface:
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token, with C = 6 N D (Hoffmann et al. 2022, Approach 3)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def a(self) -> float:
        """Exponent of N*(C): beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of D*(C): alpha / (alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Loss in nats per token without noise."""
        return self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(tokens, -self.beta)

    def optimum(self, flops: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """N* = G (C/6)^a and D* = (C/6)^b / G with G = (alpha A / (beta B))^(1 / (alpha + beta))."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1.0 / (self.alpha + self.beta))
        sixth = np.asarray(flops, dtype=np.float64) / 6.0
        return scale * sixth**self.a, sixth**self.b / scale


SURFACES = {
    # The optimum of Chinchilla's 240 rows as digitised by Epoch AI, Huber delta 1e-3.
    "chinchilla": Surface(E=1.8172181, A=477.82587, B=2143.4174, alpha=0.34731050, beta=0.36717243),
    # SODA's published parametric fit, as quoted by Open-Athena.
    "soda": Surface(E=3.169, A=215_886.0, B=4750.0, alpha=0.684, beta=0.439),
}


def simulate_isoflop(
    surface: Surface = SURFACES["chinchilla"],
    budgets: Sequence[float] = (1e18, 3e18, 1e19, 3e19, 1e20, 3e20, 1e21),
    points: int = 9,
    *,
    spread: float = 6.0,
    offset: float = 1.0,
    drift: float = 1.0,
    noise: float = 0.003,
    seeds: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Runs of an imagined study.

    Args:
        surface: the true law.
        budgets: training FLOPs.
        points: model sizes a budget, evenly spaced in log N.
        spread: sizes reach from centre / spread to centre * spread.
        offset: centre of the sizes at the smallest budget, as a multiple of the true N*.
        drift: by how much that multiple has grown at the largest budget.
        noise: standard deviation of the log loss.
        seeds: runs of each configuration.
        seed: of the noise.

    Returns:
        A row a run: `run_id, budget, train_flops, params, tokens, loss, seed, simulated`.
    """
    budget = np.asarray(budgets, dtype=np.float64)
    growth = np.linspace(0.0, 1.0, len(budget)) if len(budget) > 1 else np.zeros(1)
    centre = surface.optimum(budget)[0] * offset * drift**growth
    params = centre[:, None] * spread ** np.linspace(-1.0, 1.0, points)
    flops = np.repeat(budget, points * seeds)
    size = np.repeat(params.ravel(), seeds)
    tokens = flops / (6.0 * size)
    error = np.random.default_rng(seed).normal(0.0, noise, len(size)) if noise else np.zeros(len(size))
    return pd.DataFrame(
        {
            "run_id": [f"sim-{i:04d}" for i in range(len(size))],
            "budget": flops,
            "train_flops": flops,
            "params": size,
            "tokens": tokens,
            "loss": surface.loss(size, tokens) * np.exp(error),
            "seed": np.tile(np.arange(seeds), len(budget) * points),
            "simulated": True,
        }
    )
