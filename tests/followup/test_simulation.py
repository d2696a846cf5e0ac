"""The committed simulation of extensions: its script runs, and its README has the results."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.followup_studies import with_losses

from isoflop.fitting import fit_parametric
from isoflop.followup.extend import extend
from isoflop.planning.plan import plan

FOLDER = Path(__file__).parents[2] / "analysis" / "extend"


@pytest.fixture(scope="module")
def simulate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("extend_simulate", FOLDER / "simulate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_few_replicates(simulate: ModuleType) -> None:
    result, paths = simulate.study_scenario("soda", "none", ("a",), 2, 5)
    assert result["fisher_sd_a"] == pytest.approx(0.0112, abs=5e-5)
    assert result["goals"]["a"] == pytest.approx(0.0230, rel=0.03)
    extended = result["extended_for_a"]
    assert extended["reached"] == 1.0
    assert 0.06 < extended["flops"]["mean"] < 0.5
    for path in paths["a"]:
        spent = [step["flops"] for step in path]
        assert spent == sorted(spent)
        assert spent[0] == pytest.approx(0.0547, abs=1e-4)
        assert path[-1]["half"] <= result["goals"]["a"] < path[-2]["half"]
    assert "| soda | none | extended for a |" in simulate.table([result])


@pytest.mark.parametrize("wrong", ["none", "budgets", "sizes", "form"])
def test_truths(simulate: ModuleType, wrong: str) -> None:
    """The optimum of a truth is its least loss, and its exponent is that of the surface (except for
    `sizes`).
    """
    true = simulate.truth("soda", wrong)
    x, y = true.optimum(1e20)
    sizes = np.exp(x + np.array([-0.05, 0.0, 0.05]))
    losses = np.log(true.loss(sizes, 1e20 / 6.0 / sizes))
    assert y == pytest.approx(losses.min(), abs=1e-9)
    assert losses.argmin() == 1
    if wrong != "sizes":
        assert true.a == pytest.approx(true.surface.a, abs=1e-3)


def test_its_loop_selects_the_commands_runs(simulate: ModuleType) -> None:
    """The first round of the script and of `extend` on the same losses: the same design except for
    optima of the joint fit, which only repairs use.
    """
    sweep = simulate.load_sweep("soda")
    start = simulate.START
    points = tuple(simulate.Point(budget=point.budget, width=point.width) for point in start[1:])
    rule = simulate.WidthRule(values=(start[0].width,))
    small = simulate.dataclasses.replace(
        sweep, budgets=(start[0].budget,), widths=(rule,), extra=points
    )
    frame = with_losses(plan(small), seed=3)
    chosen = extend(small, frame, max_flops=1e20, max_runs=20)
    fit = fit_parametric(frame, bootstrap=0)
    done = {(run.budget, run.width): 1 for run in plan(small).runs}
    budgets = frozenset(point.budget for point in start)
    study = simulate.FinishedStudy.from_estimate(
        fit.sample, fit.estimate, {}, done, simulate.point_finder()(budgets)
    )
    search, _ = simulate.select_runs(
        study, study.design.exponent(), simulate.Caps(1e20, 20), None, 0.95
    )
    script, command = (
        {pick.point.key for pick in picks if pick.kind != "repair"}
        for picks in (search.picks, chosen.picks)
    )
    assert len(script & command) >= 0.7 * len(command)


def test_the_readme_has_the_results(simulate: ModuleType) -> None:
    results = json.loads((FOLDER / "results.json").read_text())
    assert simulate.table(results) in (FOLDER / "README.md").read_text()
