"""Skewed profiles: how far the vertex of a parabola lies from the optimum of a profile that is not symmetric.

About its optimum a profile is L* + q (u^2 / 2 + r u^3 / 6 + ...), u = ln(axis / optimum). With A/N^alpha + B/D^beta at
constant compute r = beta - alpha, in every budget. So one r for all profiles is fitted beside each one's parabola, with
q the parabola's curvature: budget by budget it would be lost in the noise. The vertex of a parabola then lies about
-r W^2 / 10 off the optimum for sizes that reach W in ln(axis) to either side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.clustered_errors import Neighbours
from isoflop.fitting.estimators.intervals import Interval, Line, exponential
from isoflop.fitting.terms import ENDS

Floats = np.ndarray
UNSURE = 0.2
"""p of the skew below which intervals allow for its own error too; above, for the shift alone."""
_ROUNDING = 1e-10  # relative residuals that are none


@dataclass(frozen=True)
class Shift:
    """How far ln N* or ln D* of the law lies above where the skew places it: middle + slope (ln C - x_mean)."""

    middle: float
    slope: float
    x_mean: float

    @classmethod
    def through(cls, ln_flops: Floats, shifts: Floats) -> Shift:
        """What a straight line makes of the shifts of budgets, as the law does of their optima."""
        line = Line.through(ln_flops, shifts)
        return cls(line.middle, line.slope, line.x_mean)

    def at(self, flops: float) -> float:
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
        """Probability of a skew as large if the profiles were parabolas (t test)."""
        return float(2.0 * stdtr(self.dof, -abs(self.ratio) / self.error))

    def widen(self, interval: Interval, quantity: str, flops: float, confidence: float) -> Interval:
        """An interval of ln N* or ln D* of the law, reaching to where the skew places it."""
        shift = self.shifts.get(quantity)
        return interval if shift is None else self.reach(interval, shift.at(flops), confidence)

    def widen_laws(self, table: pd.DataFrame, confidence: float) -> pd.DataFrame:
        """Intervals of a, b, ratio (b / a), k_params and k_tokens, reaching to where the skew places the laws."""
        table = table.copy()
        size, data = self.shifts["params"].slope, self.shifts["tokens"].slope
        rows = {name: Interval(*table.loc[name, ENDS]) for name in table.index}
        a, ratio = rows["a"].value, rows["ratio"].value
        for name, shift in (("a", size), ("b", data), ("ratio", (data - ratio * size) / a)):
            table.loc[name, ENDS] = list(self.reach(rows[name], shift, confidence))
        for name in ("params", "tokens"):
            with np.errstate(divide="ignore"):  # an end may be 0
                logs = Interval(*map(float, np.log(rows[f"k_{name}"])))
            table.loc[f"k_{name}", ENDS] = list(
                exponential(self.widen(logs, name, 1.0, confidence))
            )
        return table

    def reach(self, interval: Interval, shift: float, confidence: float) -> Interval:
        """An interval that holds itself and itself moved by -shift, with the shift's error where p is small."""
        value, low, high = interval
        error = float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * abs(
            shift * self.error / self.ratio
        )
        more = error if self.p < UNSURE else 0.0
        moved = value - shift
        low = np.minimum(low, moved - np.hypot(value - low, more))
        high = np.maximum(high, moved + np.hypot(high - value, more))
        return Interval(value, float(low), float(high))

    def to_dict(self) -> dict[str, Any]:
        """For fit.json."""
        return asdict(self)


def skewness(
    pairs: list[tuple[para.Profile, para.Parabola]],
) -> tuple[tuple[float, float, int] | None, Neighbours | None]:
    """The common ratio of third to second derivative, its standard error and degrees of freedom, those by budgets where
    neighbouring sizes share noise and they say more; and the residuals that show it. None where nothing is left to tell
    it by.
    """
    columns, residuals = [], []
    for profile, parabola in pairs:
        root, cube = np.sqrt(profile.weight), _cube(profile, parabola)
        columns.append((cube - _parabola_through(parabola, profile, cube)) / parabola.fitted * root)
        residuals.append((profile.loss / parabola.fitted - 1.0) * root)
    column, residual = np.concatenate(columns), np.concatenate(residuals)
    dof, square = len(residual) - 3 * len(pairs) - 1, float(column @ column)
    if dof < 1 or square <= _ROUNDING**2 or np.max(np.abs(residual)) <= _ROUNDING:
        return None, None
    ratio = float(column @ residual) / square
    left = residual - ratio * column
    error = float(np.sqrt(left @ left / dof / square))
    neighbours = _neighbours(pairs, column, left)
    if (shared := neighbours.shared) is not None and (
        by_budgets := shared.error(np.ones(1))
    ) > error:
        error, dof = by_budgets, shared.dof
    return ((ratio, error, dof) if ratio != 0.0 and error > 0.0 else None), neighbours


def _neighbours(
    pairs: list[tuple[para.Profile, para.Parabola]], column: Floats, left: Floats
) -> Neighbours:
    """Residuals within budgets: `column` is that of the skew, the parabolas are what else was fitted."""
    group = np.repeat(np.arange(len(pairs)), [len(profile.x) for profile, _ in pairs])
    fixed = np.zeros((len(left), 3 * len(pairs)))
    for number, (profile, parabola) in enumerate(pairs):
        u = (profile.x - parabola.centre) / parabola.scale
        powers = np.polynomial.polynomial.polyvander(u, 2)
        rows = powers * (np.sqrt(profile.weight) / parabola.fitted)[:, None]
        fixed[group == number, 3 * number : 3 * number + 3] = rows
    x = np.concatenate([profile.x for profile, _ in pairs])
    return Neighbours.of(column[:, None], left, np.inf, group, x, fixed)


def shift_of(profile: para.Profile, parabola: para.Parabola, ratio: float) -> float:
    """How far ln(axis) of the parabola's vertex lies above the optimum of a profile with such a skew."""
    _, c1, c2 = parabola.coefficients - ratio * (parabola.solve @ _cube(profile, parabola))
    vertex = float(parabola.vertices(parabola.coefficients))
    at = (vertex - parabola.centre) / parabola.scale
    slope, half = (c1 + 2.0 * c2 * at) / parabola.scale, c2 / parabola.scale**2
    third = ratio * parabola.curvature / 6.0
    root = half + float(np.sqrt(max(half**2 - 3.0 * slope * third, 0.0)))
    return slope / root if root > 0.0 else 0.0


def _cube(profile: para.Profile, parabola: para.Parabola) -> Floats:
    """What a skew of 1 adds to a profile, nats."""
    u = profile.x - float(parabola.vertices(parabola.coefficients))
    return parabola.curvature / 6.0 * u**3


def _parabola_through(parabola: para.Parabola, profile: para.Profile, values: Floats) -> Floats:
    u = (profile.x - parabola.centre) / parabola.scale
    return np.polynomial.polynomial.polyval(u, parabola.solve @ values)
