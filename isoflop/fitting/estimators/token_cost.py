"""Cost of a token: C / (6ND), a smooth function of size and compute, read off the runs' FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import fdtrc

from isoflop.fitting.estimators.intervals import SDS_PER_MAD
from isoflop.frames import Floats

LN_SIX = float(np.log(6.0))
SIX_ND_TOLERANCE = 0.01
"""In ln C: runs whose C / (6ND) differs less from a constant have that ratio; less from 1, C = 6ND.
"""
BUDGET_ALPHA = 0.01
"""p-value below which the ratio depends on compute as well as on size."""
MAX_SIZES = 200
"""Above this number of different sizes, neighbours are averaged."""
MIN_SIZE_GAP = 1e-3
"""Of the range of ln N: sizes less far apart count as one, since a spline needs gaps."""
MIN_SMOOTHED_SIZES = 5
"""Below this number of different sizes, the curve interpolates them."""
KNOTS = 101
MAX_RATIO_SDS = 6.0
"""Runs whose ratio lies farther off the curve, in robust standard deviations, don't shape it."""
_MAX_ROUNDS = 30
_ROUND_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class TokenCost:
    """ln[C / (6ND)] = s(ln N) + u(ln C).

    s is a cubic spline through its knots, u is linear between the budgets. Beyond the knots both
    are held at their values at the edge.

    Attributes:
        ln_params: knots of s, ascending, (S,); one for a constant ratio.
        ln_ratio: s at the knots, (S,).
        ln_flops: ln C of the budgets, ascending, (B,); empty for C = 6ND without runs.
        shift: u at the budgets, (B,).
        span: the least and the greatest ln[C / (6ND)] of the runs.
        scatter: root mean square of the runs' ln[C / (6ND)] about the curve.
    """

    ln_params: Floats
    ln_ratio: Floats
    ln_flops: Floats
    shift: Floats
    span: tuple[float, float] = (0.0, 0.0)
    scatter: float = 0.0

    @classmethod
    def from_runs(
        cls, ln_params: Floats, ln_tokens: Floats, flops: Floats, budget: Floats
    ) -> TokenCost:
        """Return the cost of K runs.

        s is a cost affine in N and a cubic smoothing spline, whose penalty generalised
        cross-validation chooses (Craven and Wahba 1979). u is added if the ratios depend on the
        budget beyond it (F test), and both are then fitted in turn until neither moves (Buja,
        Hastie and Tibshirani 1989).

        Args:
            ln_params, ln_tokens: ln N and ln D, (K,).
            flops: training FLOPs, (K,).
            budget: label of each one's budget, (K,).
        """
        ratio = np.log(flops) - LN_SIX - ln_params - ln_tokens
        labels, group = np.unique(budget, return_inverse=True)
        counts = np.bincount(group)
        ln_flops = np.bincount(group, np.log(flops)) / counts
        span, middle = (float(ratio.min()), float(ratio.max())), float(np.median(ratio))
        no_shift = np.zeros(len(labels))
        if max(map(abs, span)) <= SIX_ND_TOLERANCE:
            middle = 0.0
        is_even = max(span[1] - middle, middle - span[0]) <= SIX_ND_TOLERANCE
        if is_even or np.ptp(ln_params) <= SIX_ND_TOLERANCE:
            return cls(np.zeros(1), np.array([middle]), ln_flops, no_shift, span)
        curve = _fit_sizes(ln_params, ratio)
        off = ratio - curve(ln_params)
        sd = max(SDS_PER_MAD * float(np.median(np.abs(off))), SIX_ND_TOLERANCE / MAX_RATIO_SDS)
        near = np.abs(off) <= MAX_RATIO_SDS * sd
        x, y, groups, shift = ln_params[near], ratio[near], group[near], no_shift
        if not near.all():
            curve = _fit_sizes(x, y)
        off = y - curve(x)
        if _depends_on_group(off, groups):
            for _ in range(_MAX_ROUNDS):
                change = _group_means(off, groups, len(labels))
                shift = shift + change - np.mean(change)
                curve = _fit_sizes(x, y - shift[groups])
                off = y - shift[groups] - curve(x)
                if np.max(np.abs(change)) < _ROUND_TOLERANCE:
                    break
        scatter = float(np.sqrt(np.mean(off**2)))
        knots = np.linspace(x.min(), x.max(), KNOTS)
        return cls(knots, curve(knots), ln_flops, shift, span, scatter)

    @property
    def is_six_nd(self) -> bool:
        """True for C = 6ND."""
        return self.is_constant and self.ln_ratio[0] == 0.0

    @property
    def is_constant(self) -> bool:
        """True for a ratio that depends neither on size nor on compute."""
        return len(self.ln_params) == 1

    @property
    def size_range(self) -> tuple[float, float]:
        """The least and the greatest N with a run; (0, inf) for a constant ratio."""
        if self.is_constant:
            return 0.0, np.inf
        return float(np.exp(self.ln_params[0])), float(np.exp(self.ln_params[-1]))

    def ln_cost(self, ln_params: Floats | float, ln_flops: Floats | float) -> Floats:
        """Return ln[C / (6ND)] at ln N and ln C, which are broadcast."""
        if self.is_constant:
            shape = np.broadcast_shapes(np.shape(ln_params), np.shape(ln_flops))
            return np.full(shape, self.ln_ratio[0])
        return self._at_sizes(ln_params, 0) + np.interp(ln_flops, self.ln_flops, self.shift)

    def ln_tokens(self, ln_params: Floats | float, ln_flops: Floats | float) -> Floats:
        """Return the ln D that C FLOPs buy at a size."""
        return ln_flops - LN_SIX - ln_params - self.ln_cost(ln_params, ln_flops)

    def ln_flops_for(self, ln_params: Floats | float, ln_tokens: Floats | float) -> Floats:
        """Return the ln C of ln N and ln D, which are broadcast."""
        product = LN_SIX + np.asarray(ln_params) + ln_tokens
        ln_flops = product + self.ln_cost(ln_params, product)
        for _ in range(_MAX_ROUNDS if np.any(self.shift) else 0):
            ln_flops = product + self.ln_cost(ln_params, ln_flops)
        return ln_flops

    def slope(self, ln_params: Floats | float) -> Floats:
        """Return d ln(C / D) / d ln N at a fixed C: 1 for C = 6ND; the mean of both sides at an
        edge.
        """
        if self.is_constant:
            return np.ones(np.shape(ln_params))
        return 1.0 + self._at_sizes(ln_params, 1)

    def bend(self, ln_params: Floats | float) -> Floats:
        """Return the derivative of `slope` by ln N; 0 beyond the knots and at an edge."""
        if self.is_constant:
            return np.zeros(np.shape(ln_params))
        return self._at_sizes(ln_params, 2)

    @cached_property
    def _spline(self) -> Callable[..., Floats]:
        from scipy.interpolate import CubicSpline  # late: slow to import

        return CubicSpline(self.ln_params, self.ln_ratio)

    def _at_sizes(self, ln_params: Floats | float, derivative: int) -> Floats:
        """Return s or a derivative of it at ln N."""
        low, high = self.ln_params[0], self.ln_params[-1]
        values = self._spline(np.clip(ln_params, low, high), derivative)
        if derivative == 0:
            return values
        inside = (ln_params > low) & (ln_params < high)
        at_edge = (ln_params == low) | (ln_params == high)
        return values * (inside + (0.5 * at_edge if derivative == 1 else 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return the curve for fit.json."""
        return {
            "ln_params": self.ln_params.tolist(),
            "ln_ratio": self.ln_ratio.tolist(),
            "ln_flops": self.ln_flops.tolist(),
            "shift": self.shift.tolist(),
            "span": list(self.span),
            "scatter": self.scatter,
        }


SIX_ND_COST = TokenCost(np.zeros(1), np.zeros(1), np.empty(0), np.empty(0))
"""C = 6ND."""


def _fit_sizes(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    """Return ln[C / (6ND)] as a function of ln N, fitted to points, (K,) each.

    It is that of a cost affine in N plus a smoothing spline of the rest. Embeddings that are
    counted or not make C / D affine in N; depth, attention and the head add the rest.
    """
    affine = _fit_affine(x, y)
    knots, values, weights = _average_sizes(x, y - affine(x))
    if len(knots) < MIN_SMOOTHED_SIZES:
        return lambda at: affine(at) + np.interp(at, knots, values)
    from scipy.interpolate import make_smoothing_spline  # late: slow to import

    rest = make_smoothing_spline(knots, values, weights)
    return lambda at: affine(at) + rest(at)


def _fit_affine(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    """Return ln(p + q / N) by least relative squares; 0 where that is not positive at all sizes."""
    inverse = np.exp(x.min() - x)  # in units of the least size
    columns = np.stack([np.exp(-y), inverse * np.exp(-y)], axis=1)
    p, q = np.linalg.lstsq(columns, np.ones(len(x)))[0]
    if not np.all(p + q * inverse > 0.0):
        return np.zeros_like
    least = float(x.min())
    return lambda at: np.log(p + q * np.exp(least - at))


def _average_sizes(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the different x, ascending, the mean y of each, and their numbers of points."""
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    group = np.concatenate([[0], np.cumsum(np.diff(x) > MIN_SIZE_GAP * (x[-1] - x[0]))])
    if group[-1] >= MAX_SIZES:
        group = np.arange(len(x)) * MAX_SIZES // len(x)
    counts = np.bincount(group).astype(np.float64)
    knots = np.bincount(group, x) / counts
    knots[0], knots[-1] = x[0], x[-1]
    return knots, np.bincount(group, y) / counts, counts


def _group_means(values: Floats, group: np.ndarray, size: int) -> Floats:
    counts = np.bincount(group, minlength=size)
    return np.bincount(group, values, minlength=size) / np.maximum(counts, 1)


def _depends_on_group(values: Floats, group: np.ndarray) -> bool:
    """Return whether the means of groups differ (one-way F test)."""
    labels, group = np.unique(group, return_inverse=True)
    between, within = len(labels) - 1, len(values) - len(labels)
    if between < 1 or within < 1:
        return False
    means = _group_means(values, group, len(labels))
    total = float(np.sum((values - values.mean()) ** 2))
    inner = float(np.sum((values - means[group]) ** 2))
    if total <= len(values) * (0.1 * SIX_ND_TOLERANCE) ** 2:
        return False
    ratio = (total - inner) / between / max(inner / within, 1e-300)
    return bool(fdtrc(between, within, ratio) < BUDGET_ALPHA)
