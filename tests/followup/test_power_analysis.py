"""Expected intervals of a plan, and the laws that they are based on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import isoflop
from isoflop.errors import FitError
from isoflop.fitting import fit_isoflop, fit_parametric, simulate_isoflop, write_fit
from isoflop.followup.power_analysis import expect_intervals
from isoflop.laws import SURFACES, ExpectedLaw, expected_law

SODA = ExpectedLaw("soda", SURFACES["soda"])


def test_soda() -> None:
    expected = expect_intervals(isoflop.plan("soda"), SODA, targets=[1.3e22])
    assert expected.sds["a"] == pytest.approx(0.0112, abs=5e-5)
    assert expected.intervals["a"].value == pytest.approx(0.3909, abs=1e-4)
    assert expected.intervals["a"].width == pytest.approx(
        2 * 2.001 * expected.sds["a"], rel=1e-3
    )  # t, 59 dof
    assert expected.intervals["b"].width == pytest.approx(expected.intervals["a"].width)
    assert list(expected.losses) == [3e21, 1.3e22]
    assert expected.losses[1.3e22].value == pytest.approx(3.250, abs=1e-3)
    assert expected.noise == 0.003
    assert json.loads(json.dumps(expected.to_dict(), allow_nan=False))["dof"] == 59


def test_replicates_count_and_leave_the_degrees_of_freedom() -> None:
    once = expect_intervals(isoflop.plan("soda"), SODA)
    twice = expect_intervals(isoflop.plan("soda", ["seeds=[0, 1]"]), SODA)
    assert twice.dof == once.dof
    assert twice.sds["a"] == pytest.approx(once.sds["a"] / np.sqrt(2.0))
    more = {"budget": 3e18, "width": 1024, "seeds": [1]}
    (effect,) = (
        effect
        for effect in once.configurations
        if (effect.run.budget, effect.run.width) == (3e18, 1024)
    )
    replicated = expect_intervals(isoflop.plan("soda", {"replicates": [more]}), SODA)
    assert replicated.sds["a"] == pytest.approx(once.sds["a"] * (1.0 + effect.replicate))


def test_without_a_run() -> None:
    expected = expect_intervals(isoflop.plan("soda"), SODA)
    worst = expected.most_influential[0]
    assert worst.run.run_id.startswith("3e20-w640-")
    extra = list(isoflop.plan("soda").sweep.extra)
    assert all((point.budget, point.width) != (3e20, 640) for point in extra)
    rules = [
        {"until": 2.7e19, "start": 128, "stop": 2048, "step": 128},
        {"until": 2e20, "start": 128, "stop": 2048, "step": 256},
        {"values": [896, 1152, 1408, 1664, 1920]},
    ]
    rest = isoflop.plan("soda", {"widths": rules})
    assert len(rest.runs) == 63
    assert expect_intervals(rest, SODA).sds["a"] == pytest.approx(
        expected.sds["a"] * (1.0 + worst.without)
    )
    assert all(effect.without >= 0.0 >= effect.replicate for effect in expected.configurations)
    total = isoflop.plan("soda").total_flops
    assert all(effect.run.train_flops <= 0.01 * total for effect in expected.best_replicates)


def test_noise_scales_the_intervals() -> None:
    plan = isoflop.plan("soda")
    assert expect_intervals(plan, SODA, noise=0.006).sds["a"] == pytest.approx(
        2.0 * expect_intervals(plan, SODA).sds["a"]
    )
    with pytest.raises(FitError, match="share of the loss between 0 and 1"):
        expect_intervals(plan, SODA, noise=3.0)


def test_too_few_configurations_are_refused() -> None:
    plan = isoflop.plan(
        "soda", {"budgets": [3e18], "extra": [], "widths": [256, 384, 512, 640, 768, 896]}
    )
    with pytest.raises(FitError, match="6 configurations can't determine a law of 5 parameters"):
        expect_intervals(plan, SODA)


# Laws


def test_a_fitted_law_with_its_noise_and_count(tmp_path: Path) -> None:
    runs = simulate_isoflop(SURFACES["soda"], noise=0.002, seeds=2).rename(
        columns={"params": "params_non_embedding"}
    )
    fit = fit_parametric(runs, n="non_embedding", bootstrap=0)
    law = expected_law(str(write_fit(tmp_path, [fit])))
    assert law.n == "non_embedding"
    assert law.noise == pytest.approx(fit.noise.replicate_sd)
    assert law.surface.alpha == fit.params["alpha"]
    plan = isoflop.plan("soda")
    assert expect_intervals(plan, law).noise == law.noise
    assert expect_intervals(plan, law).sds["a"] != pytest.approx(
        expect_intervals(plan, ExpectedLaw("x", law.surface)).sds["a"], rel=0.01
    )


def test_laws_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(
        FitError,
        match=r"chinchila: no law of that name and no such file; did you mean chinchilla\?",
    ):
        expected_law("chinchila")
    with pytest.raises(FitError, match="has no parametric fit \\(it has isoflop\\)"):
        expected_law(str(write_fit(tmp_path, [fit_isoflop(simulate_isoflop(), bootstrap=0)])))
    broken = tmp_path / "broken.json"
    broken.write_text('{"fits": [{"method": "parametric", "params": {}}]}')
    with pytest.raises(FitError, match=r"broken\.json: not a fit\.json"):
        expected_law(str(broken))
