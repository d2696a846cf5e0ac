"""Influence: the surface with one configuration left out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from isoflop.fitting.estimators.surface_estimate import (
    Estimate,
    Sample,
    jacobian,
    minimise,
    robust_sd,
)
from isoflop.fitting.estimators.surface_optimum import growth_exponents
from isoflop.frames import Floats

MAX_EXACT_CONFIGURATIONS = 1000  # above, one Newton step replaces the fit without each


def influence_table(
    sample: Sample, estimate: Estimate, leverage: Floats, a: float, a_error: float
) -> pd.DataFrame:
    """Return a row for each configuration left out in turn; see `ParametricFit.influence`.

    Args:
        sample: the K configurations.
        estimate: of the law with all of them.
        leverage: of each, (K,).
        a, a_error: the exponent with all of them, and its standard error.
    """
    points, theta = sample.points, estimate.theta[0]
    scaled = sample.residuals(theta)
    sd = float(robust_sd(scaled))
    others = fit_without_each(sample, estimate)
    without = growth_exponents(points, others, sample.cost)[0][:, 0]
    unknown = np.zeros(len(sample))
    return pd.DataFrame(
        {
            "params": np.exp(points.x + points.x_mean),
            "tokens": np.exp(points.y + points.y_mean),
            "loss": points.loss,
            "residual": scaled / np.sqrt(sample.seeds),
            "sds": scaled / sd if sd > 0.0 else unknown,
            "leverage": leverage,
            "a": without,
            "a_shift": (without - a) / a_error if a_error > 0.0 else unknown,
        },
        index=pd.Index(sample.config, name="config"),
    )


def fit_without_each(sample: Sample, estimate: Estimate) -> Floats:
    """Return theta without each configuration, (K, 5).

    Above 1000 configurations, K fits of K configurations would take too long. One Newton step from
    the estimate replaces them (the infinitesimal influence over 1 - leverage; Cook and Weisberg
    1982, section 3.4).
    """
    if len(sample) > MAX_EXACT_CONFIGURATIONS:
        return _step_without_each(sample, estimate)
    sd = float(robust_sd(sample.residuals(estimate.theta[0])))
    first = np.repeat(estimate.theta, len(sample), axis=0)
    weight = sample.seeds * (1.0 - np.eye(len(sample)))
    return minimise(sample, first, float(estimate.delta[0]), sd, weight).theta


def _step_without_each(sample: Sample, estimate: Estimate) -> Floats:
    """Return theta without each configuration, (K, 5), by one Newton step."""
    theta, delta = estimate.theta[0], float(estimate.delta[0])
    columns, residuals = jacobian(sample, theta), sample.residuals(theta)
    inside = np.abs(residuals) <= delta
    moves = columns @ np.linalg.pinv((columns * inside[:, None]).T @ columns, hermitian=True)
    leverage = np.clip(inside * np.sum(moves * columns, axis=1), 0.0, 0.99)
    return theta - moves * (np.clip(residuals, -delta, delta) / (1.0 - leverage))[:, None]
