"""Residuals of configurations about what was fitted, as a table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from isoflop.fitting.estimators.surface_estimate import robust_sd

Floats = np.ndarray
COLUMNS = ["budget", "params", "tokens", "flops", "loss"]


def residual_table(configurations: pd.DataFrame, gap: Floats, parameters: int) -> pd.DataFrame:
    """A row a configuration: budget, params, tokens, flops, loss, `residual` and `sds`.

    Args:
        configurations: with the columns above and `seeds`.
        gap: `residual` of each mean, of ln loss or in nats.
        parameters: how many were fitted.

    Returns:
        `sds` is the residual on the scale of one run's noise (times the root of the seeds), in `attrs["robust_sd"]`.
    """
    scaled = gap * np.sqrt(configurations["seeds"].to_numpy(dtype=np.float64))
    sd = float(robust_sd(scaled, parameters))
    table = configurations[COLUMNS].assign(
        residual=gap, sds=scaled / sd if sd > 0.0 else np.zeros(len(scaled))
    )
    table.attrs["robust_sd"] = sd
    return table
