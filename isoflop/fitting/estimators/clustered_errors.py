"""Noise shared between runs: a test for it, and cluster-robust standard errors that allow for it.

A recipe that suits some sizes of a budget better than others (a learning rate off its best, a
batch rounded) moves neighbouring sizes together. Each run then carries less information than a
standard error over independent runs assumes. Budgets stay independent: they are the clusters.
A size that the recipe suits badly at every budget (its heads, its depth) deviates alike at all of
them. Neighbours within a budget do not show that; sizes are the clusters then.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from isoflop.frames import Floats

MIN_GROUPS = 4
CLUSTERING_ALPHA = 0.05
"""p of the correlation below which intervals allow for it."""
_ROUNDING_SHARE = 1e-12


@dataclass(frozen=True, eq=False)
class ClusteredCovariance:
    """Covariance of theta under noise shared within budgets (or sizes), not between them.

    Attributes:
        matrix: (P, P).
        dof: number of budgets (or sizes) - 1.
    """

    matrix: Floats
    dof: int

    def error(self, gradient: Floats) -> float:
        """Return the standard error of a function of theta, from its gradient (P,)."""
        return float(np.sqrt(max(gradient @ self.matrix @ gradient, 0.0)))

    def half_width(self, gradient: Floats, confidence: float) -> float:
        """Return half the t interval of a function of theta, from its gradient (P,)."""
        return float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * self.error(gradient)

    def combine(self, other: ClusteredCovariance) -> ClusteredCovariance:
        """Return the covariance under noise shared within budgets and within sizes.

        It is the sum. That is too large by the noise of single runs, which both terms contain.
        """
        return ClusteredCovariance(self.matrix + other.matrix, min(self.dof, other.dof))

    def to_dict(self) -> dict[str, Any]:
        """Return the covariance and its degrees of freedom for fit.json."""
        return {"covariance": self.matrix.tolist(), "dof": self.dof}


@dataclass(frozen=True, eq=False)
class GroupedResiduals:
    """Residuals of one fit within budgets, sizes ascending; or of sizes, budgets ascending.

    Attributes:
        columns: the Jacobian times the root of the weights, (K, P).
        residuals: clipped at Huber's delta, times the root of the weights, (K,).
        group: number of each one's budget (or size), from 0 upwards, (K,).
        nuisance: columns of the other fitted parameters, a least loss for each budget, (K, F).
        unclipped_share: share of the residuals within Huber's delta.
        leverage_power: power of 1 - leverage (a matrix for each group) that adjusts a group's
            residuals for its pull on the fit: -1 is CR3, -0.5 is CR2.
    """

    columns: Floats
    residuals: Floats
    group: np.ndarray
    nuisance: Floats
    unclipped_share: float
    leverage_power: float = -1.0

    @classmethod
    def from_groups(
        cls,
        columns: Floats,
        residuals: Floats,
        delta: float,
        group: np.ndarray,
        position: Floats,
        nuisance: Floats,
    ) -> GroupedResiduals:
        """Order configurations by their group and by their position in it, (K,) each."""
        order = np.lexsort((position, group))
        clipped = np.clip(residuals, -delta, delta)
        unclipped_share = float(np.mean(np.abs(residuals) <= delta))
        return cls(
            columns[order],
            clipped[order],
            group[order],
            nuisance[order],
            max(unclipped_share, 1e-9),
        )

    @classmethod
    def from_sizes(
        cls,
        columns: Floats,
        residuals: Floats,
        delta: float,
        size: Floats,
        ln_flops: Floats,
        nuisance: Floats,
    ) -> GroupedResiduals:
        """Group configurations by ln of their size, (K,), equal to 6 decimals.

        They are adjusted by CR2. CR3 removes one group at a time, and a study without its
        smallest size may hardly determine an exponent.
        """
        group = np.unique(np.round(size, 6), return_inverse=True)[1]
        grouped = cls.from_groups(columns, residuals, delta, group, ln_flops, nuisance)
        return replace(grouped, leverage_power=-0.5)

    @cached_property
    def p(self) -> float:
        """p-value of the correlation of neighbours, one-sided; the null is independent noise.

        The ratio e'We / e'e of the residuals e of the fit, where W pairs neighbours, is taken as
        normal with its exact mean and variance (Durbin and Watson 1950).
        """
        q, _ = np.linalg.qr(np.hstack([self.columns, self.nuisance]))
        dof = len(q) - q.shape[1]
        total = float(self.residuals @ self.residuals)
        if dof < 2 or not total > _ROUNDING_SHARE**2 * len(q):
            return 1.0
        paired = self._pair(q)
        inner = q.T @ paired
        first = -float(np.trace(inner))
        pairs = np.count_nonzero(np.diff(self.group) == 0)
        second = 0.5 * pairs - 2.0 * float(np.sum(paired**2)) + float(np.sum(inner * inner.T))
        variance = 2.0 * (dof * second - first**2) / (dof**2 * (dof + 2.0))
        if not variance > 0.0:
            return 1.0
        ratio = float(self.residuals @ self._pair(self.residuals[:, None])[:, 0]) / total
        return float(ndtr(-(ratio - first / dof) / np.sqrt(variance)))

    def _pair(self, values: Floats) -> Floats:
        """Return W times values (K, F): half the sum of both neighbours in the group."""
        same_group = (np.diff(self.group) == 0)[:, None]
        pairs = np.zeros_like(values)
        pairs[:-1] += 0.5 * values[1:] * same_group
        pairs[1:] += 0.5 * values[:-1] * same_group
        return pairs

    @cached_property
    def clustered_covariance(self) -> ClusteredCovariance | None:
        """Cluster-robust covariance of theta over the groups (CR3, or CR2 for sizes; Bell and
        McCaffrey 2002); None below 4 groups, or if the correlation is not significant.
        """
        groups = int(self.group[-1]) + 1
        if groups < MIN_GROUPS or self.p >= CLUSTERING_ALPHA:
            return None
        bread = np.linalg.pinv(self.columns.T @ self.columns, hermitian=True)
        scores = []
        for number in range(groups):
            member = self.group == number
            columns = self.columns[member]
            leverage = columns @ bread @ columns.T
            values, vectors = np.linalg.eigh(np.eye(len(leverage)) - leverage)
            power = np.zeros_like(values)
            power[values > _ROUNDING_SHARE] = (
                values[values > _ROUNDING_SHARE] ** self.leverage_power
            )
            adjusted = columns.T @ (vectors * power) @ vectors.T @ self.residuals[member]
            scores.append(adjusted / self.unclipped_share)
        influence = np.array(scores) @ bread
        return ClusteredCovariance(influence.T @ influence, groups - 1)


def combine_covariances(*groupings: GroupedResiduals | None) -> ClusteredCovariance | None:
    """Return the combined covariance of several groupings; None if none shows shared noise."""
    covariances = [
        grouped.clustered_covariance
        for grouped in groupings
        if grouped is not None and grouped.clustered_covariance is not None
    ]
    return functools.reduce(ClusteredCovariance.combine, covariances) if covariances else None
