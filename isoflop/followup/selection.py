"""Which runs reduce the variance of what is asked most for their price, one step after the other.

The price of runs is the share of the caps that they use up: FLOPs / most FLOPs + runs / most runs. What they are worth
is the fall of ln variance of one function of theta, by Fisher information at the fitted law (`fitting.design`). A
design that trusts the law completely repeats a few cheap extremes; these rules keep a wrong law in sight: at most two
repeats of a place, a new budget only with four sizes that bracket its optimum, and no budget with more than a third of
the new runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from isoflop.fitting.estimators.fisher import Aim
from isoflop.fitting.estimators.surface_estimate import PARAMETERS
from isoflop.followup.bracketing import CLOSE, Repair
from isoflop.followup.candidates import Place

Floats = np.ndarray
Kind = Literal["repair", "budget", "size", "repeat"]
MOST_OF_A_PLACE = 3
SIZES_PER_SIDE = 2
NEAR = np.log(2.0)
"""One of the two sizes on a side of a new budget's optimum is as near as this: without it the profile has no bottom."""

SHARE_OF_A_BUDGET = 1.0 / 3.0
LEAST_OF_A_BUDGET = 4
LEAST_WORTH = 1e-3
"""Steps that lower ln variance by less are not worth a run."""

PRIOR = 1.0 / np.array([3.0, 3.0, 3.0, 1.0, 1.0]) ** 2
"""Information of a vague prior on theta: it lets runs be judged where those before don't fix the law."""


@dataclass(frozen=True, eq=False)
class Option:
    """A place that may be run.

    Attributes:
        row: what a run there tells, (5,) (`Design.rows_at`).
        offset: ln N less ln N* of its budget.
        known: runs of it that there are or will be.
        seeds: runs that a first visit makes.
    """

    place: Place
    row: Floats
    offset: float
    known: int
    seeds: int


@dataclass(frozen=True)
class Caps:
    """What may be spent: FLOPs and runs; and half of the interval (of a, or of ln loss) at which it is enough."""

    flops: float
    runs: int
    enough: float = 0.0


@dataclass(frozen=True, eq=False)
class Pick:
    """A chosen place.

    Attributes:
        seeds: how many runs.
        kind: `repair` of a profile, part of a new `budget`, a new `size`, or a `repeat`.
        reason: of a repair, in words.
        half: of the interval, after this pick and those before.
        before: the same without it.
    """

    place: Place
    offset: float
    seeds: int
    kind: Kind
    reason: str
    half: float
    before: float

    @property
    def train_flops(self) -> int:
        return self.place.train_flops * self.seeds


class Move(NamedTuple):
    """Options that are taken together, and the fall of ln variance for the price."""

    worth: float
    which: tuple[int, ...]
    kind: Kind


class Search:
    """What there is, what was picked, and what that leaves of the caps."""

    def __init__(
        self,
        options: Sequence[Option],
        information: Floats,
        configurations: int,
        aim: Aim,
        caps: Caps,
        confidence: float,
    ) -> None:
        """
        Args:
            options: all places that are allowed.
            information: on theta of the runs that there are or will be, (5, 5).
            configurations: how many these are.
            aim: what is to be known.
        """
        self.options, self.information, self.aim, self.caps = (
            options,
            information + np.diag(PRIOR),
            aim,
            caps,
        )
        self.configurations, self.confidence = configurations, confidence
        self.picks: list[Pick] = []
        self.spent, self.runs = 0.0, 0
        self.rows = np.array([option.row for option in options]).reshape(-1, PARAMETERS)
        self.offset = np.array([option.offset for option in options])
        self.cost = np.array([float(option.place.train_flops) for option in options])
        self.budget = np.array([option.place.budget for option in options])
        self.known = np.array([option.known for option in options], dtype=np.int64)
        self.seeds = np.array(
            [1 if option.known else option.seeds for option in options], dtype=np.int64
        )
        self.added = dict.fromkeys(self.budget.tolist(), 0)
        self.index = {option.place.key: i for i, option in enumerate(options)}

    @property
    def half(self) -> float:
        """Half of the interval that the runs and picks so far would give."""
        variance = self.aim.gradient @ np.linalg.solve(self.information, self.aim.gradient)
        dof = max(self.configurations - PARAMETERS, 1)
        return float(stdtrit(dof, 0.5 + self.confidence / 2.0) * np.sqrt(variance))

    def mend(self, repairs: Sequence[Repair]) -> list[Repair]:
        """Takes the runs of repairs, whole repairs as long as the caps last; returns those that they don't allow."""
        left = []
        for repair in repairs:
            which = tuple(self.index[place.key] for place in repair.places)
            if which and self._allowed(which):
                self._take(which, "repair", repair.reason)
            else:
                left.append(repair)
        return left

    def spend(self) -> None:
        """Takes the best step for its price until the caps are reached, nothing is worth it, or enough is known."""
        while self.half > self.caps.enough:
            moves = [move for move in (self._single(), *map(self._opening, self._new())) if move]
            if not moves:
                break
            best = max(moves, key=lambda move: move.worth)
            self._take(best.which, best.kind, "")

    def _take(self, which: tuple[int, ...], kind: Kind, reason: str) -> None:
        for i in which:
            seeds, before = int(self.seeds[i]), self.half
            self.spent, self.runs = self.spent + seeds * self.cost[i], self.runs + seeds
            self.configurations += not self.known[i]
            self.information = self.information + seeds * np.outer(self.rows[i], self.rows[i])
            self.known[i] += seeds
            self.seeds[i] = 1
            self.added[self.budget[i]] += seeds if kind != "repair" else 0
            self.picks.append(
                Pick(self.options[i].place, self.offset[i], seeds, kind, reason, self.half, before)
            )

    def _price(self, seeds: Floats, cost: Floats) -> Floats:
        return seeds * cost / self.caps.flops + seeds / self.caps.runs

    def _allowed(self, which: tuple[int, ...]) -> bool:
        these = list(which)
        flops, runs = float(self.seeds[these] @ self.cost[these]), int(self.seeds[these].sum())
        return self.spent + flops <= self.caps.flops and self.runs + runs <= self.caps.runs

    def _single(self) -> Move | None:
        """The best one place, a new size or a repeat, at a budget that has runs."""
        most = max(LEAST_OF_A_BUDGET, int(np.ceil(SHARE_OF_A_BUDGET * self.caps.runs)))
        added = np.array([self.added[budget] for budget in self.budget.tolist()], dtype=np.int64)
        free = np.isin(self.budget, self.budget[self.known > 0]) & (self.known < MOST_OF_A_PLACE)
        free &= (added + self.seeds <= most) & (self.runs + self.seeds <= self.caps.runs)
        free &= self.spent + self.seeds * self.cost <= self.caps.flops
        falls = self._falls(np.linalg.inv(self.information), self.seeds)
        worths = np.where(
            free & (falls >= LEAST_WORTH), falls / self._price(self.seeds, self.cost), 0.0
        )
        if not worths.any():
            return None
        i = int(np.argmax(worths))
        return Move(float(worths[i]), (i,), "repeat" if self.known[i] else "size")

    def _falls(self, covariance: Floats, seeds: Floats) -> Floats:
        """Fall of ln variance of the aim by the runs of each option."""
        turned = self.rows @ covariance
        leverage = np.einsum("ij,ij->i", turned, self.rows)
        variance = self.aim.gradient @ covariance @ self.aim.gradient
        return -np.log1p(
            -(seeds * (turned @ self.aim.gradient) ** 2) / (1.0 + seeds * leverage) / variance
        )

    def _new(self) -> list[float]:
        """Budgets without runs."""
        with_runs = set(self.budget[self.known > 0].tolist())
        return sorted(set(self.budget.tolist()) - with_runs)

    def _opening(self, budget: float) -> Move | None:
        """The best four sizes of a new budget, two on either side of its optimum, chosen one by one."""
        here = self.budget == budget
        covariance, fall, which = np.linalg.inv(self.information), 0.0, []
        for _ in range(2 * SIZES_PER_SIDE):
            free = here.copy()
            for i in which:
                free &= np.abs(self.offset - self.offset[i]) >= CLOSE
            for side in (-1, 1):
                mine = [i for i in which if np.sign(self.offset[i]) == side]
                if len(mine) >= SIZES_PER_SIDE:
                    free &= np.sign(self.offset) != side
                elif mine and np.abs(self.offset[mine[0]]) > NEAR:
                    free &= (np.sign(self.offset) != side) | (np.abs(self.offset) <= NEAR)
            if not free.any():
                return None
            falls = np.where(free, self._falls(covariance, self.seeds), -1.0)
            i = int(np.argmax(falls))
            which.append(i)
            fall += float(falls[i])
            turned = covariance @ self.rows[i]
            covariance = covariance - np.outer(turned, turned) * self.seeds[i] / (
                1.0 + self.seeds[i] * float(self.rows[i] @ turned)
            )
        if fall < LEAST_WORTH or not self._allowed(tuple(which)):
            return None
        price = float(np.sum(self._price(self.seeds[which], self.cost[which])))
        return Move(fall / price, tuple(which), "budget")
