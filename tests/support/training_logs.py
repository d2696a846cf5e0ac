"""Logs of runs on a warm-up-stable-decay schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def curve(
    rows: int, shape: float = 1.0, drop: float = 0.06
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return share of the run, loss without noise and learning rate, one value a row.

    The schedule is warm-up-stable-decay, with a decay of 20%. The loss falls by `drop` over the
    decay, as 1 - lr^shape.
    """
    share = np.arange(1, rows + 1) / rows
    rate = np.minimum(share / 0.01, 1.0) * (1.0 - np.clip((share - 0.8) / 0.2, 0.0, 1.0))
    stable = 2.0 + 0.3 * (share + 0.002) ** -0.3
    return share, stable * np.where(share > 0.8, 1.0 - drop * (1.0 - rate**shape), 1.0), rate


def make_log(
    run: str = "r", rows: int = 200, level: float = 1.0, noise: float = 0.0, **columns: Any
) -> pd.DataFrame:
    """Return the log of a run on the schedule of `curve`."""
    share, loss, rate = curve(rows)
    error = np.random.default_rng(len(run)).normal(0.0, noise, rows)
    table = {
        "run": run,
        "step": np.arange(1, rows + 1) * 10,
        "tokens": share * 1e9,
        "lr": rate * 3e-4,
    }
    return pd.DataFrame(
        {
            **table,
            "loss": level * loss * np.exp(error),
            "params": 1e7,
            "flops": share * 6e16,
            **columns,
        }
    )
