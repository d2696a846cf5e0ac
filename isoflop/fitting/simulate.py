"""Simulated IsoFLOP studies of a known law: a loss surface, a grid around its optima, log-normal
noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from isoflop.laws import SURFACES, Surface


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
    """Return the runs of a simulated study.

    Args:
        surface: the true law.
        budgets: budgets, training FLOPs.
        points: number of model sizes for each budget, evenly spaced in ln N.
        spread: sizes reach from centre / spread to centre * spread.
        offset: centre of the sizes at the smallest budget, as a multiple of the true N*.
        drift: growth of that multiple from the smallest to the largest budget, a factor.
        noise: standard deviation of ln loss.
        seeds: number of runs of each configuration.
        seed: seed of the noise.

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
    error = (
        np.random.default_rng(seed).normal(0.0, noise, len(size)) if noise else np.zeros(len(size))
    )
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
