"""Imagined studies with known truth: laws that are true, and laws that are not; designs; noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from isoflop.fitting import SURFACES, Surface, simulate_isoflop

Floats = np.ndarray
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
UNEVEN = (
    "ends of a profile",
    "smallest budget",
)  # where noise is three times that of the middle, or of the largest
WRONG = {  # what is wrong with the law, by how much
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
        law: the surface that it is, or is near to.
        wrong: a key of WRONG, and by how much.
        budgets: of the study, about which it goes wrong.
    """

    law: Surface
    wrong: str
    much: float
    budgets: Floats

    def loss(self, params: Floats, tokens: Floats) -> Floats:
        """Without noise. Breaks lie at the optimum of the middle budget; drifts are shares of the loss a decade."""
        s, much = self.law, self.much
        middle = s.optimum(np.exp(np.mean(np.log(self.budgets[[0, -1]]))))
        of_size, of_data = s.A * params**-s.alpha, s.B * tokens**-s.beta
        decades = np.log10(6.0 * params * tokens / self.budgets[0])
        if self.wrong == "beta falls by":
            return s.E + of_size + of_data * (1.0 + (tokens / middle[1]) ** 2) ** (much / 2.0)
        if self.wrong == "alpha falls by":
            return s.E + of_size * (1.0 + (params / middle[0]) ** 2) ** (much / 2.0) + of_data
        if self.wrong == "terms add as powers":
            return s.E + (of_size ** (1.0 / much) + of_data ** (1.0 / much)) ** much
        drift = {
            "true": 0.0,
            "recipe drifts with budget": decades,
            "recipe drifts with budget, squared": decades**2,
            "recipe drifts with size": np.log10(params / middle[0]),
            "recipe drifts with data, squared": np.log10(tokens / middle[1]) ** 2,
        }[self.wrong]
        return s.loss(params, tokens) * (1.0 + much * drift)

    def optimum(self, flops: float) -> tuple[float, float]:
        """ln N* and ln loss there, at C = 6ND."""
        near = float(np.log(self.law.optimum(flops)[0]))
        found = minimize_scalar(
            lambda x: float(np.squeeze(self.loss(np.exp(np.array([x])), flops / 6.0 / np.exp(np.array([x]))))),
            bounds=(near - 5.0, near + 5.0), method="bounded", options={"xatol": 1e-10},
        )  # fmt: skip
        return float(found.x), float(np.log(found.fun))


def places(law: Surface, design: str, grid: str) -> tuple[Floats, Floats, Floats]:
    """N, D and budget of each run."""
    budgets, points = DESIGNS[design]
    runs = simulate_isoflop(law, budgets, points, noise=0.0, **GRIDS[grid])
    return tuple(runs[name].to_numpy(dtype=np.float64) for name in ("params", "tokens", "budget"))


def noise(kind: str, sd: float, shape: tuple[int, int], seed: int) -> Floats:
    """Of ln loss: Gaussian, or Student's t with 3 degrees of freedom of the same standard deviation."""
    rng = np.random.default_rng(seed)
    drawn = (
        rng.normal(size=shape) if kind == "gauss" else rng.standard_t(3, size=shape) / np.sqrt(3.0)
    )
    return sd * drawn


def relative_sd(law: Surface, params: Floats, budget: Floats, uneven: str) -> Floats:
    """Each run's standard deviation of noise over that of the quietest."""
    if uneven == "ends of a profile":
        return 3.0 ** (np.abs(np.log(params / law.optimum(budget)[0])) / np.log(6.0))
    if uneven == "smallest budget":
        return 3.0 ** (np.log(budget.max() / budget) / np.log(budget.max() / budget.min()))
    return np.ones(len(params))
