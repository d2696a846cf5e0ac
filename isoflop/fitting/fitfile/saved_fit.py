"""Laws made again of the numbers that fit.json has of a fit, or that a paper has of its law."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np

from isoflop.fitting.estimators.clustered_errors import Shared
from isoflop.fitting.estimators.holdout import Miss, RollOut
from isoflop.fitting.estimators.intervals import Line
from isoflop.fitting.estimators.newton import NAMES, Points
from isoflop.fitting.estimators.skew import Shift, Skew
from isoflop.fitting.results.fitted_laws import Core, Laws
from isoflop.fitting.results.isoflop_fit import LinesCore
from isoflop.fitting.results.joint_fit import JointCore, Law
from isoflop.fitting.results.parametric_fit import SurfaceCore
from isoflop.fitting.tables.provenance import Origin
from isoflop.fitting.terms import Finding
from isoflop.shapes import ParamCount

Floats = np.ndarray
Draws = Mapping[str, Floats]
DRAWN = ("a", "b", "ln_k_params", "ln_k_tokens")


class DamagedError(Exception):
    """What is wrong with a file, and where in it."""


@dataclass(frozen=True, eq=False)
class SavedFit(Laws):
    """A fit without its runs; it predicts, digit for digit, what the fit did. See `Laws`.

    Attributes:
        entry: what fit.json says of it.
        numbers: of its laws.
    """

    entry: Mapping[str, Any]
    numbers: Core
    where: Origin
    budgets: tuple[float, float] | None
    confidence: float
    rollout: RollOut | None
    diagnostics: list[Finding]
    skew: Skew | None = None

    @property
    def method(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.entry["method"]

    @property
    def n(self) -> ParamCount:
        return self.entry.get("n", "total")

    @property
    def loss_column(self) -> str:
        return str(self.entry.get("loss", "loss"))

    @property
    def reach(self) -> tuple[float, float] | None:
        return self.budgets

    @property
    def no_law(self) -> str:
        return str(self.entry.get("no_law") or "")

    @property
    def core(self) -> Core:
        return self.numbers

    @property
    def origin(self) -> Origin:
        return self.where


def saved_fit(entry: Mapping[str, Any], draws: Draws, origin: Origin) -> SavedFit:
    """A fit from its entry and its draws.

    Raises:
        DamagedError: what is wrong with the entry.
    """
    method, law = entry.get("method"), entry.get("law")
    if method not in _CORES:
        raise DamagedError(f"method: {method!r} is none of {', '.join(_CORES)}")
    if entry.get("n", "total") not in get_args(ParamCount):
        raise DamagedError(f"n: {entry.get('n')!r} is none of {', '.join(get_args(ParamCount))}")
    confidence = _number(entry, "confidence") if "confidence" in entry else 0.95
    if not 0.0 < confidence < 1.0:
        raise DamagedError(f"confidence: {confidence:g} is no share between 0 and 1")
    if law is None:
        return SavedFit(entry, _BARE[method](entry), origin, None, confidence, None, [])
    try:
        law = mapping_at(entry, "law")
        core, rollout, skew = _CORES[method](law, draws), _rollout(law), _skew(law)
        low, high = _array(law, "budgets", 2)
    except DamagedError as problem:
        raise DamagedError(
            f"law.{problem}" if "law" not in str(problem) else str(problem)
        ) from None
    notes = [cast(Finding, dict(d)) for d in entry.get("diagnostics", []) if isinstance(d, dict)]
    return SavedFit(
        entry, core, origin, (float(low), float(high)), confidence, rollout, notes, skew
    )


# The cores of fits that isoflop wrote


def _surface(law: Mapping[str, Any], draws: Draws) -> SurfaceCore:
    x_mean, y_mean = _array(law, "centre", 2)
    theta = draws.get("theta", np.empty((0, 5)))
    return SurfaceCore(
        _array(law, "theta", 5),
        _array(law, "covariance", 5, 5),
        _count(law, "dof"),
        _centre(x_mean, y_mean),
        theta,
        _shared(law),
    )


def _shared(law: Mapping[str, Any]) -> Shared | None:
    if law.get("shared") is None:
        return None
    shared = mapping_at(law, "shared")
    return Shared(_array(shared, "covariance", 5, 5), _count(shared, "dof"))


def _centre(x_mean: float, y_mean: float) -> Points:
    """No points, but their means."""
    nothing = np.empty(0)
    return Points(nothing, nothing, nothing, x_mean, y_mean)


def _lines(law: Mapping[str, Any], draws: Draws) -> LinesCore:
    lines = {}
    for name, line in _both(law).items():
        numbers = {
            key: _number(line, key) for key in ("slope", "middle", "x_mean", "sxx", "variance")
        }
        lines[name] = Line(**numbers, dof=_count(line, "dof"))
    known = {name: draws[name] for name in DRAWN} if set(DRAWN) <= draws.keys() else {}
    return LinesCore(lines, _number(law, "covariance"), known, _count(law, "residual_dof"))


def _joint(law: Mapping[str, Any], draws: Draws) -> JointCore:
    laws = {}
    for name, line in _both(law).items():
        middle, slope, x_mean = (_number(line, key) for key in ("middle", "slope", "x_mean"))
        laws[name] = Law(
            middle, slope, _array(line, "by_middle", 5), _array(line, "by_slope", 5), x_mean
        )
    theta, spread = _array(law, "theta", 5), _array(law, "covariance", 5, 5)
    return JointCore(laws, theta, spread, _count(law, "dof"), _shared(law))


def _both(law: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    lines = mapping_at(law, "lines")
    return {name: mapping_at(lines, name) for name in ("params", "tokens")}


def _rollout(law: Mapping[str, Any]) -> RollOut | None:
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
    return RollOut(tuple(misses), (float(low), float(high)))


def _skew(law: Mapping[str, Any]) -> Skew | None:
    if law.get("skew") is None:
        return None
    skew = mapping_at(law, "skew")
    shifts = {}
    for name in (given := mapping_at(skew, "shifts")):
        shifts[name] = Shift(
            *(_number(mapping_at(given, name), key) for key in ("middle", "slope", "x_mean"))
        )
    return Skew(_number(skew, "ratio"), _number(skew, "error"), _count(skew, "dof"), shifts)


# Values alone, as published laws are


def _bare_surface(entry: Mapping[str, Any]) -> SurfaceCore:
    """A surface from E, A, B, alpha, beta, with a covariance of E, ln A, ln B, alpha, beta and `dof` where given."""
    params = mapping_at(entry, "params")
    values = np.array([_number(params, name) for name in NAMES])
    if not np.all(values > 0.0):
        raise DamagedError(f"params: expected {', '.join(NAMES)} above 0")
    theta = np.concatenate([np.log(values[:3]), values[3:]])
    spread, dof = np.full((5, 5), np.nan), 0
    if isinstance(entry.get("covariance"), dict) and "dof" in entry:
        turn = np.diag([1.0 / values[0], 1.0, 1.0, 1.0, 1.0])
        spread, dof = (
            turn @ _array(entry["covariance"], "matrix", 5, 5) @ turn,
            _count(entry, "dof"),
        )
    return SurfaceCore(theta, spread, dof, _centre(0.0, 0.0), np.empty((0, 5)))


def _bare_lines(entry: Mapping[str, Any]) -> LinesCore:
    """Power laws from `coefficients`: N and D, each `value` times C to the `exponent`."""
    laws, lines = mapping_at(entry, "coefficients"), {}
    for name, letter in (("params", "N"), ("tokens", "D")):
        row = mapping_at(laws, letter)
        if not (value := _number(row, "value")) > 0.0:
            raise DamagedError(f"coefficients.{letter}.value: expected a number above 0")
        lines[name] = Line(_number(row, "exponent"), float(np.log(value)), 0.0, np.nan, np.nan, 0)
    return LinesCore(lines, float("nan"))


_CORES: dict[Any, Any] = {
    "parametric": _surface,
    "isoflop": _lines,
    "joint": _joint,
    "envelope": _lines,
}
_BARE: dict[Any, Any] = {
    "parametric": _bare_surface,
    "isoflop": _bare_lines,
    "joint": _bare_lines,
    "envelope": _bare_lines,
}


# Values of JSON, checked


def mapping_at(holder: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(value, dict):
        raise DamagedError(f"{key}: {'missing' if value is None else 'expected a mapping'}")
    return value


def _number(holder: Mapping[str, Any], key: str) -> float:
    """A number; null, which stands for what isn't known, is NaN."""
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
