"""Straight lines and intervals: t quantiles, the log-log line over budgets, bootstrap draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from isoflop.errors import FitError
from isoflop.frames import Floats

MIN_RESAMPLES = 100
SDS_PER_MAD = 1.4826
"""Standard deviations in the median absolute deviation of a Gaussian."""


class Interval(NamedTuple):
    """A value with the ends of its interval; infinite where the data set no bound."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Upper end less lower end; NaN without an interval."""
        return self.high - self.low


@dataclass(frozen=True)
class Line:
    """Unweighted least squares of ln y on ln C over K budgets, centred at the mean of ln C.

    Unweighted, since the scatter of optima about the line is mostly the parabola's misfit, which
    weights by noise would ignore; and as published (Hoffmann et al. 2022, Llama 3).

    Attributes:
        slope: exponent.
        middle: ln y at the mean of ln C.
        x_mean: mean of ln C.
        sxx: sum of squares of ln C about its mean.
        variance: of a residual; NaN for two budgets.
        dof: K - 2.
    """

    slope: float
    middle: float
    x_mean: float
    sxx: float
    variance: float
    dof: int

    @classmethod
    def through(cls, x: Floats, y: Floats) -> Line:
        """Return the line through K points ln C, ln y."""
        centred = x - x.mean()
        sxx = float(centred @ centred)
        slope, middle, dof = float(centred @ y) / sxx, float(y.mean()), len(x) - 2
        residuals = y - middle - slope * centred
        variance = float(residuals @ residuals) / dof if dof else np.nan
        return cls(slope, middle, float(x.mean()), sxx, variance, dof)

    @property
    def intercept(self) -> float:
        """ln y at C = 1."""
        return self.middle - self.slope * self.x_mean

    @property
    def slope_se(self) -> float:
        """Standard error of the slope."""
        return float(np.sqrt(self.variance / self.sxx))

    def at(self, x: float) -> float:
        """Return ln y at ln C = x."""
        return self.middle + self.slope * (x - self.x_mean)

    def se_at(self, x: float) -> float:
        """Return the standard error of the line (not of one more point) at x."""
        return float(np.sqrt(self.variance * self.variance_factor(x)))

    def variance_factor(self, x: float) -> float:
        """Return the variance of the line at x over that of a residual."""
        return 1.0 / (self.dof + 2) + (x - self.x_mean) ** 2 / self.sxx


def check_confidence(confidence: float) -> None:
    """Raise FitError unless a confidence lies between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise FitError(f"confidence is a share between 0 and 1, not {confidence:g}")


def check_resamples(count: int) -> None:
    """Raise FitError for a number of resamples that gives no interval."""
    if count != 0 and count < MIN_RESAMPLES:
        raise FitError(
            f"{count} resamples are too few for an interval: {MIN_RESAMPLES} or more, or 0 for none"
        )


def lines_through(x: Floats, draws: Floats) -> tuple[Floats, Floats]:
    """Return slopes and intercepts of the lines through each row of draws (R, K) over x (K,)."""
    centred = x - x.mean()
    slopes = draws @ centred / (centred @ centred)
    return slopes, draws.mean(axis=1) - slopes * x.mean()


def t_interval(value: float, se: float, dof: int, confidence: float) -> Interval:
    """Return value -/+ t(dof) * se."""
    half = float(stdtrit(dof, 0.5 + confidence / 2.0)) * se
    return Interval(value, value - half, value + half)


def draws_interval(value: float, draws: Floats, dof: int, confidence: float) -> Interval:
    """Return percentiles of the draws, stretched from the normal to the t quantile about the value.

    The spread of the residuals is itself an estimate, on `dof` degrees of freedom. A draw without
    a value (NaN: its parabola had no minimum) counts half below and half above all others, so that
    many of them make the ends infinite. Without draws the ends are NaN.
    """
    tail = 0.5 - confidence / 2.0
    stretch = float(stdtrit(dof, 1.0 - tail) / ndtri(1.0 - tail))
    low, high = _quantiles(draws, tail)
    return Interval(value, value - stretch * (value - low), value + stretch * (high - value))


def _quantiles(draws: Floats, tail: float) -> tuple[float, float]:
    """Return the quantiles `tail` and 1 - `tail` of the draws, NaN split between both ends."""
    if not len(draws):
        return np.nan, np.nan
    finite = np.sort(draws[np.isfinite(draws)])
    lost = 0.5 * (len(draws) - len(finite))
    position = tail * (len(draws) - 1) - lost
    if position < 0 or len(finite) < 2:
        return -np.inf, np.inf
    share = position / (len(finite) - 1)
    low, high = np.quantile(finite, [share, 1.0 - share])
    return float(low), float(high)


def percentile_interval(value: float, draws: Floats, confidence: float) -> Interval:
    """Return plain percentiles of the draws, as published intervals of this field have them."""
    return Interval(value, *_quantiles(draws, 0.5 - confidence / 2.0))


def wider(first: Interval, second: Interval) -> Interval:
    """Return the wider of two intervals of one value; an unknown one (NaN) loses."""
    return second if np.isnan(first.width) or second.width > first.width else first


def exponential(interval: Interval) -> Interval:
    """Return an interval of logarithms in units."""
    with np.errstate(over="ignore"):
        return Interval(*(float(np.exp(v)) for v in interval))
