"""Greedy selection of runs: each step reduces the variance of one quantity most for its price.

The price of runs is their share of the caps: FLOPs / FLOPs allowed + runs / runs allowed. Their
gain is the fall in ln variance of a function of theta, by Fisher information at the fitted law
(`fitting.estimators.fisher`). A design that trusts the law completely repeats a few cheap extremes.
These rules leave room for a wrong law: at most two repeats of a point, a new budget only with four
sizes that bracket its optimum, and no budget with more than a third of the new runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from isoflop.fitting.estimators.fisher import Target
from isoflop.fitting.estimators.surface_estimate import PARAMETER_COUNT
from isoflop.followup.bracketing import MIN_LN_SIZE_GAP, Repair
from isoflop.followup.candidates import CandidatePoint
from isoflop.frames import Floats, Ints

PickKind = Literal["repair", "budget", "size", "repeat"]
MAX_RUNS_PER_POINT = 3
SIZES_PER_SIDE = 2
MAX_NEAREST_LN_OFFSET = np.log(2.0)
"""One of the two sizes on each side of a new budget's optimum is at most this far from it in ln N:
without it the minimum of the profile is not sampled."""
MAX_BUDGET_SHARE_OF_RUNS = 1.0 / 3.0
MIN_RUNS_ALLOWED_PER_BUDGET = 4
MIN_LN_VARIANCE_FALL = 1e-3
"""Steps that lower ln variance by less are not made."""
PRIOR_INFORMATION = 1.0 / np.array([3.0, 3.0, 3.0, 1.0, 1.0]) ** 2
"""Information of a vague prior on theta, (5,): it makes runs comparable if the earlier ones don't
fix the law."""


@dataclass(frozen=True, eq=False)
class Option:
    """A point that may be run.

    Attributes:
        row: row of one run, (5,) (`Design.rows_at`).
        offset: ln N less ln N* of its budget.
        known: number of its runs, finished and unfinished.
        first_runs: number of runs of its first pick.
    """

    point: CandidatePoint
    row: Floats
    offset: float
    known: int
    first_runs: int


@dataclass(frozen=True)
class Caps:
    """Limits on new runs.

    Attributes:
        flops: training FLOPs.
        runs: number of runs.
        goal_half_width: half of the interval (of a, or of ln loss) at which selection stops.
    """

    flops: float
    runs: int
    goal_half_width: float = 0.0


@dataclass(frozen=True, eq=False)
class Pick:
    """A selected point.

    Attributes:
        point: the point.
        offset: ln N less ln N* of its budget.
        runs: number of new runs.
        kind: `repair` of a profile, point of a new `budget`, a new `size`, or a `repeat`.
        reason: reason of a repair, else empty.
        half_width: half of the interval after this pick and the earlier ones.
        previous_half_width: half of the interval without this pick.
    """

    point: CandidatePoint
    offset: float
    runs: int
    kind: PickKind
    reason: str
    half_width: float
    previous_half_width: float

    @property
    def train_flops(self) -> int:
        """Training FLOPs of the new runs."""
        return self.point.train_flops * self.runs


class Move(NamedTuple):
    """Options that are picked together.

    Attributes:
        gain_per_price: fall of ln variance over the price.
        indices: indices of the options.
        kind: kind of the picks.
    """

    gain_per_price: float
    indices: tuple[int, ...]
    kind: PickKind


class Search:
    """State of a selection: options, picks and the use of the caps."""

    def __init__(
        self,
        options: Sequence[Option],
        information: Floats,
        configurations: int,
        quantity: Target,
        caps: Caps,
        confidence: float,
    ) -> None:
        """Start without picks.

        Args:
            options: the K points allowed.
            information: on theta, of the finished and unfinished runs, (5, 5).
            configurations: number of configurations of these runs.
            quantity: function of theta whose interval is to become narrow.
            caps: limits on the picks.
            confidence: level of the interval.
        """
        self.options, self.quantity, self.caps = options, quantity, caps
        self.information = information + np.diag(PRIOR_INFORMATION)
        self.configurations, self.confidence = configurations, confidence
        self.picks: list[Pick] = []
        self.spent, self.runs = 0.0, 0
        self.rows = np.array([option.row for option in options]).reshape(-1, PARAMETER_COUNT)
        self.offset = np.array([option.offset for option in options])
        self.cost = np.array([float(option.point.train_flops) for option in options])
        self.budget = np.array([option.point.budget for option in options])
        self.known = np.array([option.known for option in options], dtype=np.int64)
        self.runs_per_pick = np.array(
            [1 if option.known else option.first_runs for option in options], dtype=np.int64
        )
        self.added = dict.fromkeys(self.budget.tolist(), 0)
        self.index = {option.point.key: i for i, option in enumerate(options)}

    @property
    def half_width(self) -> float:
        """Half of the expected interval with the picks so far."""
        gradient = self.quantity.gradient
        variance = gradient @ np.linalg.solve(self.information, gradient)
        dof = max(self.configurations - PARAMETER_COUNT, 1)
        return float(stdtrit(dof, 0.5 + self.confidence / 2.0) * np.sqrt(variance))

    def add_repairs(self, repairs: Sequence[Repair]) -> list[Repair]:
        """Pick whole repairs within the caps, in order, and return the other repairs."""
        refused = []
        for repair in repairs:
            indices = tuple(self.index[point.key] for point in repair.points)
            if indices and self._allowed(indices):
                self._pick(indices, "repair", repair.reason)
            else:
                refused.append(repair)
        return refused

    def add_best(self) -> None:
        """Make the best step for its price until the caps, the goal or the least gain stop it."""
        while self.half_width > self.caps.goal_half_width:
            openings = map(self._best_opening, self._new_budgets())
            moves = [move for move in (self._best_single(), *openings) if move]
            if not moves:
                break
            best = max(moves, key=lambda move: move.gain_per_price)
            self._pick(best.indices, best.kind, "")

    def _pick(self, indices: tuple[int, ...], kind: PickKind, reason: str) -> None:
        for i in indices:
            runs, previous = int(self.runs_per_pick[i]), self.half_width
            self.spent, self.runs = self.spent + runs * self.cost[i], self.runs + runs
            self.configurations += not self.known[i]
            self.information = self.information + runs * np.outer(self.rows[i], self.rows[i])
            self.known[i] += runs
            self.runs_per_pick[i] = 1
            self.added[self.budget[i]] += runs if kind != "repair" else 0
            point, offset = self.options[i].point, self.offset[i]
            self.picks.append(Pick(point, offset, runs, kind, reason, self.half_width, previous))

    def _price(self, runs: Ints, cost: Floats) -> Floats:
        return runs * cost / self.caps.flops + runs / self.caps.runs

    def _allowed(self, indices: Sequence[int]) -> bool:
        runs = self.runs_per_pick[list(indices)]
        flops = float(runs @ self.cost[list(indices)])
        within_runs = self.runs + int(runs.sum()) <= self.caps.runs
        return self.spent + flops <= self.caps.flops and within_runs

    def _best_single(self) -> Move | None:
        """Return the best single point, a new size or a repeat, at a budget with runs."""
        share = int(np.ceil(MAX_BUDGET_SHARE_OF_RUNS * self.caps.runs))
        max_added = max(MIN_RUNS_ALLOWED_PER_BUDGET, share)
        added = np.array([self.added[budget] for budget in self.budget.tolist()], dtype=np.int64)
        runs = self.runs_per_pick
        free = np.isin(self.budget, self.budget[self.known > 0]) & (self.known < MAX_RUNS_PER_POINT)
        free &= (added + runs <= max_added) & (self.runs + runs <= self.caps.runs)
        free &= self.spent + runs * self.cost <= self.caps.flops
        falls = self._ln_variance_falls(np.linalg.inv(self.information), runs)
        gains = falls / self._price(runs, self.cost)
        gains = np.where(free & (falls >= MIN_LN_VARIANCE_FALL), gains, 0.0)
        if not gains.any():
            return None
        i = int(np.argmax(gains))
        return Move(float(gains[i]), (i,), "repeat" if self.known[i] else "size")

    def _ln_variance_falls(self, covariance: np.ndarray, runs: Ints) -> Floats:
        """Return the fall in ln variance of the quantity by the runs of each option, (K,)."""
        gradient, projected = self.quantity.gradient, self.rows @ covariance
        leverage = np.einsum("ij,ij->i", projected, self.rows)
        variance = gradient @ covariance @ gradient
        return -np.log1p(-(runs * (projected @ gradient) ** 2) / (1.0 + runs * leverage) / variance)

    def _new_budgets(self) -> list[float]:
        """Return budgets without runs, ascending."""
        with_runs = set(self.budget[self.known > 0].tolist())
        return sorted(set(self.budget.tolist()) - with_runs)

    def _best_opening(self, budget: float) -> Move | None:
        """Return the best four sizes of a new budget, two on either side of its optimum.

        They are chosen one by one, each for its fall in ln variance.
        """
        runs, sides = self.runs_per_pick, np.sign(self.offset)
        is_near = np.abs(self.offset) <= MAX_NEAREST_LN_OFFSET
        covariance, fall = np.linalg.inv(self.information), 0.0
        indices: list[int] = []
        for _ in range(2 * SIZES_PER_SIDE):
            free = self.budget == budget
            for i in indices:
                free &= np.abs(self.offset - self.offset[i]) >= MIN_LN_SIZE_GAP
            for side in (-1, 1):
                on_side = [i for i in indices if sides[i] == side]
                if len(on_side) >= SIZES_PER_SIDE:
                    free &= sides != side
                elif on_side and not is_near[on_side[0]]:
                    free &= (sides != side) | is_near
            if not free.any():
                return None
            falls = np.where(free, self._ln_variance_falls(covariance, runs), -1.0)
            i = int(np.argmax(falls))
            indices.append(i)
            fall += float(falls[i])
            projected = covariance @ self.rows[i]
            covariance = covariance - np.outer(projected, projected) * runs[i] / (
                1.0 + runs[i] * float(self.rows[i] @ projected)
            )
        if fall < MIN_LN_VARIANCE_FALL or not self._allowed(indices):
            return None
        price = float(np.sum(self._price(runs[indices], self.cost[indices])))
        return Move(fall / price, tuple(indices), "budget")
