"""Measures of other tools for `fit.py`; runs in their environment, without isoflop.

python benchmarks/fit_peers.py --case resamples --data surface.csv --repeats 3
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from timed import measure


def _evaluations(data: Path) -> object:
    """Return the data under the column names of simple-scaling-laws."""
    import polars as pl

    frame = pl.read_csv(data)
    return pl.DataFrame(
        {
            "model_size__n_params": frame["params"],
            "dataset_size__n_tokens": frame["tokens"],
            "test_loss__ce": frame["loss"],
            "training_run_id": [f"r{k}" for k in range(len(frame))],
            "test_set_id": ["held-out"] * len(frame),
        }
    )


def _resamples(data: Path) -> Callable[[], object]:
    from simple_scaling_laws import fit

    return lambda: fit(_evaluations(data), n_draws=4000, seed=0)


def _profiles(data: Path) -> Callable[[], object]:
    from simple_scaling_laws import cost_model, fit_isoflop

    cost = cost_model("power", k=6.0, a=1.0, b=1.0)
    return lambda: fit_isoflop(_evaluations(data), cost=cost, n_draws=4000, seed=0)


def _one_fit(data: Path) -> Callable[[], object]:
    from chinchilla import Chinchilla

    grid = {"E": np.linspace(1, 2, 5), "a": np.linspace(1, 10, 5), "b": np.linspace(1, 10, 5)}
    grid |= {"alpha": np.linspace(0.1, 0.7, 5), "beta": np.linspace(0.1, 0.7, 5)}

    def fit_once() -> None:
        with tempfile.TemporaryDirectory() as folder:
            frame = pd.read_csv(data).rename(columns={"params": "N", "tokens": "D", "flops": "C"})
            frame[["C", "N", "D", "loss"]].to_csv(Path(folder) / "df.csv", index=False)
            Chinchilla(folder, param_grid=grid, log_level=50).fit()

    return fit_once


CASES = {"resamples": _resamples, "profiles": _profiles, "one-fit": _one_fit}


def main() -> None:
    """Measure a case and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True, choices=CASES)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    measure(CASES[options.case](options.data), options.repeats)


if __name__ == "__main__":
    main()
