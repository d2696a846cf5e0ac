"""Noise that runs share: whether it is there, and standard errors that allow for it.

A recipe that suits some sizes of a budget better than others (a learning rate off its best, a batch rounded) moves
neighbours together. Each run then tells less than a standard error by runs supposes. What budgets tell stays apart.
A size that the recipe suits badly at every budget (its heads, its depth) deviates alike at all of them, which no
neighbours within a budget show; what sizes tell stays apart then.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

Floats = np.ndarray
LEAST_GROUPS = 4
FIRED = 0.05
"""p of the correlation below which intervals allow for it."""
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Shared:
    """Covariance of theta if noise is shared within budgets (or sizes) but not between them.

    Attributes:
        spread: (P, P).
        dof: budgets (or sizes) - 1.
    """

    spread: Floats
    dof: int

    def error(self, gradient: Floats) -> float:
        """Standard error of a function of theta, from its gradient (P,)."""
        return float(np.sqrt(max(gradient @ self.spread @ gradient, 0.0)))

    def half(self, gradient: Floats, confidence: float) -> float:
        """Half the t interval of a function of theta, from its gradient (P,)."""
        return float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * self.error(gradient)

    def joined(self, other: Shared) -> Shared:
        """Of noise that both budgets and sizes share: the sum, too large by the noise of runs, which is in either."""
        return Shared(self.spread + other.spread, min(self.dof, other.dof))

    def to_dict(self) -> dict[str, Any]:
        """For fit.json."""
        return {"covariance": self.spread.tolist(), "dof": self.dof}


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Residuals of one fit within budgets, sizes ascending; or of sizes, budgets ascending.

    Attributes:
        columns: the Jacobian times the root of the weights, (K, P).
        residuals: times the root of the weights, Huber's weight in them too, (K,).
        group: number of each one's budget (or size), from 0 upwards.
        fixed: columns of what else was fitted, a least loss for each budget, (K, F).
        inside: share of the residuals that Huber's loss takes as they are.
        freed: power to which what a group leaves of its own residuals is taken, to free them of its pull on the fit.
    """

    columns: Floats
    residuals: Floats
    group: np.ndarray
    fixed: Floats
    inside: float
    freed: float = -1.0

    @classmethod
    def of(
        cls,
        columns: Floats,
        residuals: Floats,
        delta: float,
        group: np.ndarray,
        place: Floats,
        fixed: Floats,
    ) -> Neighbours:
        """Puts configurations in order of their group, and of their place in it, (K,) each."""
        order = np.lexsort((place, group))
        clipped, inside = (
            np.clip(residuals, -delta, delta),
            float(np.mean(np.abs(residuals) <= delta)),
        )
        return cls(columns[order], clipped[order], group[order], fixed[order], max(inside, 1e-9))

    @classmethod
    def of_sizes(
        cls,
        columns: Floats,
        residuals: Floats,
        delta: float,
        size: Floats,
        ln_flops: Floats,
        fixed: Floats,
    ) -> Neighbours:
        """Groups configurations by ln of their size, (K,), which is one to 6 decimals.

        They are freed by CR2: CR3 takes away one group at a time, and without its smallest size a study may hardly tell
        an exponent.
        """
        group = np.unique(np.round(size, 6), return_inverse=True)[1]
        return replace(cls.of(columns, residuals, delta, group, ln_flops, fixed), freed=-0.5)

    @cached_property
    def p(self) -> float:
        """Probability of neighbours as alike in their residuals, if the noise of runs were independent: one-sided,
        normal, with mean and variance of the ratio e'We / e'e of residuals e as the fit leaves them (Durbin and Watson
        1950; W pairs neighbours).
        """
        q, _ = np.linalg.qr(np.hstack([self.columns, self.fixed]))
        free = len(q) - q.shape[1]
        total = float(self.residuals @ self.residuals)
        if free < 2 or not total > _ROUNDING**2 * len(q):
            return 1.0
        paired = self._paired(q)
        inner = q.T @ paired
        first = -float(np.trace(inner))
        pairs = np.count_nonzero(np.diff(self.group) == 0)
        second = 0.5 * pairs - 2.0 * float(np.sum(paired**2)) + float(np.sum(inner * inner.T))
        variance = 2.0 * (free * second - first**2) / (free**2 * (free + 2.0))
        if not variance > 0.0:
            return 1.0
        ratio = float(self.residuals @ self._paired(self.residuals[:, None])[:, 0]) / total
        return float(ndtr(-(ratio - first / free) / np.sqrt(variance)))

    def _paired(self, values: Floats) -> Floats:
        """W times (K, F): half of either neighbour."""
        alike = (np.diff(self.group) == 0)[:, None]
        out = np.zeros_like(values)
        out[:-1] += 0.5 * values[1:] * alike
        out[1:] += 0.5 * values[:-1] * alike
        return out

    @cached_property
    def shared(self) -> Shared | None:
        """The covariance by groups, each one's residuals freed of its own pull on the fit (CR3, or CR2 for sizes; Bell
        and McCaffrey 2002); None where too few groups are left for one, or runs show nothing that they share.
        """
        groups = int(self.group[-1]) + 1
        if groups < LEAST_GROUPS or self.p >= FIRED:
            return None
        bread = np.linalg.pinv(self.columns.T @ self.columns, hermitian=True)
        scores = []
        for number in range(groups):
            here = self.group == number
            columns = self.columns[here]
            pull = columns @ bread @ columns.T
            own, turn = np.linalg.eigh(np.eye(len(pull)) - pull)
            power = np.zeros_like(own)
            power[own > _ROUNDING] = own[own > _ROUNDING] ** self.freed
            scores.append(columns.T @ (turn * power) @ turn.T @ self.residuals[here] / self.inside)
        turned = np.array(scores) @ bread
        return Shared(turned.T @ turned, groups - 1)


def shared_of(*several: Neighbours | None) -> Shared | None:
    """What runs share by any of several groupings; None where they share nothing."""
    found = [one.shared for one in several if one is not None and one.shared is not None]
    return functools.reduce(Shared.joined, found) if found else None
