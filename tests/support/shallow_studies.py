"""Studies with profiles that noise bends as much as the law does."""

from __future__ import annotations

import numpy as np
import pandas as pd

TRUE_A = 0.37 / (0.34 + 0.37)
SHALLOW_BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20, 3e20, 1e21)


def shallow_study(seed: int, noise: float = 0.008) -> pd.DataFrame:
    """Return 61 runs at 7 budgets, the smallest with few sizes, in C = 6ND."""
    rng, table = np.random.default_rng(seed), []
    for flops in SHALLOW_BUDGETS:
        narrow = flops == SHALLOW_BUDGETS[0]
        factors = np.geomspace(0.6, 1.7, 7) if narrow else np.geomspace(0.3, 3.0, 9)
        for size in factors * np.sqrt(flops / 120.0):
            data = flops / (6.0 * size)
            clean = 1.8 + 400.0 / size**0.34 + 2000.0 / data**0.37
            loss = clean * np.exp(noise * rng.standard_normal())
            table.append((size, data, flops, flops, loss))
    return pd.DataFrame(table, columns=["params", "tokens", "flops", "budget", "loss"])
