"""Where runs could still be made: budgets and widths of a sweep's recipe, solved into whole training configurations."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from isoflop.config.identity import budget_label
from isoflop.config.schema import Sweep
from isoflop.errors import ConfigError
from isoflop.fitting.tables.runs_table import ParamCount
from isoflop.planning.checked_recipe import Rules
from isoflop.planning.grid import MOST_TOKENS
from isoflop.planning.plan import epochs_of
from isoflop.recipes import Candidate, Dropped, Limits

Floats = np.ndarray
WIDER = 2.0
"""The widest model that is considered, over the widest of the sweep."""

MOST_WIDTHS = 64
STEP = 10.0**0.25
STEPS_ABOVE = 4
"""New budgets above the largest, up to a decade: further out, the law is trusted too much to choose by it."""

GAP = 1.5
"""Neighbouring budgets further apart than this may get one between them."""


@dataclass(frozen=True)
class Place:
    """A configuration that could be run."""

    budget: float
    candidate: Candidate

    @property
    def width(self) -> int:
        return self.candidate.shape.width

    @property
    def key(self) -> tuple[float, int]:
        return self.budget, self.width

    @property
    def tokens(self) -> int:
        return self.candidate.tokens

    @property
    def train_flops(self) -> int:
        return self.candidate.train_flops

    @property
    def label(self) -> str:
        return f"{budget_label(self.budget)} at width {self.width}"

    def params(self, n: ParamCount) -> int:
        """The parameter count that a law is about."""
        return getattr(self.candidate.shape, f"params_{n}")


def widths_of(sweep: Sweep) -> tuple[int, ...]:
    """Widths to consider: those of the sweep and multiples of their greatest common divisor, up to twice the widest.

    A lab's widths are multiples of what its heads and GPUs ask for, and so are these.
    """
    own = {width for budget in sweep.budgets for width in sweep.widths_at(budget)}
    own |= {point.width for point in sweep.extra}
    unit = math.gcd(*own)
    lattice = np.arange(max(1, min(own) // unit), int(WIDER * max(own)) // unit + 1) * unit
    picks = np.unique(np.searchsorted(lattice, np.geomspace(lattice[0], lattice[-1], MOST_WIDTHS)))
    return tuple(sorted(own | {int(lattice[i]) for i in picks}))


def budgets_of(sweep: Sweep) -> tuple[float, ...]:
    """The sweep's budgets, one in each wide gap between them, and some moderately above."""
    own = sorted({*sweep.budgets, *(point.budget for point in sweep.extra)})
    between = [
        _rounded(math.sqrt(low * high)) for low, high in itertools.pairwise(own) if high / low > GAP
    ]
    above = [_rounded(own[-1] * STEP**step) for step in range(1, STEPS_ABOVE + 1)]
    return tuple(sorted({*own, *between, *above}))


def places_of(sweep: Sweep) -> list[Place]:
    """All places that keep to the recipe's rules and the sweep's limits, by budget and width.

    Those that would pass over a source more often than `data.max_epochs` are left out: repeated data teach less, and
    no law of N and D knows it.
    """
    rules, limits = Rules(sweep), Limits(sweep.min_batch, sweep.max_steps)
    found = []
    for budget, width in itertools.product(budgets_of(sweep), widths_of(sweep)):
        try:
            solved = rules.solve(budget, rules.shape(width), limits)
        except ConfigError:
            continue  # a lab's recipe need not make what its sweep does not name
        if isinstance(solved, Dropped) or solved.tokens > MOST_TOKENS:
            continue
        if max(epochs_of(sweep.data, solved.tokens).values(), default=0.0) <= sweep.data.max_epochs:
            found.append(Place(budget, solved))
    return found


def _rounded(budget: float) -> float:
    """To two digits, as a person would write it."""
    return float(f"{budget:.1e}")
