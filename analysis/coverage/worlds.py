"""Simulated studies of known truth: true laws, wrong laws, designs, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from isoflop.fitting import SURFACES, Surface, simulate_isoflop
from isoflop.frames import Floats

LAWS = {
    "symmetric": Surface(E=1.8172, A=477.84, B=2143.86, alpha=0.357, beta=0.357),
    "soda": SURFACES["soda"],
}
DESIGNS = {  # budgets, sizes a budget
    "7 x 9": (np.geomspace(1e18, 1e21, 7), 9),
    "5 x 6": (np.geomspace(1e18, 1e20, 5), 6),
    "4 x 5": (np.geomspace(1e18, 10**19.5, 4), 5),
    "SODA's budgets x 9": (np.array([3e18, 9e18, 1.8e19, 3e19, 9e19, 1.8e20, 3e20]), 9),
}
GRIDS = {"centred": {}, "off by 3": {"offset": 3.0}, "drifting to 3": {"drift": 3.0}}
UNEVEN = ("ends of a profile", "smallest budget")
"""Runs with three times the noise of the middle of a profile, or of the largest budget."""
WRONG = {  # fault of the law: its sizes
    "true": [0.0],
    "beta falls by": [0.05, 0.1, -0.05],
    "alpha falls by": [0.05, 0.1, -0.05],
    "recipe drifts with budget": [0.003, 0.01, -0.005],
    "recipe drifts with budget, squared": [0.002, -0.002],
    "recipe drifts with size": [0.005, -0.005],
    "recipe drifts with data, squared": [0.003],
    "terms add as powers": [1.2, 0.9],
}


@dataclass(frozen=True)
class World:
    """A true loss.

    Attributes:
        law: surface that the loss follows, or follows nearly.
        wrong: fault of the law, a key of WRONG.
        much: size of the fault.
        budgets: budgets of the study (FLOPs); the fault is relative to them.
    """

    law: Surface
    wrong: str
    much: float
    budgets: Floats

    def loss(self, params: Floats, tokens: Floats) -> Floats:
        """Return the loss without noise.

        Exponents change at the optimum of the middle budget; drifts are shares of the loss a
        decade.
        """
        s, much = self.law, self.much
        middle = s.optimum(np.exp(np.mean(np.log(self.budgets[[0, -1]]))))
        size_term, data_term = s.A * params**-s.alpha, s.B * tokens**-s.beta
        decades = np.log10(6.0 * params * tokens / self.budgets[0])
        if self.wrong == "beta falls by":
            return s.E + size_term + data_term * (1.0 + (tokens / middle[1]) ** 2) ** (much / 2.0)
        if self.wrong == "alpha falls by":
            return s.E + size_term * (1.0 + (params / middle[0]) ** 2) ** (much / 2.0) + data_term
        if self.wrong == "terms add as powers":
            return s.E + (size_term ** (1.0 / much) + data_term ** (1.0 / much)) ** much
        drift = {
            "true": 0.0,
            "recipe drifts with budget": decades,
            "recipe drifts with budget, squared": decades**2,
            "recipe drifts with size": np.log10(params / middle[0]),
            "recipe drifts with data, squared": np.log10(tokens / middle[1]) ** 2,
        }[self.wrong]
        return s.loss(params, tokens) * (1.0 + much * drift)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return ln N* and the ln loss there, at C = 6ND."""

        def loss_at(x: float) -> float:
            params = np.exp(np.array([x]))
            return float(np.squeeze(self.loss(params, flops / 6.0 / params)))

        start = float(np.log(self.law.optimum(flops)[0]))
        bounds = (start - 5.0, start + 5.0)
        best = minimize_scalar(loss_at, bounds=bounds, method="bounded", options={"xatol": 1e-10})
        return float(best.x), float(np.log(best.fun))


def list_points(law: Surface, design: str, grid: str) -> tuple[Floats, Floats, Floats]:
    """Return N, D and budget of each run."""
    budgets, points = DESIGNS[design]
    runs = simulate_isoflop(law, budgets, points, noise=0.0, **GRIDS[grid])
    return tuple(runs[name].to_numpy(dtype=np.float64) for name in ("params", "tokens", "budget"))


def noise(kind: str, sd: float, shape: tuple[int, int], seed: int) -> Floats:
    """Draw noise of ln loss of standard deviation `sd`.

    The kind `gauss` is Gaussian; any other is Student's t with 3 degrees of freedom.
    """
    rng = np.random.default_rng(seed)
    if kind == "gauss":
        return sd * rng.normal(size=shape)
    return sd * (rng.standard_t(3, size=shape) / np.sqrt(3.0))


def relative_sd(law: Surface, params: Floats, budget: Floats, uneven: str) -> Floats:
    """Return each run's standard deviation of noise, relative to the smallest."""
    if uneven == "ends of a profile":
        return 3.0 ** (np.abs(np.log(params / law.optimum(budget)[0])) / np.log(6.0))
    if uneven == "smallest budget":
        return 3.0 ** (np.log(budget.max() / budget) / np.log(budget.max() / budget.min()))
    return np.ones(len(params))
