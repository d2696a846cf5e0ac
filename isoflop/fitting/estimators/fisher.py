"""Fisher's information of planned runs on theta: the precision of a surface before it is fitted.

With ln L = ln(E + A / N^alpha + B / D^beta) + noise of standard deviation s, a run at (N, D) adds
j j^T / s^2 to the information on theta = (ln E, ln A', ln B', alpha, beta), where
j = d ln L / d theta (`newton.Observations.jacobian`). The covariance of the estimate is the
inverse of the sum: `surface_estimate` reaches it if noise is even and Gaussian, except for the
2.5% that the adaptive Huber loss adds to a standard deviation. Seeds of a configuration are one
mean, so intervals have configurations - 5 degrees of freedom, as those of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtr, stdtrit

from isoflop.errors import FitError
from isoflop.fitting.estimators.newton import Observations
from isoflop.fitting.estimators.surface_estimate import PARAMETER_COUNT
from isoflop.fitting.estimators.surface_optimum import growth_exponents, optimum
from isoflop.fitting.estimators.token_cost import SIX_ND_COST, TokenCost
from isoflop.frames import Floats
from isoflop.laws import Surface

SINGULAR_CONDITION_NUMBER = 1e13
"""Condition number (columns of length 1) from which an information does not fix the law."""


@dataclass(frozen=True, eq=False)
class Target:
    """A function of theta to be estimated: its value, (), and its gradient, (5,)."""

    name: str
    value: float
    gradient: Floats


@dataclass(frozen=True, eq=False)
class Design:
    """Runs, planned or made, under a law.

    Attributes:
        law: the surface.
        points: the K configurations, with the law's losses.
        seeds: number of runs of each configuration, (K,).
        noise: standard deviation of ln loss between runs.
        cost: cost of a token, which the optimum at a budget depends on.
    """

    law: Surface
    points: Observations
    seeds: Floats
    noise: float
    cost: TokenCost = SIX_ND_COST

    @classmethod
    def from_counts(
        cls, law: Surface, params: Floats, tokens: Floats, seeds: Floats, noise: float
    ) -> Design:
        """Return the design of K parameter counts, token counts and numbers of runs."""
        return cls(
            law,
            Observations.from_counts(params, tokens, law.loss(params, tokens)),
            np.asarray(seeds, np.float64),
            noise,
        )

    @property
    def dof(self) -> int:
        """Configurations less the parameters."""
        return len(self.points) - PARAMETER_COUNT

    @cached_property
    def theta(self) -> Floats:
        """theta of the law about the means of the points, (5,)."""
        law, points = self.law, self.points
        a, b = np.log(law.A) - law.alpha * points.x_mean, np.log(law.B) - law.beta * points.y_mean
        return np.array([np.log(law.E), a, b, law.alpha, law.beta])

    @cached_property
    def rows(self) -> Floats:
        """Row of each configuration, (K, 5); its outer product is the information."""
        return self.points.jacobian(self.theta) / self.noise * np.sqrt(self.seeds)[:, None]

    def rows_at(self, params: Floats, tokens: Floats) -> Floats:
        """Return the rows of one run at each of M other configurations, (M, 5)."""
        x_mean, y_mean = self.points.x_mean, self.points.y_mean
        others = Observations(
            np.log(params) - x_mean, np.log(tokens) - y_mean, np.ones(len(params)), x_mean, y_mean
        )
        return others.jacobian(self.theta) / self.noise

    @cached_property
    def covariance(self) -> Floats:
        """Covariance of theta, (5, 5).

        Raises:
            FitError: configurations that do not fix the law.
        """
        return invert(self.rows.T @ self.rows)

    def exponent(self) -> Target:
        """Return a of N* ~ C^a, see `growth_exponents`."""
        values, gradients = growth_exponents(self.points, self.theta, self.cost)
        return Target("a", float(values[0]), gradients[0])

    def loss(self, flops: float) -> Target:
        """Return ln of the least loss at a budget."""
        values, gradients = optimum(self.points, self.theta, flops, self.cost)
        return Target("loss", float(values[2]), gradients[2])

    def sd(self, target: Target) -> float:
        """Return the standard deviation of the estimate of a target."""
        return float(np.sqrt(target.gradient @ self.covariance @ target.gradient))

    def half_width(self, target: Target, confidence: float) -> float:
        """Return half the expected interval: t(configurations - 5) standard deviations."""
        return float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * self.sd(target)

    def power(self, target: Target, against: float, confidence: float) -> float:
        """Return the probability of an interval that leaves out `against`: a two-sided t test.

        The non-central t is approximated by ndtr((x (1 - 1/(4 dof)) - shift) / sqrt(1 + x^2 /
        (2 dof))) (Johnson and Welch 1940).
        """
        shift = abs(target.value - against) / self.sd(target)
        limit = float(stdtrit(self.dof, 0.5 + confidence / 2.0))
        x, spread = limit * (1.0 - 0.25 / self.dof), np.sqrt(1.0 + 0.5 * limit**2 / self.dof)
        return float(ndtr((shift - x) / spread) + ndtr((-shift - x) / spread))

    def without_each(self, target: Target) -> Floats:
        """Return the standard deviation without each configuration in turn, (K,).

        It is infinite if the remaining ones do not fix the law.
        """
        covariances, leverage = self._project(self.rows, target)
        rest = 1.0 - leverage
        increase = covariances**2 / np.where(rest > 1e-9, rest, np.nan)
        return np.where(rest > 1e-9, np.sqrt(self.sd(target) ** 2 + increase), np.inf)

    def with_each(self, target: Target, rows: Floats) -> Floats:
        """Return the standard deviation with one more run, (M,), for each of `rows`, (M, 5)."""
        covariances, leverage = self._project(rows, target)
        return np.sqrt(self.sd(target) ** 2 - covariances**2 / (1.0 + leverage))

    def _project(self, rows: Floats, target: Target) -> tuple[Floats, Floats]:
        """Return each row's covariance of its prediction with the target, and leverage, (M,)."""
        projected = rows @ self.covariance
        return projected @ target.gradient, np.einsum("ij,ij->i", projected, rows)


def invert(information: Floats) -> Floats:
    """Return the covariance, (5, 5), of an information.

    Raises:
        FitError: an information that does not fix all parameters.
    """
    scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
    scaled = information / np.outer(scale, scale)
    if not np.linalg.cond(scaled) < SINGULAR_CONDITION_NUMBER:
        raise FitError("these runs don't fix the law: they have too few different sizes or budgets")
    return np.linalg.inv(scaled) / np.outer(scale, scale)
