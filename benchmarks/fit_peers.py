"""What `fit.py` measures of other tools; runs in their environment, without isoflop.

python benchmarks/fit_peers.py --case resamples --data surface.csv --repeats 3
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd


def _evaluations(data: Path) -> object:
    """The columns that simple-scaling-laws finds by their names."""
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

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            frame = pd.read_csv(data).rename(columns={"params": "N", "tokens": "D", "flops": "C"})
            frame[["C", "N", "D", "loss"]].to_csv(Path(folder) / "df.csv", index=False)
            Chinchilla(folder, param_grid=grid, log_level=50).fit()

    return work


CASES = {"resamples": _resamples, "profiles": _profiles, "one-fit": _one_fit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True, choices=CASES)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    work = CASES[options.case](options.data)
    before = peak_kib()
    times = []
    if options.repeats > 1:
        work()
    for _ in range(options.repeats):
        wall, cpu = time.perf_counter(), _cpu()
        work()
        times.append((time.perf_counter() - wall, _cpu() - cpu))
    peak = peak_kib() - before
    seconds, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    print(json.dumps({"seconds": seconds, "cpu": cpu, "mib": peak / 1024.0}))


def peak_kib() -> int:
    """The most memory so far; Linux counts it anew for a program, `getrusage` goes on from the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def _cpu() -> float:
    """Of this process and of the ones it started."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
