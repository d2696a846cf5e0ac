"""Thousands of odd studies: each is fitted by every method, or refused in one line.

All cells are numbers. The studies differ in the number and the range of budgets and sizes, the
shape of the loss, its scatter, and one run far off.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.known_answers import (
    FIT_OPTIONS,
    draw_figures,
    fit_or_refuse,
    parse_strict_json,
    run_command,
    search_settings,
)

from isoflop.fitting.methods.fit_all import METHODS, FitOptions, fit_laws
from isoflop.frames import Floats, column


@dataclass(frozen=True)
class Odd:
    """Parameters of a study; `seed` decides the noise and the run that is far off."""

    smallest: float
    steps: list[float]  # from budget to budget, in decades of compute
    sizes: int
    span: float  # the largest size is 1 + span times that of the middle
    growth: float  # exponent of the middle size
    off: float  # of the middle size, as a factor
    lie: str
    noise: float
    repeats: int
    wrong: tuple[str, float] | None
    scales: tuple[float, float]  # of loss and of parameters
    seed: int

    def runs(self) -> pd.DataFrame:
        rng = np.random.default_rng(self.seed)
        budgets = self.smallest * 10.0 ** np.cumsum([0.0, *self.steps])
        factors = np.geomspace(1.0 / (1.0 + self.span), 1.0 + self.span, self.sizes)
        budget, factor = (grid.ravel() for grid in np.meshgrid(budgets, factors, indexing="ij"))
        budget, factor = np.tile(budget, self.repeats), np.tile(factor, self.repeats)
        params = (budget / 6.0) ** self.growth * self.off * factor
        tokens = budget / 6.0 / params
        loss = self._loss(params, tokens, budget, factor, rng) * np.exp(
            self.noise * rng.standard_normal(len(budget))
        )
        runs = pd.DataFrame({"params": params, "tokens": tokens, "loss": loss, "budget": budget})
        if self.wrong:
            runs.loc[rng.integers(len(runs)), self.wrong[0]] *= self.wrong[1]
        return runs.assign(
            loss=runs["loss"] * self.scales[0], params=runs["params"] * self.scales[1]
        )

    def _loss(
        self,
        params: Floats,
        tokens: Floats,
        budget: Floats,
        factor: Floats,
        rng: np.random.Generator,
    ) -> Floats:
        match self.lie:
            case "by a law":
                return 1.8 + 478.0 * params**-0.35 + 2143.0 * tokens**-0.36
            case "by a law with no floor":
                return 478.0 * params**-0.35 + 2143.0 * tokens**-0.36
            case "by a steep law":
                return 1.8 + params**-2.0 + tokens**-2.0
            case "flat":
                return np.full(len(budget), 3.0)
            case "falling with size":
                return 1.0 + 1.0 / (1.0 + np.log1p(params))
            case "in bowls":
                return 2.0 + 0.1 * np.log(factor) ** 2 + (budget / 1e18) ** -0.05
            case _:
                return rng.uniform(0.5, 5.0, len(budget))


LIES = [
    "by a law",
    "by a law with no floor",
    "by a steep law",
    "flat",
    "falling with size",
    "in bowls",
    "anywhere",
]
ODD = st.builds(
    Odd,
    smallest=st.sampled_from([1e8, 1e13, 1e18, 1e21]),
    steps=st.lists(st.sampled_from([1e-9, 1e-3, 0.05, 0.3, 0.5, 1.0, 2.0]), max_size=7),
    sizes=st.integers(1, 9),
    span=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 5.0, 100.0]),
    growth=st.sampled_from([0.3, 0.5, 0.7]),
    off=st.sampled_from([0.1, 1.0, 3.0, 1e3]),
    lie=st.sampled_from(LIES),
    noise=st.sampled_from([0.0, 1e-15, 1e-9, 1e-3, 0.01, 0.3]),
    repeats=st.integers(1, 3),
    wrong=st.none()
    | st.tuples(
        st.sampled_from(["loss", "params", "tokens"]), st.sampled_from([0.5, 2.0, 1e-3, 1e9])
    ),
    scales=st.tuples(
        st.sampled_from([1.0, 1e-6, 1e3, 1e40]), st.sampled_from([1.0, 1e-6, 1e6, 1e40])
    ),
    seed=st.integers(0, 2**16),
)


@search_settings(15)
@given(ODD, FIT_OPTIONS)
def test_any_study_is_fitted_or_refused(odd: Odd, how: dict[str, Any]) -> None:
    fit_or_refuse(odd.runs(), {}, how)


@pytest.mark.long
@search_settings(1_000)
@given(ODD, FIT_OPTIONS)
def test_very_many_studies_are_fitted_or_refused(odd: Odd, how: dict[str, Any]) -> None:
    fit_or_refuse(odd.runs(), {}, how)


def test_a_plain_study_is_fitted() -> None:
    plain = Odd(1e18, [0.5] * 4, 7, 5.0, 0.5, 1.0, "by a law", 1e-3, 2, None, (1.0, 1.0), 0)
    assert fit_or_refuse(plain.runs(), {}, {"bootstrap": 100}) == "fitted"


FOUND = [  # a traceback each, before it was mended
    # Budgets 0.1% apart and one wrong loss: ln k is beyond all floats.
    Odd(1e8, [1e-3] * 2, 5, 1.0, 0.3, 0.1, "in bowls", 0.0, 1, ("loss", 0.5), (1.0, 1.0), 1),
    Odd(1e8, [1e-3] * 2, 4, 5.0, 0.3, 0.1, "in bowls", 0.0, 1, ("loss", 0.5), (1.0, 1.0), 1),
    Odd(1e8, [1e-3] * 2, 4, 0.1, 0.3, 0.1, "in bowls", 0.0, 1, ("loss", 0.5), (1.0, 1.0), 1),
    Odd(
        1e21,
        [2.0, 0.5, 0.05],
        5,
        0.1,
        0.5,
        1.0,
        "anywhere",
        0.3,
        1,
        ("tokens", 2.0),
        (1e-6, 1.0),
        38541,
    ),
    Odd(
        1e18,
        [1.0, 2.0, 0.5, 2.0, 1.0, 0.05],
        4,
        1.0,
        0.7,
        1.0,
        "by a steep law",
        0.3,
        2,
        ("loss", 0.5),
        (1.0, 1.0),
        257697,
    ),
    Odd(
        1e18,
        [2.0, 1.0, 0.05],
        5,
        5.0,
        0.7,
        1.0,
        "by a steep law",
        0.001,
        2,
        ("loss", 0.5),
        (1.0, 1.0),
        866149,
    ),
    Odd(
        1e8,
        [0.3, 2.0, 1.0, 1.0, 1.0],
        7,
        0.1,
        0.7,
        1.0,
        "by a law with no floor",
        1e-9,
        2,
        None,
        (1.0, 1e6),
        497212,
    ),
    Odd(
        1e13,
        [2.0, 1.0, 2.0, 0.3, 0.5, 0.3],
        6,
        1.0,
        0.3,
        0.1,
        "anywhere",
        0.01,
        1,
        None,
        (1000.0, 1.0),
        656077,
    ),
    Odd(
        1e13,
        [0.05, 1.0, 1.0],
        3,
        0.1,
        0.3,
        1.0,
        "flat",
        0.0,
        1,
        ("loss", 0.5),
        (1000.0, 1.0),
        998682,
    ),
    Odd(
        1e18,
        [1.0, 2.0, 0.3, 2.0, 0.3],
        4,
        1.0,
        0.7,
        0.1,
        "by a steep law",
        0.3,
        1,
        None,
        (1.0, 1e6),
        821478,
    ),
    Odd(
        1e21,
        [1.0, 2.0, 0.5, 1.0, 2.0],
        4,
        0.1,
        0.3,
        1.0,
        "anywhere",
        0.3,
        1,
        ("loss", 0.5),
        (1000.0, 1.0),
        797069,
    ),
    Odd(
        1e8,
        [1e-9, 1e-9, 0.05],
        2,
        0.1,
        0.3,
        0.1,
        "anywhere",
        0.0,
        2,
        ("params", 0.5),
        (1.0, 1e40),
        3,
    ),
    Odd(
        1e21,
        [0.3, 1e-9, 2.0, 2.0, 2.0, 2.0],
        4,
        100.0,
        0.7,
        0.1,
        "anywhere",
        0.01,
        3,
        None,
        (1e40, 1e-6),
        957,
    ),
    Odd(
        1e13,
        [0.3, 0.05],
        4,
        0.1,
        0.5,
        3.0,
        "by a steep law",
        1e-9,
        2,
        ("tokens", 2.0),
        (1000.0, 1.0),
        122506,
    ),
    Odd(
        1e8,
        [1e-9, 1e-9],
        3,
        0.1,
        0.3,
        0.1,
        "by a law",
        1e-15,
        2,
        None,
        (1e40, 1.0),
        0,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("odd", FOUND)
def test_past_failures_are_fitted_or_refused(odd: Odd) -> None:
    use(odd, "soda", 100.0)


RECIPES, BEYOND = st.sampled_from([None, "soda", "pocket"]), st.sampled_from([1.0, 10.0, 1e4])


@pytest.mark.slow
@search_settings(20)
@given(ODD, RECIPES, BEYOND)
def test_what_is_fitted_is_predicted_compared_and_drawn(
    odd: Odd, recipe: str | None, beyond: float
) -> None:
    use(odd, recipe, beyond)


@pytest.mark.long
@search_settings(200)
@given(ODD, RECIPES, BEYOND)
def test_very_many_studies_are_predicted_compared_and_drawn(
    odd: Odd, recipe: str | None, beyond: float
) -> None:
    use(odd, recipe, beyond)


def use(odd: Odd, recipe: str | None, beyond: float) -> None:
    runs = odd.runs()
    flops = str(float(column(runs, "budget").max()) * beyond)
    with tempfile.TemporaryDirectory() as folder:
        table, law = str(Path(folder) / "runs.csv"), str(Path(folder) / "law")
        runs.to_csv(table, index=False)
        options = ("--output", law, "--bootstrap", "100", "--method", ",".join(METHODS))
        if run_command("fit", table, *options)[0]:
            return
        predict = ["predict", law, "--flops", flops, *(["--recipe", recipe] if recipe else [])]
        for command in (predict, ["compare", law], ["compare", law, "soda", "--flops", flops]):
            run_command(*command)
            code, out = run_command(*command, "--json")
            if code == 0:
                parse_strict_json(out)
    for fit in fit_laws(runs, METHODS, FitOptions(bootstrap=100)).fits:
        draw_figures(fit)
