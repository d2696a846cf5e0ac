"""Skewed profiles: the shift of a parabola's vertex off the optimum of an asymmetric profile.

About its optimum a profile is L* + q (u^2 / 2 + r u^3 / 6 + ...), u = ln(axis / optimum). With
A/N^alpha + B/D^beta at constant compute r = beta - alpha, in every budget. So one r for all
profiles is fitted beside each one's parabola, with q the parabola's curvature; in one budget it
would be lost in the noise. The vertex of a parabola then lies about -r W^2 / 10 off the optimum
for sizes that reach W in ln(axis) to either side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.clustered_errors import GroupedResiduals
from isoflop.fitting.estimators.intervals import Interval, Line, exponential
from isoflop.fitting.terms import ENDS, Axis
from isoflop.frames import Floats

SKEW_ERROR_ALPHA = 0.2
"""p of the skew below which intervals allow for its own error too; above, for the shift alone."""
_MIN_RELATIVE_RESIDUAL = 1e-10  # relative residuals below are zero


@dataclass(frozen=True)
class Shift:
    """Line of the shift of ln N* or ln D* of the law above the optimum by the skew.

    The shift at C is middle + slope (ln C - x_mean).
    """

    middle: float
    slope: float
    x_mean: float

    @classmethod
    def through(cls, ln_flops: Floats, shifts: Floats) -> Shift:
        """Return the straight line through the shifts of budgets, as the law is through optima."""
        line = Line.through(ln_flops, shifts)
        return cls(line.middle, line.slope, line.x_mean)

    def at(self, flops: float) -> float:
        """Return the shift at C = flops, in ln."""
        return self.middle + self.slope * (float(np.log(flops)) - self.x_mean)


@dataclass(frozen=True)
class Skew:
    """The skew of all profiles of a fit.

    Attributes:
        ratio: third derivative of the loss over the second at the optimum, by ln(axis).
        error: its standard error.
        dof: degrees of freedom of the error.
        shifts: of the laws of `params` and `tokens`.
    """

    ratio: float
    error: float
    dof: int
    shifts: dict[str, Shift]

    @property
    def p(self) -> float:
        """p-value of the skew (t test); the null is that the profiles are parabolas."""
        return float(2.0 * stdtr(self.dof, -abs(self.ratio) / self.error))

    def widen(self, interval: Interval, quantity: str, flops: float, confidence: float) -> Interval:
        """Extend an interval of ln N* or ln D* of the law to the optimum by the skew."""
        shift = self.shifts.get(quantity)
        return interval if shift is None else self.reach(interval, shift.at(flops), confidence)

    def widen_laws(self, table: pd.DataFrame, confidence: float) -> pd.DataFrame:
        """Extend intervals of a, b, ratio (b / a), k_params, k_tokens by the skew of the laws."""
        size, data = self.shifts["params"].slope, self.shifts["tokens"].slope
        rows = dict(zip(table.index, map(Interval._make, table[ENDS].to_numpy()), strict=True))
        a, ratio = rows["a"].value, rows["ratio"].value
        widened = dict(rows)
        for name, shift in (("a", size), ("b", data), ("ratio", (data - ratio * size) / a)):
            widened[name] = self.reach(rows[name], shift, confidence)
        for name in ("params", "tokens"):
            with np.errstate(divide="ignore"):  # an end may be 0
                logs = Interval(*map(float, np.log(rows[f"k_{name}"])))
            widened[f"k_{name}"] = exponential(self.widen(logs, name, 1.0, confidence))
        columns = map(list, zip(*widened.values(), strict=True))
        return table.assign(**dict(zip(ENDS, columns, strict=True)))

    def reach(self, interval: Interval, shift: float, confidence: float) -> Interval:
        """Return an interval that holds itself and itself moved by -shift.

        The moved one includes the shift's error if p is small.
        """
        value, low, high = interval
        quantile = float(stdtrit(self.dof, 0.5 + confidence / 2.0))
        half = quantile * abs(shift * self.error / self.ratio)
        shift_error = half if self.p < SKEW_ERROR_ALPHA else 0.0
        moved = value - shift
        with np.errstate(invalid="ignore"):  # an infinite value less an infinite width
            low = np.fmin(low, moved - np.hypot(value - low, shift_error))
            high = np.fmax(high, moved + np.hypot(high - value, shift_error))
        return Interval(value, float(low), float(high))

    def to_dict(self) -> dict[str, Any]:
        """Return the skew for fit.json."""
        return asdict(self)


def measure_skew(
    pairs: list[tuple[para.Profile, para.Parabola]], axis: Axis, ln_flops: Floats
) -> tuple[Skew | None, GroupedResiduals | None]:
    """Return the skew of the profiles used, with its shifts of the laws, and the residuals after
    it; None for what the profiles do not determine.
    """
    estimate, budget_residuals = fit_skew(pairs)
    if estimate is None:
        return None, budget_residuals
    shifts = np.array([vertex_shift(profile, parabola, estimate[0]) for profile, parabola in pairs])
    vertices = np.array([float(q.vertices(q.coefficients)) for _, q in pairs])
    other_shifts = np.array(
        [
            float(para.read_other_axis(p, v)[0] - para.read_other_axis(p, v - shift)[0])
            for (p, _), v, shift in zip(pairs, vertices, shifts, strict=True)
        ]
    )
    other = "tokens" if axis == "params" else "params"
    lines = {
        name: Shift.through(ln_flops, values)
        for name, values in ((axis, shifts), (other, other_shifts))
    }
    return Skew(*estimate, lines), budget_residuals


def fit_skew(
    pairs: list[tuple[para.Profile, para.Parabola]],
) -> tuple[tuple[float, float, int] | None, GroupedResiduals | None]:
    """Fit the common ratio of third to second derivative to profiles and their parabolas.

    Returns:
        The ratio, its standard error and its degrees of freedom, clustered by budgets if noise
        shared by neighbouring sizes makes the error larger; None without a skew or an error.
        The residuals that show shared noise. Both are None if no residuals remain to fit it.
    """
    columns, residuals = [], []
    for profile, parabola in pairs:
        root, cube = np.sqrt(profile.weight), _skew_term(profile, parabola)
        columns.append((cube - _fit_values(parabola, profile, cube)) / parabola.fitted * root)
        residuals.append((profile.loss / parabola.fitted - 1.0) * root)
    column, residual = np.concatenate(columns), np.concatenate(residuals)
    dof, square = len(residual) - 3 * len(pairs) - 1, float(column @ column)
    if (
        dof < 1
        or square <= _MIN_RELATIVE_RESIDUAL**2
        or np.max(np.abs(residual)) <= _MIN_RELATIVE_RESIDUAL
    ):
        return None, None
    ratio = float(column @ residual) / square
    remainder = residual - ratio * column
    error = float(np.sqrt(remainder @ remainder / dof / square))
    grouped = _group_residuals(pairs, column, remainder)
    clustered = grouped.clustered_covariance
    if clustered is not None and (clustered_error := clustered.error(np.ones(1))) > error:
        error, dof = clustered_error, clustered.dof
    return ((ratio, error, dof) if ratio != 0.0 and error > 0.0 else None), grouped


def _group_residuals(
    pairs: list[tuple[para.Profile, para.Parabola]], column: Floats, residuals: Floats
) -> GroupedResiduals:
    """Group residuals by budget; `column` is that of the skew, the parabolas are the nuisance."""
    group = np.repeat(np.arange(len(pairs)), [len(profile.x) for profile, _ in pairs])
    nuisance = np.zeros((len(residuals), 3 * len(pairs)))
    for number, (profile, parabola) in enumerate(pairs):
        u = (profile.x - parabola.centre) / parabola.scale
        powers = np.polynomial.polynomial.polyvander(u, 2)
        rows = powers * (np.sqrt(profile.weight) / parabola.fitted)[:, None]
        nuisance[group == number, 3 * number : 3 * number + 3] = rows
    x = np.concatenate([profile.x for profile, _ in pairs])
    return GroupedResiduals.from_groups(column[:, None], residuals, np.inf, group, x, nuisance)


def vertex_shift(profile: para.Profile, parabola: para.Parabola, ratio: float) -> float:
    """Return the shift of ln(axis) of the parabola's vertex above the optimum of a profile with
    such a skew.
    """
    _, c1, c2 = parabola.coefficients - ratio * (parabola.solve @ _skew_term(profile, parabola))
    vertex = float(parabola.vertices(parabola.coefficients))
    at = (vertex - parabola.centre) / parabola.scale
    slope, half = (c1 + 2.0 * c2 * at) / parabola.scale, c2 / parabola.scale**2
    third = ratio * parabola.curvature / 6.0
    root = half + float(np.sqrt(max(half**2 - 3.0 * slope * third, 0.0)))
    return slope / root if root > 0.0 else 0.0


def _skew_term(profile: para.Profile, parabola: para.Parabola) -> Floats:
    """Return the cubic term of a skew of 1, nats."""
    u = profile.x - float(parabola.vertices(parabola.coefficients))
    return parabola.curvature / 6.0 * u**3


def _fit_values(parabola: para.Parabola, profile: para.Profile, values: Floats) -> Floats:
    """Return the fitted values of a parabola through other values at the same sizes."""
    u = (profile.x - parabola.centre) / parabola.scale
    fitted = np.polynomial.polynomial.polyval(u, parabola.solve @ values)
    return np.asarray(fitted, dtype=np.float64)
