"""Noise of runs: about a fit, and between seeds of one configuration; whether a fit misses more than noise explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc

from isoflop.fitting.table import RunsTable

Floats = np.ndarray


@dataclass(frozen=True)
class Noise:
    """Standard deviations as shares of the loss (of ln loss), with degrees of freedom.

    Attributes:
        residual_sd: of runs about what was fitted: noise and misfit together.
        replicate_sd: between seeds of one configuration, pooled: pure error; NaN without replicates.
        copies: configurations with seeds whose losses are equal to the last digit. These say nothing of noise: they are
            one run listed twice, or noise below the digits that were printed.
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
        return float(fdtrc(self.residual_dof, self.replicate_dof, (self.residual_sd / self.replicate_sd) ** 2))


def noise_of(table: RunsTable, residual_squares: float, residual_dof: int) -> Noise:
    """Noise from the weighted sum of squared relative residuals, and the spread of seeds in the table."""
    squares, dof, copies = _between_seeds(table)
    replicate_sd = float(np.sqrt(squares / dof)) if dof else float("nan")
    return Noise(float(np.sqrt(residual_squares / residual_dof)), residual_dof, replicate_sd, dof, copies)


def _between_seeds(table: RunsTable) -> tuple[float, int, int]:
    """Sum of squares of ln loss about the mean of its configuration, its degrees of freedom, and in how many
    configurations seeds have equal losses: of these one counts.
    """
    own, first = np.unique(table.frame[["config", "loss"]].to_numpy(), axis=0, return_index=True)
    config, logs = own[:, 0].astype(np.int64), np.log(own[:, 1])
    again = np.delete(table.frame["config"].to_numpy(), first)
    counts = np.bincount(config)
    means = np.bincount(config, logs) / np.maximum(counts, 1)
    squares = float(np.sum((logs - means[config]) ** 2))
    return squares, len(own) - int(np.count_nonzero(counts)), len(np.unique(again))
