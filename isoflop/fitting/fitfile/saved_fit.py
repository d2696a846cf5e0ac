"""Laws restored from the numbers of fit.json, or from the published numbers of a law."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np

from isoflop.fitting.estimators.clustered_errors import ClusteredCovariance
from isoflop.fitting.estimators.holdout import HoldOut, Miss
from isoflop.fitting.estimators.intervals import Line
from isoflop.fitting.estimators.newton import PARAMETER_NAMES, Observations
from isoflop.fitting.estimators.skew import Shift, Skew
from isoflop.fitting.estimators.token_cost import SIX_ND_COST, TokenCost
from isoflop.fitting.results.fitted_laws import LawEstimate, Laws
from isoflop.fitting.results.isoflop_fit import LineLawEstimate
from isoflop.fitting.results.joint_fit import JointLawEstimate, LogLine
from isoflop.fitting.results.surface_law import SurfaceLawEstimate
from isoflop.fitting.tables.provenance import Provenance
from isoflop.fitting.terms import Finding
from isoflop.frames import Floats
from isoflop.shapes import ParamCount

Draws = Mapping[str, Floats]
LINE_DRAWS = ("a", "b", "ln_k_params", "ln_k_tokens")


class DamagedError(Exception):
    """Fault of a file: key and problem."""


@dataclass(frozen=True, eq=False)
class SavedFit(Laws):
    """A fit without its runs; its predictions equal those of the fit to the last digit. See `Laws`.

    Attributes:
        entry: the fit's entry of fit.json.
        saved_estimate: numbers of its laws.
        saved_provenance: source of its runs.
        budgets: the least and the greatest budget fitted, FLOPs; None if unknown.
    """

    entry: Mapping[str, Any]
    saved_estimate: LawEstimate
    saved_provenance: Provenance
    budgets: tuple[float, float] | None
    confidence: float
    rollout: HoldOut | None
    diagnostics: list[Finding]
    skew: Skew | None = None

    @property
    def method(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the method of the entry, such as `isoflop`."""
        return self.entry["method"]

    @property
    def n(self) -> ParamCount:
        """Return the parameter count that N stands for."""
        return self.entry.get("n", "total")

    @property
    def loss_column(self) -> str:
        """Return the name of the column of the loss."""
        return str(self.entry.get("loss", "loss"))

    @property
    def reach(self) -> tuple[float, float] | None:
        """Return the least and the greatest budget fitted in FLOPs; None if unknown."""
        return self.budgets

    @property
    def no_law(self) -> str:
        """Return the reason why the exponents are not a result; empty if they may be one."""
        return str(self.entry.get("no_law") or "")

    @property
    def law_estimate(self) -> LawEstimate:
        """Return the numbers of the laws."""
        return self.saved_estimate

    @property
    def provenance(self) -> Provenance:
        """Return the source of the runs."""
        return self.saved_provenance


def saved_fit(entry: Mapping[str, Any], draws: Draws, origin: Provenance) -> SavedFit:
    """Return a fit from its entry of fit.json and its draws of fit.npz.

    Raises:
        DamagedError: the entry is incomplete or has a value of the wrong kind.
    """
    method, law = entry.get("method"), entry.get("law")
    if method not in _ESTIMATE_READERS:
        raise DamagedError(f"method: {method!r} is none of {', '.join(_ESTIMATE_READERS)}")
    if entry.get("n", "total") not in get_args(ParamCount):
        raise DamagedError(f"n: {entry.get('n')!r} is none of {', '.join(get_args(ParamCount))}")
    confidence = _number(entry, "confidence") if "confidence" in entry else 0.95
    if not 0.0 < confidence < 1.0:
        raise DamagedError(f"confidence: {confidence:g} is not a share between 0 and 1")
    if law is None:
        return SavedFit(entry, _BARE_READERS[method](entry), origin, None, confidence, None, [])
    try:
        law = mapping_at(entry, "law")
        estimate, rollout, skew = _ESTIMATE_READERS[method](law, draws), _rollout(law), _skew(law)
        low, high = _array(law, "budgets", 2)
    except DamagedError as problem:
        message = str(problem)
        raise DamagedError(message if "law" in message else f"law.{message}") from None
    diagnostics = [
        cast(Finding, dict(d)) for d in entry.get("diagnostics", []) if isinstance(d, dict)
    ]
    budgets = (float(low), float(high))
    return SavedFit(entry, estimate, origin, budgets, confidence, rollout, diagnostics, skew)


# Estimates of fits written by isoflop


def _surface(law: Mapping[str, Any], draws: Draws) -> SurfaceLawEstimate:
    x_mean, y_mean = _array(law, "centre", 2)
    theta = draws.get("theta", np.empty((0, 5)))
    return SurfaceLawEstimate(
        _array(law, "theta", 5),
        _array(law, "covariance", 5, 5),
        _count(law, "dof"),
        _centre(x_mean, y_mean),
        theta,
        _shared(law),
        _cost(law),
    )


def _cost(law: Mapping[str, Any]) -> TokenCost:
    """Return the cost of a token; files of isoflop 0.1 have none, and C = 6ND."""
    if law.get("cost") is None:
        return SIX_ND_COST
    cost = mapping_at(law, "cost")
    size, budgets = _list_length(cost, "ln_params"), _list_length(cost, "ln_flops")
    low, high = _array(cost, "span", 2)
    knots = _array(cost, "ln_params", size)
    if not (size and np.all(np.diff(knots) > 0.0)):
        raise DamagedError("ln_params: expected ascending numbers")
    return TokenCost(
        knots,
        _array(cost, "ln_ratio", size),
        _array(cost, "ln_flops", budgets),
        _array(cost, "shift", budgets),
        (float(low), float(high)),
        _number(cost, "scatter"),
    )


def _list_length(holder: Mapping[str, Any], key: str) -> int:
    if not isinstance(holder.get(key), list):
        raise DamagedError(f"{key}: expected a list")
    return len(holder[key])


def _shared(law: Mapping[str, Any]) -> ClusteredCovariance | None:
    if law.get("shared") is None:
        return None
    shared = mapping_at(law, "shared")
    return ClusteredCovariance(_array(shared, "covariance", 5, 5), _count(shared, "dof"))


def _centre(x_mean: float, y_mean: float) -> Observations:
    """Return means without points."""
    empty = np.empty(0)
    return Observations(empty, empty, empty, x_mean, y_mean)


def _lines(law: Mapping[str, Any], draws: Draws) -> LineLawEstimate:
    lines = {}
    for name, line in _line_entries(law).items():
        numbers = {
            key: _number(line, key) for key in ("slope", "middle", "x_mean", "sxx", "variance")
        }
        shared = _array(line, "shared", 2, 2) if "shared" in line else np.zeros((2, 2))
        (a, b), (c, d) = shared.tolist()
        lines[name] = Line(**numbers, dof=_count(line, "dof"), shared=((a, b), (c, d)))
    has_draws = set(LINE_DRAWS) <= draws.keys()
    line_draws = {name: draws[name] for name in LINE_DRAWS} if has_draws else {}
    covariance, residual_dof = _number(law, "covariance"), _count(law, "residual_dof")
    weighted = law.get("weighted") is True
    return LineLawEstimate(lines, covariance, line_draws, residual_dof, weighted)


def _joint(law: Mapping[str, Any], draws: Draws) -> JointLawEstimate:
    laws = {}
    for name, line in _line_entries(law).items():
        middle, slope, x_mean = (_number(line, key) for key in ("middle", "slope", "x_mean"))
        laws[name] = LogLine(
            middle, slope, _array(line, "by_middle", 5), _array(line, "by_slope", 5), x_mean
        )
    theta, spread = _array(law, "theta", 5), _array(law, "covariance", 5, 5)
    return JointLawEstimate(laws, theta, spread, _count(law, "dof"), _shared(law))


def _line_entries(law: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    lines = mapping_at(law, "lines")
    return {name: mapping_at(lines, name) for name in ("params", "tokens")}


def _rollout(law: Mapping[str, Any]) -> HoldOut | None:
    if law.get("rollout") is None:
        return None
    rollout = mapping_at(law, "rollout")
    low, high = _array(rollout, "reach", 2)
    misses = []
    for miss in rollout.get("misses", []):
        errors, ses = (
            {
                name: np.asarray(_number(mapping_at(miss, key), name))
                for name in mapping_at(miss, key)
            }
            for key in ("errors", "ses")
        )
        misses.append(
            Miss(
                _count(miss, "hidden"),
                _number(miss, "budget"),
                _number(miss, "distance"),
                errors,
                ses,
            )
        )
    return HoldOut(tuple(misses), (float(low), float(high)))


def _skew(law: Mapping[str, Any]) -> Skew | None:
    if law.get("skew") is None:
        return None
    skew = mapping_at(law, "skew")
    shifts, entries = {}, mapping_at(skew, "shifts")
    for name in entries:
        numbers = (_number(mapping_at(entries, name), key) for key in ("middle", "slope", "x_mean"))
        shifts[name] = Shift(*numbers)
    return Skew(_number(skew, "ratio"), _number(skew, "error"), _count(skew, "dof"), shifts)


# Values without an estimate, as of published laws


def _bare_surface(entry: Mapping[str, Any]) -> SurfaceLawEstimate:
    """Return a surface from E, A, B, alpha, beta, with a covariance of E, ln A, ln B, alpha, beta
    and `dof` if the entry has them.
    """
    params = mapping_at(entry, "params")
    values = np.array([_number(params, name) for name in PARAMETER_NAMES])
    if not np.all(values > 0.0):
        raise DamagedError(f"params: expected {', '.join(PARAMETER_NAMES)} above 0")
    theta = np.concatenate([np.log(values[:3]), values[3:]])
    spread, dof = np.full((5, 5), np.nan), 0
    if isinstance(entry.get("covariance"), dict) and "dof" in entry:
        turn = np.diag([1.0 / values[0], 1.0, 1.0, 1.0, 1.0])
        spread = turn @ _array(entry["covariance"], "matrix", 5, 5) @ turn
        dof = _count(entry, "dof")
    return SurfaceLawEstimate(theta, spread, dof, _centre(0.0, 0.0), np.empty((0, 5)))


def _bare_lines(entry: Mapping[str, Any]) -> LineLawEstimate:
    """Return power laws from `coefficients`: N and D, each `value` times C to the `exponent`."""
    laws, lines = mapping_at(entry, "coefficients"), {}
    for name, letter in (("params", "N"), ("tokens", "D")):
        row = mapping_at(laws, letter)
        if not (value := _number(row, "value")) > 0.0:
            raise DamagedError(f"coefficients.{letter}.value: expected a number above 0")
        lines[name] = Line(_number(row, "exponent"), float(np.log(value)), 0.0, np.nan, np.nan, 0)
    return LineLawEstimate(lines, float("nan"))


_ESTIMATE_READERS: dict[Any, Any] = {
    "parametric": _surface,
    "isoflop": _lines,
    "joint": _joint,
    "envelope": _lines,
}
_BARE_READERS: dict[Any, Any] = {
    "parametric": _bare_surface,
    "isoflop": _bare_lines,
    "joint": _bare_lines,
    "envelope": _bare_lines,
}


# Values of JSON, checked


def mapping_at(holder: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the mapping at a key.

    Raises:
        DamagedError: the key is missing or holds something else.
    """
    value = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(value, dict):
        raise DamagedError(f"{key}: {'missing' if value is None else 'expected a mapping'}")
    return value


def _number(holder: Mapping[str, Any], key: str) -> float:
    """Return a number; null stands for an unknown one and is read as NaN."""
    if key not in holder:
        raise DamagedError(f"{key}: missing")
    value = holder[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise DamagedError(f"{key}: expected a number")
    return math.nan if value is None else float(value)


def _count(holder: Mapping[str, Any], key: str) -> int:
    value = holder.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DamagedError(f"{key}: {'missing' if value is None else 'expected a whole number'}")
    return value


def _array(holder: Mapping[str, Any], key: str, *shape: int) -> Floats:
    try:
        values = np.array(holder[key], dtype=np.float64)
    except KeyError:
        raise DamagedError(f"{key}: missing") from None
    except (TypeError, ValueError):
        raise DamagedError(f"{key}: expected numbers") from None
    if values.shape != shape:
        raise DamagedError(f"{key}: expected {' x '.join(map(str, shape))} numbers")
    return values
