"""Each finding appears if its condition holds, and only then."""

from __future__ import annotations

import pytest

from isoflop.fitting import fit_isoflop, fit_parametric, simulate_isoflop
from isoflop.text import flops_text

BASE = simulate_isoflop(points=9, noise=0.002)
LOW = (1e18, 1e19, 1e20)


CASES = {
    "simulated": (BASE, {}, "Nothing here is a result"),
    "no_replicates": (BASE, {}, "noise can't be separated from misfit"),
    "few_budgets": (
        simulate_isoflop(budgets=LOW),
        {},
        "With 3 budgets the power laws have 1 degree of freedom",
    ),
    "replicate_noise": (simulate_isoflop(seeds=3, noise=0.003), {}, "126 degrees of freedom"),
    "epochs": (
        BASE.assign(epochs=[5.5] * 2 + [1.0] * 61),
        {},
        "2 runs pass over their data more than 4 times (at most 5.5 times)",
    ),
    "budget_off": (BASE.assign(budget=BASE["budget"] / 3), {}, "3.00 to 3.00 times the budget"),
    "rows_dropped": (
        BASE.assign(state=["failed"] + ["done"] * 62),
        {},
        "run sim-0000: state is failed, not done",
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_findings(code):
    runs, options, text = CASES[code]
    messages = {
        d["code"]: d["message"] for d in fit_isoflop(runs, bootstrap=300, **options).diagnostics
    }
    assert text in messages[code]


def test_a_good_study_has_facts_only():
    codes = [d["code"] for d in fit_isoflop(simulate_isoflop(seeds=2, noise=0.002)).diagnostics]
    assert codes == ["simulated", "replicate_noise", "rollout"]


@pytest.mark.parametrize("spelt", [False, "False", 0, 0.0, "false", None])
def test_a_trained_loss_is_not_called_simulated(spelt):
    runs = simulate_isoflop(seeds=2, noise=0.002)
    runs["simulated"] = spelt
    assert "simulated" not in [d["code"] for d in fit_isoflop(runs, bootstrap=100).diagnostics]


@pytest.mark.parametrize("spelt", [True, "True", "true", 1])
def test_a_simulated_loss_is_called_simulated(spelt):
    runs = simulate_isoflop(seeds=2, noise=0.002)
    runs["simulated"] = [spelt] + [False] * (len(runs) - 1)
    (message,) = [
        d["message"]
        for d in fit_isoflop(runs, bootstrap=100).diagnostics
        if d["code"] == "simulated"
    ]
    assert message.startswith(f"1 of {len(runs)} losses")


def test_misfit_beyond_noise_is_named():
    runs = simulate_isoflop(seeds=2, noise=0.0005)
    runs["loss"] *= 1.0 + 0.01 * (runs.index // 2 % 2)
    (message,) = [d["message"] for d in fit_isoflop(runs).diagnostics if d["code"] == "lack_of_fit"]
    assert "exceed the noise between seeds" in message


@pytest.mark.parametrize(
    ("budgets", "start"),
    [
        ((1e18,), "With 1 budget no power law can be fitted from the data; use at least 3."),
        (
            (1e18, 1e20),
            "With 2 budgets the power law fits exactly and cannot be checked; use at least 3.",
        ),
        (LOW, "With 3 budgets the power laws have 1 degree of freedom"),
    ],
)
def test_too_few_budgets_for_a_law_are_reported(budgets, start):
    fit = fit_parametric(simulate_isoflop(budgets=budgets, points=9), bootstrap=0)
    (message,) = [d["message"] for d in fit.diagnostics if d["code"] == "few_budgets"]
    assert message.startswith(start)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.8e19, "1.8e19"), (3.16228e18, "3.162e18"), (1e11, "1e11"), (512.0, "512")],
)
def test_flops_text(value, text):
    assert flops_text(value) == text
