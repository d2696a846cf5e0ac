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
    """Least squares of ln y on ln C over K budgets, centred at the mean of ln C.

    Unweighted by default, since the scatter of optima about the line is mostly the parabola's
    misfit, which weights by noise would ignore; and as published (Hoffmann et al. 2022, Llama 3).

    Attributes:
        slope: exponent.
        middle: ln y at the mean of ln C.
        x_mean: mean of ln C, with the weights.
        sxx: sum of squares of ln C about its mean, with the weights, whose mean is 1.
        variance: of a residual of weight 1; NaN for two budgets.
        dof: K - 2.
        shared: change of `middle` and of `slope` by a standard deviation of each of two unknowns
            that several budgets share.
    """

    slope: float
    middle: float
    x_mean: float
    sxx: float
    variance: float
    dof: int
    shared: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))

    @classmethod
    def through(
        cls, x: Floats, y: Floats, weights: Floats | None = None, shared: Floats | None = None
    ) -> Line:
        """Return the line through K points ln C, ln y.

        Args:
            x, y: ln C and ln y, (K,).
            weights: of the points, (K,); default 1.
            shared: change of each y by a standard deviation of two unknowns, (K, 2).
        """
        weight = _mean_one(weights, len(x))
        x_mean = float(weight @ x) / len(x)
        centred = weight * (x - x_mean)
        sxx, dof = float(centred @ (x - x_mean)), len(x) - 2
        slope, middle = float(centred @ y) / sxx, float(weight @ y) / len(x)
        residuals = y - middle - slope * (x - x_mean)
        variance = float(weight @ residuals**2) / dof if dof else np.nan
        if shared is None:
            return cls(slope, middle, x_mean, sxx, variance, dof)
        by_middle, by_slope = weight @ shared / len(x), centred @ shared / sxx
        (m1, m2), (s1, s2) = by_middle.tolist(), by_slope.tolist()
        return cls(slope, middle, x_mean, sxx, variance, dof, ((m1, m2), (s1, s2)))

    @property
    def intercept(self) -> float:
        """ln y at C = 1."""
        return self.middle - self.slope * self.x_mean

    @property
    def slope_se(self) -> float:
        """Standard error of the slope."""
        return float(np.sqrt(self.variance / self.sxx + np.sum(np.square(self.shared[1]))))

    def at(self, x: float) -> float:
        """Return ln y at ln C = x."""
        return self.middle + self.slope * (x - self.x_mean)

    def se_at(self, x: float) -> float:
        """Return the standard error of the line (not of one more point) at x."""
        shared = np.sum(np.square(self.shared_at(x)))
        return float(np.sqrt(self.variance * self.variance_factor(x) + shared))

    def shared_at(self, x: float) -> Floats:
        """Return the change of the line at x by a standard deviation of the unknowns, (2,)."""
        return np.asarray(self.shared[0]) + (x - self.x_mean) * np.asarray(self.shared[1])

    def variance_factor(self, x: float) -> float:
        """Return the variance of the line at x over that of a residual, without what is shared."""
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


def lines_through(x: Floats, draws: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Return slopes and intercepts of the lines through each row of draws (R, K) over x (K,), with
    weights (K,), default 1.
    """
    weight = _mean_one(weights, len(x)) / len(x)
    x_mean = float(weight @ x)
    centred = weight * (x - x_mean)
    slopes = draws @ centred / (centred @ (x - x_mean))
    return slopes, draws @ weight - slopes * x_mean


def _mean_one(weights: Floats | None, count: int) -> Floats:
    """Return weights, (K,), of mean 1; None stands for equal ones."""
    return np.ones(count) if weights is None else weights / weights.mean()


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
