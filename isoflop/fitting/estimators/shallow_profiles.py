"""Shallow profiles: their curvature is that of a law over all budgets, and a line through the
optima weighs each by its variance.

The vertex of a parabola is a ratio; where its denominator, the curvature, is not known to be above
zero, the vertex may be anywhere. The curvature of profiles changes smoothly with compute, so the
deeper profiles say what it is: ln curvature is linear in ln C, fitted to the curvatures of all
profiles with their errors. With it, the vertex of a shallow profile is nearly normal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.intervals import Line
from isoflop.frames import Bools, Floats

MIN_CURVATURE_SES = 4.0
"""Standard errors of the curvature above zero from which a profile stands alone. Its resamples then
lose their minimum about once in 30,000."""
MAX_CONCAVE_SES = 2.0
"""Standard errors of the curvature below zero up to which a profile may be a shallow one."""
MAX_LN_CURVATURE_SE = 0.5
"""Standard error of the law's ln curvature at a budget above which it says nothing there."""
MIN_CURVATURE_BUDGETS = 3
Pairs = list[tuple[para.Profile, para.Parabola]]


@dataclass(frozen=True, eq=False)
class CurvatureLaw:
    """ln curvature = middle + slope (ln C - x_mean).

    Attributes:
        middle, slope: of the law; the curvature is the second derivative of the loss in ln(axis).
        x_mean: mean of ln C.
        root: square root of the covariance of middle and slope, (2, 2): root @ root.T.
    """

    middle: float
    slope: float
    x_mean: float
    root: Floats

    def columns(self, ln_flops: Floats | float) -> Floats:
        """Return d(ln curvature) / d(middle, slope), (..., 2)."""
        offset = np.asarray(ln_flops) - self.x_mean
        return np.stack([np.ones_like(offset), offset], axis=-1)

    def curvature(self, ln_flops: Floats | float) -> Floats:
        """Return the curvature at ln C, nats."""
        return np.exp(self.columns(ln_flops) @ np.array([self.middle, self.slope]))

    def ln_error(self, ln_flops: float) -> float:
        """Return the standard error of ln curvature at ln C."""
        return float(np.linalg.norm(self.columns(ln_flops) @ self.root))

    def draws(self, ln_flops: float, normals: Floats) -> Floats:
        """Return draws of the curvature at ln C from standard normals (R, 2)."""
        return self.curvature(ln_flops) * np.exp(normals @ self.root.T @ self.columns(ln_flops))


def fit_curvature_law(pairs: Pairs, sd: float) -> CurvatureLaw | None:
    """Fit the law to the curvatures of profiles by weighted least squares; None below 3 budgets.

    Misfit beyond the errors widens the covariance.

    Args:
        pairs: profiles that are not concave, with their parabolas.
        sd: standard deviation of one run's relative residual.
    """
    x = np.log([profile.flops for profile, _ in pairs])
    if len(pairs) < MIN_CURVATURE_BUDGETS or not np.ptp(x) > 0.0 or not sd > 0.0:
        return None
    from scipy.optimize import least_squares

    curvature = np.array([parabola.curvature for _, parabola in pairs])
    errors = np.array([curvature_error(*pair, sd) for pair in pairs])
    weights = errors**-2
    columns = np.stack([np.ones_like(x), x - x.mean()], axis=-1)
    first = float(weights @ curvature / weights.sum())
    if not first > 0.0:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        found = least_squares(
            lambda theta: (np.exp(np.clip(columns @ theta, -300.0, 300.0)) - curvature) / errors,
            [np.log(first), 0.0],
            x_scale=[1.0, 1.0 / max(float(np.ptp(x)), 1e-6)],
        )
    jacobian = columns * (np.exp(np.clip(columns @ found.x, -300.0, 300.0)) / errors)[:, None]
    information = jacobian.T @ jacobian
    if not np.linalg.cond(information) < 1e12:
        return None
    misfit = max(1.0, 2.0 * float(found.cost) / max(len(x) - 2, 1))
    root = np.linalg.cholesky(np.linalg.inv(information) * misfit)
    return CurvatureLaw(float(found.x[0]), float(found.x[1]), float(x.mean()), root)


def coefficient_covariance(profile: para.Profile, parabola: para.Parabola, sd: float) -> Floats:
    """Return the covariance of the coefficients, (3, 3)."""
    scaled = parabola.solve * (sd * parabola.fitted / np.sqrt(profile.weight))
    return scaled @ scaled.T


def curvature_error(profile: para.Profile, parabola: para.Parabola, sd: float) -> float:
    """Return the standard error of the curvature, nats."""
    variance = coefficient_covariance(profile, parabola, sd)[2, 2]
    return float(2.0 * np.sqrt(variance)) / parabola.scale**2


def share_curvature(
    profiles: list[para.Profile], parabolas: list[para.Parabola | None], sd: float
) -> tuple[list[para.Parabola | None], CurvatureLaw | None]:
    """Return the parabolas, those of shallow profiles with the law's curvature, and the law; the
    given ones and None if no profile is shallow or there is no law.

    Args:
        profiles: all profiles.
        parabolas: their own parabolas.
        sd: standard deviation of one run's relative residual.
    """
    if not sd > 0.0:
        return parabolas, None
    pairs: Pairs = []
    for profile, parabola in zip(profiles, parabolas, strict=True):
        if parabola is not None and profile.sizes >= para.MIN_PROFILE_SIZES:
            pairs.append((profile, parabola))
    heights = np.array([q.curvature / curvature_error(p, q, sd) for p, q in pairs])
    if not np.any(heights < MIN_CURVATURE_SES):
        return parabolas, None
    ranked = list(zip(pairs, heights, strict=True))
    law = fit_curvature_law([pair for pair, height in ranked if height > -MAX_CONCAVE_SES], sd)
    if law is None:
        return parabolas, None
    shared = {
        p.budget: _with_curvature(p, q, law, sd)
        for (p, q), height in ranked
        if -MAX_CONCAVE_SES < height < MIN_CURVATURE_SES
        and law.ln_error(float(np.log(p.flops))) <= MAX_LN_CURVATURE_SE
    }
    mixed = [shared.get(p.budget, q) for p, q in zip(profiles, parabolas, strict=True)]
    return mixed, law if shared else None


def _with_curvature(
    profile: para.Profile, parabola: para.Parabola, law: CurvatureLaw, sd: float
) -> para.Parabola:
    """Return the least-squares parabola of a profile with the law's curvature."""
    covariance = coefficient_covariance(profile, parabola, sd)
    direction = covariance[:, 2] / covariance[2, 2]
    shared = replace(parabola, direction=direction)
    curvature = law.curvature(float(np.log(profile.flops)))
    coefficients = shared.with_curvature(parabola.coefficients, curvature)
    u = (profile.x - parabola.centre) / parabola.scale
    fitted = np.polynomial.polynomial.polyval(u, coefficients)
    return replace(shared, coefficients=coefficients, fitted=fitted)


@dataclass(frozen=True, eq=False)
class WeightedOptima:
    """Weights of the optima of K budgets for a line, and what they share.

    Attributes:
        weights: 1 / (variance of ln of the optimum + variance between budgets), of mean 1, (K,).
        by_curvature: change of ln of each optimum by a standard deviation of each of the two
            unknowns of the curvature's law, (K, 2).
    """

    weights: Floats
    by_curvature: Floats


def weigh_optima(pairs: Pairs, law: CurvatureLaw, sd: float, ln_flops: Floats) -> WeightedOptima:
    """Return the weights of optima with a line through them.

    The variance between budgets is what remains of their scatter about the line beyond their own
    errors (DerSimonian and Laird 1986, for a regression). With these weights the t interval of the
    line is that of Knapp and Hartung 2003.

    Args:
        pairs: the profiles used, with their parabolas.
        law: of the curvature.
        sd: standard deviation of one run's relative residual.
        ln_flops: ln C, (K,).
    """
    optima = np.array([float(q.vertices(q.coefficients)) for _, q in pairs])
    variances, changes = zip(*(_vertex_errors(*pair, law, sd) for pair in pairs), strict=True)
    variance, by_curvature = np.array(variances), np.stack(changes)
    precision = 1.0 / variance
    columns = np.stack([np.ones_like(ln_flops), ln_flops - ln_flops.mean()], axis=-1)
    weighted = columns * precision[:, None]
    inverse = np.linalg.inv(columns.T @ weighted)
    residuals = optima - columns @ (inverse @ (weighted.T @ optima))
    spare = float(precision.sum() - np.trace(inverse @ (weighted.T @ weighted)))
    excess = float(precision @ residuals**2) - (len(optima) - 2)
    between = max(0.0, excess / spare) if spare > 0.0 else 0.0
    weights = 1.0 / (variance + between)
    return WeightedOptima(weights / weights.mean(), by_curvature)


def _vertex_errors(
    profile: para.Profile, parabola: para.Parabola, law: CurvatureLaw, sd: float
) -> tuple[float, Floats]:
    """Return the variance of ln of an optimum by the noise of its runs, and its change by the
    curvature's unknowns, (2,).
    """
    covariance = coefficient_covariance(profile, parabola, sd)
    _, c1, c2 = parabola.coefficients
    by_slope, by_bend = -0.5 * parabola.scale / c2, 0.5 * parabola.scale * c1 / c2**2
    if parabola.direction is None:
        gradient = np.array([0.0, by_slope, by_bend])
        return float(gradient @ covariance @ gradient), np.zeros(2)
    slope_variance = covariance[1, 1] - covariance[1, 2] ** 2 / covariance[2, 2]
    by_ln_curvature = c2 * (by_slope * parabola.direction[1] + by_bend)
    columns = law.columns(float(np.log(profile.flops)))
    return float(by_slope**2 * slope_variance), by_ln_curvature * (columns @ law.root)


def weighted_line(
    ln_flops: Floats, values: Floats, weighted: WeightedOptima, by_optimum: Floats, keep: Bools
) -> Line:
    """Return the weighted line through some budgets' values.

    Args:
        ln_flops: ln C, (K,).
        values: ln of the optima, or of the other axis there, (K,).
        weighted: weights.
        by_optimum: derivative of the values by ln of the optima, (K,).
        keep: budgets that the line goes through, (K,).
    """
    changes = weighted.by_curvature * by_optimum[:, None]
    return Line.through(ln_flops[keep], values[keep], weighted.weights[keep], changes[keep])
