"""Noise of runs about a fit and between seeds of one configuration; test for lack of fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc, fdtrc

from isoflop.fitting.tables.fit_table import RunsTable
from isoflop.frames import Floats

COPIES_ALPHA = 1e-3
"""Probability below which so many equal seeds are not explained by rounding."""
EQUAL_DECIMALS = 12
"""Decimals of ln loss to which losses are compared: a change of units changes the last bits."""


@dataclass(frozen=True)
class Noise:
    """Standard deviations as shares of the loss (of ln loss), with degrees of freedom.

    Attributes:
        residual_sd: of runs about the fit: noise and misfit together.
        replicate_sd: between seeds of one configuration, pooled: pure error; NaN without
            replicates.
        copies: number of configurations with seeds of equal losses (to 12 digits), if these are
            more than rounding explains. They carry no information on noise: they are one run
            listed twice, or noise below the printed digits.
    """

    residual_sd: float
    residual_dof: int
    replicate_sd: float
    replicate_dof: int
    copies: int = 0

    @property
    def sd(self) -> float:
        """Pure error if there are replicates, else the residuals."""
        return self.replicate_sd if self.replicate_dof else self.residual_sd

    @property
    def lack_of_fit(self) -> float:
        """p-value of the residuals under pure error alone (F test); NaN without replicates.

        The residuals must be those of means over seeds, weighted by the seeds: their sum of
        squares holds no pure error but that of the means, so the two are independent.
        """
        if not self.replicate_dof or not self.residual_dof:
            return float("nan")
        ratio = (self.residual_sd / self.replicate_sd) ** 2
        return float(fdtrc(self.residual_dof, self.replicate_dof, ratio))


def estimate_noise(table: RunsTable, residual_squares: float, residual_dof: int) -> Noise:
    """Return the noise of a table.

    Args:
        table: the runs; the spread of their seeds is pure error.
        residual_squares: weighted sum of squared relative residuals.
        residual_dof: its degrees of freedom.
    """
    squares, dof, copies = _compare_seeds(table)
    replicate_sd = float(np.sqrt(squares / dof)) if dof else float("nan")
    residual_sd = float(np.sqrt(residual_squares / residual_dof))
    return Noise(residual_sd, residual_dof, replicate_sd, dof, copies)


def _compare_seeds(table: RunsTable) -> tuple[float, int, int]:
    """Return the sum of squares of ln loss about the mean of its configuration, its degrees of
    freedom, and the number of configurations whose seeds have equal losses.

    Of equal losses one counts, unless they are no more than rounding explains.
    """
    runs = table.frame[["config", "loss"]].to_numpy()
    compared = np.column_stack([runs[:, 0], np.round(np.log(runs[:, 1]), EQUAL_DECIMALS)])
    first = np.unique(compared, axis=0, return_index=True)[1]
    copies = len(np.unique(np.delete(runs[:, 0], first)))
    squares, dof = _pool_squares(runs[first])
    if copies and dof and (step := _print_step(runs[:, 1])):
        seeds = np.unique(runs[:, 0], return_counts=True)[1]
        sd = float(np.sqrt(squares / dof) * np.median(runs[:, 1]))
        # Probability of two equal losses of a normal law that are printed in small steps.
        equal = min(1.0, step / (2 * np.sqrt(np.pi) * sd) * float(np.mean(seeds[seeds > 1] - 1)))
        if bdtrc(copies - 1, np.count_nonzero(seeds > 1), equal) > COPIES_ALPHA:
            return *_pool_squares(runs), 0
    return squares, dof, copies


def _pool_squares(runs: Floats) -> tuple[float, int]:
    """Return the sum of squares of ln loss within configurations and its degrees of freedom, from
    rows (configuration, loss).
    """
    config, logs = runs[:, 0].astype(np.int64), np.log(runs[:, 1])
    counts = np.bincount(config)
    means = np.bincount(config, logs) / np.maximum(counts, 1)
    return float(np.sum((logs - means[config]) ** 2)), len(runs) - int(np.count_nonzero(counts))


def _print_step(losses: Floats) -> float:
    """Return the last printed decimal of losses, in nats or in bits; 0 beyond seven decimals."""
    for decimals in range(8):
        for scale in (1.0, np.log(2)):
            printed = losses / scale
            if np.allclose(printed, np.round(printed, decimals), rtol=1e-9, atol=0):
                return float(scale * 10.0**-decimals)
    return 0.0
