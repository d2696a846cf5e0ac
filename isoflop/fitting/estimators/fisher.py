"""What runs will tell of a surface before they are run: Fisher's information on theta.

With ln L = ln(E + A / N^alpha + B / D^beta) + noise of standard deviation s, a run at (N, D) adds j j^T / s^2 to the
information on theta = (ln E, ln A', ln B', alpha, beta), where j = d ln L / d theta (`solver.Points.jacobian`). The
covariance of the estimate is the inverse of the sum: what `estimate` reaches if noise is even and Gaussian, but for
the 2.5 % that the adaptive Huber loss adds to a standard deviation. Seeds of a configuration are one mean, so intervals
have configurations - 5 degrees of freedom, as those of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtr, stdtrit

from isoflop.errors import FitError
from isoflop.fitting.estimators.newton import Points
from isoflop.fitting.estimators.surface_estimate import PARAMETERS, optimum
from isoflop.laws import Surface

Floats = np.ndarray
SINGULAR = 1e13
"""Condition number (columns of length 1) of an information that does not fix the law."""


@dataclass(frozen=True, eq=False)
class Aim:
    """A function of theta that is to be known: its value, (), and its gradient, (5,)."""

    name: str
    value: float
    gradient: Floats


@dataclass(frozen=True, eq=False)
class Design:
    """Runs that were or will be made under a law.

    Attributes:
        law: the surface.
        points: their places, with the law's losses.
        seeds: runs of each place, (K,).
        noise: standard deviation of ln loss between runs.
    """

    law: Surface
    points: Points
    seeds: Floats
    noise: float

    @classmethod
    def of(
        cls, law: Surface, params: Floats, tokens: Floats, seeds: Floats, noise: float
    ) -> Design:
        """A design from K parameter counts, token counts and numbers of runs."""
        return cls(
            law,
            Points.of(params, tokens, law.loss(params, tokens)),
            np.asarray(seeds, np.float64),
            noise,
        )

    @property
    def dof(self) -> int:
        """Configurations less the parameters."""
        return len(self.points) - PARAMETERS

    @cached_property
    def theta(self) -> Floats:
        """The law about the means of the points, (5,)."""
        law, points = self.law, self.points
        a, b = np.log(law.A) - law.alpha * points.x_mean, np.log(law.B) - law.beta * points.y_mean
        return np.array([np.log(law.E), a, b, law.alpha, law.beta])

    @cached_property
    def rows(self) -> Floats:
        """What each configuration tells, (K, 5): its information is the outer product."""
        return self.points.jacobian(self.theta) / self.noise * np.sqrt(self.seeds)[:, None]

    def rows_at(self, params: Floats, tokens: Floats) -> Floats:
        """What one run at each of M other places would tell, (M, 5)."""
        here = Points(
            np.log(params) - self.points.x_mean, np.log(tokens) - self.points.y_mean, np.ones(len(params)),
            self.points.x_mean, self.points.y_mean,
        )  # fmt: skip
        return here.jacobian(self.theta) / self.noise

    @cached_property
    def covariance(self) -> Floats:
        """Of theta, (5, 5).

        Raises:
            FitError: places that don't fix the law.
        """
        return invert(self.rows.T @ self.rows)

    # What is asked of it

    def exponent(self) -> Aim:
        """a = beta / (alpha + beta)."""
        alpha, beta = self.law.alpha, self.law.beta
        return Aim("a", self.law.a, np.array([0.0, 0.0, 0.0, -beta, alpha]) / (alpha + beta) ** 2)

    def loss(self, flops: float) -> Aim:
        """ln of the least loss at C = 6ND = flops."""
        values, gradients = optimum(self.points, self.theta, flops)
        return Aim("loss", float(values[2]), gradients[2])

    def sd(self, aim: Aim) -> float:
        """Standard deviation of the estimate."""
        return float(np.sqrt(aim.gradient @ self.covariance @ aim.gradient))

    def half_width(self, aim: Aim, confidence: float) -> float:
        """Half the expected interval: t(configurations - 5) standard deviations."""
        return float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * self.sd(aim)

    def power(self, aim: Aim, against: float, confidence: float) -> float:
        """Probability of an interval that leaves out `against`: a two-sided t test, its non-central t approximated by
        ndtr((x (1 - 1/(4 dof)) - shift) / sqrt(1 + x^2 / (2 dof))) (Johnson and Welch 1940).
        """
        shift, limit = (
            abs(aim.value - against) / self.sd(aim),
            float(stdtrit(self.dof, 0.5 + confidence / 2.0)),
        )
        x, spread = limit * (1.0 - 0.25 / self.dof), np.sqrt(1.0 + 0.5 * limit**2 / self.dof)
        return float(ndtr((shift - x) / spread) + ndtr((-shift - x) / spread))

    def without_each(self, aim: Aim) -> Floats:
        """The standard deviation if one configuration is left out, (K,); infinite where the rest does not fix it."""
        pulled, leverage = self._at(self.rows, aim)
        left = 1.0 - leverage
        more = pulled**2 / np.where(left > 1e-9, left, np.nan)
        return np.where(left > 1e-9, np.sqrt(self.sd(aim) ** 2 + more), np.inf)

    def with_each(self, aim: Aim, rows: Floats) -> Floats:
        """The standard deviation with one more run, (M,), of those that tell `rows` (M, 5)."""
        pulled, leverage = self._at(rows, aim)
        return np.sqrt(self.sd(aim) ** 2 - pulled**2 / (1.0 + leverage))

    def _at(self, rows: Floats, aim: Aim) -> tuple[Floats, Floats]:
        """Covariance of each row's prediction with the aim, and its leverage, (M,)."""
        turned = rows @ self.covariance
        return turned @ aim.gradient, np.einsum("ij,ij->i", turned, rows)


def invert(information: Floats) -> Floats:
    """The covariance, (5, 5), of an information.

    Raises:
        FitError: an information that does not fix all parameters.
    """
    scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
    scaled = information / np.outer(scale, scale)
    if not np.linalg.cond(scaled) < SINGULAR:
        raise FitError("these runs don't fix the law: they have too few different sizes or budgets")
    return np.linalg.inv(scaled) / np.outer(scale, scale)
