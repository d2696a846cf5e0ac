"""Table of the residuals of configurations about a fit."""

from __future__ import annotations

import numpy as np
import pandas as pd

from isoflop.fitting.estimators.surface_estimate import robust_sd
from isoflop.frames import Floats

CONFIGURATION_COLUMNS = ["budget", "params", "tokens", "flops", "loss"]


def residual_table(configurations: pd.DataFrame, gap: Floats, parameters: int) -> pd.DataFrame:
    """Return a row a configuration: budget, params, tokens, flops, loss, `residual` and `sds`.

    `sds` is the residual in robust standard deviations of one run; `attrs["robust_sd"]` is that
    standard deviation.

    Args:
        configurations: a frame with the columns above and `seeds`.
        gap: `residual` of each mean, of ln loss or in nats.
        parameters: number of fitted parameters.
    """
    scaled = gap * np.sqrt(configurations["seeds"].to_numpy(dtype=np.float64))
    sd = float(robust_sd(scaled, parameters))
    table = configurations[CONFIGURATION_COLUMNS].assign(
        residual=gap, sds=scaled / sd if sd > 0.0 else np.zeros(len(scaled))
    )
    table.attrs["robust_sd"] = sd
    return table
