"""Studies whose compute is not 6ND."""

from __future__ import annotations

import numpy as np
import pandas as pd

EMBEDDING_BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20)


def with_embeddings(seed: int = 1, noise: float = 0.001) -> pd.DataFrame:
    """Return a study whose N counts 20M embeddings that cost nothing."""
    rng, table = np.random.default_rng(seed), []
    for flops in EMBEDDING_BUDGETS:
        for factor in np.geomspace(0.3, 3.3, 9):
            body = factor * np.sqrt(flops / 150.0)
            size, data = body + 2e7, flops / (6.0 * body)
            clean = 1.8 + 400.0 / size**0.34 + 2000.0 / data**0.37
            loss = clean * np.exp(noise * rng.standard_normal())
            table.append((size, data, flops, flops, loss))
    return pd.DataFrame(table, columns=["params", "tokens", "flops", "budget", "loss"])
