"""One budget's parabola: least squares, leverage, vertex, status; and its resamples as one batch.

Loss is a parabola in x = ln N or ln D: L = c0 + c1 u + c2 u^2, with u = (x - centre) / scale in
[-1, 1] so that the 3x3 system is well conditioned. Weights are the number of seeds of each mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from isoflop.frames import Floats

Status = Literal["interior", "shallow", "edge", "one_sided", "concave", "too_few"]
STATUSES: tuple[Status, ...] = get_args(Status)
MIN_PROFILE_SIZES = 4  # three sizes fix a parabola exactly and show no noise
MIN_PER_SIDE = 2  # one run alone would decide that arm of the parabola, and the optimum
SAME_SIZE_LN = 0.01  # sizes nearer than 1% are one size
MAX_LEVERAGE = 0.999  # above, the residual is zero whatever the noise was
_MIN_RELATIVE_CURVATURE = 1e-9  # below this share of the loss, curvature is rounding


@dataclass(frozen=True, eq=False)
class Profile:
    """Configurations of one budget and the parabola through them.

    Attributes:
        budget: label, FLOPs.
        flops: geometric mean of the runs' training FLOPs.
        x: ln of the axis (parameters or tokens), ascending.
        loss: mean loss of each configuration, nats per token.
        weight: seeds of each configuration.
        other: ln of the other axis.
    """

    budget: float
    flops: float
    x: Floats
    loss: Floats
    weight: Floats
    other: Floats

    @cached_property
    def sizes(self) -> int:
        """Number of distinct sizes."""
        return count_distinct(self.x)

    @cached_property
    def other_curve(self) -> OtherCurve:
        """Curve of ln of the other axis."""
        low, high = float(self.x[0]), float(self.x[-1])
        centre, scale = 0.5 * (low + high), 0.5 * (high - low)
        u = (self.x - centre) / scale
        if self.sizes > 2:
            c2, c1, c0 = np.polyfit(u, self.other, 2)
        else:
            c2, (c1, c0) = 0.0, np.polyfit(u, self.other, 1)
        error = float(np.sqrt(np.mean((np.polyval((c2, c1, c0), u) - self.other) ** 2)))
        return OtherCurve(centre, scale, (c0, c1, c2), error)


class OtherCurve(NamedTuple):
    """Quadratic of ln(other axis) in u through the runs; a line below three sizes.

    Attributes:
        error: rms of the runs about the curve, in ln.
    """

    centre: float
    scale: float
    coefficients: tuple[float, float, float]
    error: float


@dataclass(frozen=True, eq=False)
class Parabola:
    """Least-squares parabola of a profile, with the operator that solves every resample of it."""

    centre: float
    scale: float
    coefficients: Floats  # (3,)
    solve: Floats  # (3, n): coefficients = solve @ loss
    fitted: Floats  # (n,)
    leverage: Floats  # (n,)
    direction: Floats | None = None  # (3,): of the coefficients by c2, where c2 is from a law

    @property
    def is_shared(self) -> bool:
        """True if the curvature is that of a law over all budgets (`shallow_profiles`)."""
        return self.direction is not None

    def with_curvature(self, coefficients: Floats, curvature: Floats | float) -> Floats:
        """Return least-squares coefficients, (..., 3), as those with a given curvature, (...)."""
        change = 0.5 * np.asarray(curvature) * self.scale**2 - coefficients[..., 2]
        direction = np.zeros(3) if self.direction is None else self.direction
        return coefficients + change[..., None] * direction

    @property
    def curvature(self) -> float:
        """Second derivative of the loss in ln(axis), nats."""
        return float(2.0 * self.coefficients[2]) / self.scale**2

    @property
    def convex(self) -> bool:
        """True if there is a minimum: curvature above rounding."""
        return bool(self.coefficients[2] > _MIN_RELATIVE_CURVATURE * abs(self.coefficients[0]))

    def vertices(self, coefficients: Floats) -> Floats:
        """Return ln(axis) at the minimum, for coefficients (..., 3); NaN without a minimum."""
        c1, c2 = coefficients[..., 1], coefficients[..., 2]
        convex = c2 > _MIN_RELATIVE_CURVATURE * np.abs(coefficients[..., 0])
        vertex = self.centre - 0.5 * self.scale * c1 / np.where(convex, c2, 1.0)
        return np.where(convex, vertex, np.nan)

    def lowest(self, coefficients: Floats) -> Floats:
        """Return the loss at the minimum, for coefficients (..., 3); NaN without a minimum."""
        c0, c1, c2 = np.moveaxis(coefficients, -1, 0)
        convex = c2 > _MIN_RELATIVE_CURVATURE * np.abs(c0)
        return np.where(convex, c0 - 0.25 * c1**2 / np.where(convex, c2, 1.0), np.nan)


def fit_parabola(profile: Profile) -> Parabola | None:
    """Fit by weighted least squares (QR); return None below three distinct sizes."""
    if profile.sizes < 3:
        return None
    low, high = float(profile.x[0]), float(profile.x[-1])
    centre, scale = 0.5 * (low + high), 0.5 * (high - low)
    u = (profile.x - centre) / scale
    root = np.sqrt(profile.weight)
    q, r = np.linalg.qr(np.stack([np.ones_like(u), u, u * u], axis=1) * root[:, None])
    solve = np.linalg.solve(r, q.T) * root
    coefficients = solve @ profile.loss
    fitted = coefficients[0] + u * (coefficients[1] + u * coefficients[2])
    return Parabola(centre, scale, coefficients, solve, fitted, np.einsum("ij,ij->i", q, q))


def count_distinct(x: Floats) -> int:
    """Return the number of distinct sizes in ln(size), in any order.

    A size counts if it is more than 1% above the last counted one.
    """
    count, index, x = 0, 0, np.sort(x)
    while index < len(x):
        count, index = count + 1, int(np.searchsorted(x, x[index] + SAME_SIZE_LN, side="right"))
    return count


def classify_profile(profile: Profile, parabola: Parabola | None) -> Status:
    """Return the first status that holds.

    * `too_few`: fewer than 4 distinct sizes.
    * `concave`: the curvature is not above zero: there is no minimum.
    * `edge`: the minimum lies outside the sizes that were run: an extrapolation.
    * `one_sided`: the minimum is inside, but the best run is the smallest or the largest, or fewer
      than 2 distinct sizes lie on one side of the minimum.
    * `shallow`: the minimum is inside by the curvature of all budgets. Noise then decides which run
      is best, so the best run does not count.
    * `interior`: none of these.
    """
    if parabola is None or profile.sizes < MIN_PROFILE_SIZES:
        return "too_few"
    if parabola.is_shared:
        vertex = float(parabola.vertices(parabola.coefficients))
        status = classify_optimum(profile, vertex, by_best_run=False)
        return "shallow" if status == "interior" else status
    if not parabola.convex:
        return "concave"
    return classify_optimum(profile, float(parabola.vertices(parabola.coefficients)))


def classify_optimum(profile: Profile, optimum: float, by_best_run: bool = True) -> Status:
    """Return `edge`, `one_sided` or `interior` for a minimum at ln(axis) = optimum; see
    `classify_profile`. `by_best_run` False does not look at which run is best.
    """
    x = profile.x
    if not x[0] <= optimum <= x[-1]:
        return "edge"
    best = x[int(np.argmin(profile.loss))]
    best_at_end = by_best_run and min(best - x[0], x[-1] - best) <= SAME_SIZE_LN
    sides = min(count_distinct(x[x < optimum]), count_distinct(x[x > optimum]))
    return "one_sided" if best_at_end or sides < MIN_PER_SIDE else "interior"


def measure_depth(profile: Profile, lowest: float) -> float:
    """Return the rise of the lesser of the two arms above the minimum, nats.

    An arm's loss is the mean at the smallest or the largest size.
    """
    x = profile.x
    ends = (x - x[0] <= SAME_SIZE_LN, x[-1] - x <= SAME_SIZE_LN)
    arms = [float(np.average(profile.loss[end], weights=profile.weight[end])) for end in ends]
    return min(arms) - lowest


def residual_sum(profile: Profile, parabola: Parabola) -> tuple[float, int]:
    """Return the weighted sum of squared relative residuals, and its degrees of freedom."""
    relative = profile.loss / parabola.fitted - 1.0
    return float(np.sum(profile.weight * relative**2)), len(profile.x) - 3


def residual_pool(pairs: list[tuple[Profile, Parabola]]) -> Floats:
    """Return the residuals of all profiles on one scale, centred.

    They are relative to the fitted loss, times the root of the seeds, divided by
    sqrt(1 - leverage). Without the leverage they are too small and intervals too narrow. They are
    relative, since noise is near a constant share of the loss (ends of a profile are 5 to 10%
    above its minimum).
    """
    pools = []
    for profile, parabola in pairs:
        free = parabola.leverage < MAX_LEVERAGE
        relative = profile.loss / parabola.fitted - 1.0
        slack = 1.0 - np.minimum(parabola.leverage, MAX_LEVERAGE)
        pools.append((relative * np.sqrt(profile.weight / slack))[free])
    pool = np.concatenate(pools)
    return pool - pool.mean()


def resample(profile: Profile, parabola: Parabola, pool: Floats, picks: np.ndarray) -> Floats:
    """Return coefficients (draws, 3) of the parabolas through fitted values plus residuals, picked
    (draws, n) from the pool.
    """
    noise = pool[picks] * (parabola.fitted / np.sqrt(profile.weight))
    return (parabola.fitted + noise) @ parabola.solve.T


def read_other_axis(profile: Profile, x: Floats) -> tuple[Floats, Floats, float]:
    """Return ln(other axis) at ln(axis) = x, its slope there, and its error: the rms of the runs
    about the curve, in ln.

    The curve is a quadratic in ln(axis) through the runs (a line below three sizes), continued
    straight beyond them. The runs' tokens are exact; the error is the unevenness of real shapes (a
    whole number of layers) about a smooth curve.
    """
    centre, scale, (c0, c1, c2), error = profile.other_curve
    at = (x - centre) / scale
    inside = np.clip(at, -1.0, 1.0)
    slope = c1 + 2.0 * c2 * inside
    value = c0 + inside * (c1 + inside * c2) + slope * (at - inside)
    return value, slope / scale, error
