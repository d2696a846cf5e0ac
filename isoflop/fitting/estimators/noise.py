"""Noise of runs: about a fit, and between seeds of one configuration; whether a fit misses more than noise explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc, fdtrc

from isoflop.fitting.tables.runs_table import RunsTable

Floats = np.ndarray

RARE = 1e-3
"""Probability below which so many seeds are not equal by rounding."""


@dataclass(frozen=True)
class Noise:
    """Standard deviations as shares of the loss (of ln loss), with degrees of freedom.

    Attributes:
        residual_sd: of runs about what was fitted: noise and misfit together.
        replicate_sd: between seeds of one configuration, pooled: pure error; NaN without replicates.
        copies: configurations with seeds whose losses are equal to the last digit, where these are more than rounding
            makes. They say nothing of noise: they are one run listed twice, or noise below the digits printed.
    """

    residual_sd: float
    residual_dof: int
    replicate_sd: float
    replicate_dof: int
    copies: int = 0

    @property
    def sd(self) -> float:
        """Pure error where it is known, else the residuals."""
        return self.replicate_sd if self.replicate_dof else self.residual_sd

    @property
    def lack_of_fit(self) -> float:
        """Probability of residuals as large as these if there were only pure error (F test); NaN without replicates.

        The residuals must be those of means over seeds, weighted by the seeds: their sum of squares holds no pure
        error but that of the means, so the two are independent.
        """
        if not self.replicate_dof or not self.residual_dof:
            return float("nan")
        return float(
            fdtrc(
                self.residual_dof, self.replicate_dof, (self.residual_sd / self.replicate_sd) ** 2
            )
        )


def noise_of(table: RunsTable, residual_squares: float, residual_dof: int) -> Noise:
    """Noise from the weighted sum of squared relative residuals, and the spread of seeds in the table."""
    squares, dof, copies = _between_seeds(table)
    replicate_sd = float(np.sqrt(squares / dof)) if dof else float("nan")
    return Noise(
        float(np.sqrt(residual_squares / residual_dof)), residual_dof, replicate_sd, dof, copies
    )


def _between_seeds(table: RunsTable) -> tuple[float, int, int]:
    """Sum of squares of ln loss about the mean of its configuration, its degrees of freedom, and in how many
    configurations seeds have equal losses: of these one counts, unless they are no more than rounding makes.
    """
    runs = table.frame[["config", "loss"]].to_numpy()
    own, first = np.unique(runs, axis=0, return_index=True)
    copies = len(np.unique(np.delete(runs[:, 0], first)))
    squares, dof = _pooled(own)
    if copies and dof and (step := _step(runs[:, 1])):
        seeds = np.unique(runs[:, 0], return_counts=True)[1]
        sd = float(np.sqrt(squares / dof) * np.median(runs[:, 1]))
        # Two losses of a normal law that are printed in small steps are equal with this probability.
        equal = min(1.0, step / (2 * np.sqrt(np.pi) * sd) * float(np.mean(seeds[seeds > 1] - 1)))
        if bdtrc(copies - 1, np.count_nonzero(seeds > 1), equal) > RARE:
            return *_pooled(runs), 0
    return squares, dof, copies


def _pooled(runs: Floats) -> tuple[float, int]:
    """Sum of squares within configurations and its degrees of freedom, of rows (configuration, loss)."""
    config, logs = runs[:, 0].astype(np.int64), np.log(runs[:, 1])
    counts = np.bincount(config)
    means = np.bincount(config, logs) / np.maximum(counts, 1)
    return float(np.sum((logs - means[config]) ** 2)), len(runs) - int(np.count_nonzero(counts))


def _step(losses: Floats) -> float:
    """The last decimal that losses are printed to, in nats or in bits; 0 where they have more than seven."""
    for decimals in range(8):
        for scale in (1.0, np.log(2)):
            printed = losses / scale
            if np.allclose(printed, np.round(printed, decimals), rtol=1e-9, atol=0):
                return float(scale * 10.0**-decimals)
    return 0.0
