"""Residuals and influence, in figures and tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from support.figure_checks import axes_in_axes_out, legend, marked, named, xy
from support.fits import Fits

from isoflop.fitting import fit_isoflop, fit_joint, fit_parametric, simulate_isoflop

RUNS = simulate_isoflop(points=7)
FITS = Fits(
    isoflop=lambda: fit_isoflop(RUNS, bootstrap=200),
    joint=lambda: fit_joint(RUNS),
    parametric=lambda: fit_parametric(RUNS, bootstrap=0),
    nats=lambda: fit_parametric(RUNS, bootstrap=0, residual="loss"),
)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("against", ["params", "tokens", "flops"])
def test_every_run_is_drawn(name, against):
    fit = FITS[name]
    ax = axes_in_axes_out(lambda ax=None: fit.plot_residuals(against, ax))
    x, y = np.concatenate([xy(line) for line in marked(ax, "o")], axis=1)
    assert sorted(x) == pytest.approx(sorted(RUNS["budget" if against == "flops" else against]))
    assert sorted(y) == pytest.approx(sorted(fit.residuals["sds"]))
    assert ("nats)" in ax.get_ylabel()) == (name == "nats")
    assert "median" in legend(ax)


def test_residuals_of_a_surface_are_those_of_its_loss():
    surface = FITS["parametric"]
    table = surface.residuals
    fitted = surface.loss_at(table["params"].to_numpy(), table["tokens"].to_numpy())
    assert table["residual"].to_numpy() == pytest.approx(np.log(table["loss"].to_numpy() / fitted))
    influence = surface.influence
    assert table["sds"].to_numpy() == pytest.approx(influence["sds"].to_numpy())
    assert list(table.index) == list(influence.index)


def test_residuals_of_seeds_are_on_the_scale_of_one_run():
    second_seed = RUNS.assign(loss=RUNS["loss"] * 1.0001, seed=1)
    both = fit_isoflop(pd.concat([RUNS, second_seed]), bootstrap=0).residuals
    ratio = both["sds"] / both["residual"]
    assert ratio.to_numpy() == pytest.approx(np.sqrt(2.0) / both.attrs["robust_sd"])


def test_profiles_that_are_not_used_have_no_residuals():
    flipped = RUNS["loss"].where(RUNS["budget"] != 1e19, 6.0 - RUNS["loss"])
    fit = fit_isoflop(RUNS.assign(loss=flipped), bootstrap=0)
    assert set(fit.residuals["budget"]) == set(RUNS["budget"]) - {1e19}


def test_influence_names_the_runs_that_move_a_most():
    bent = RUNS.assign(loss=RUNS["loss"].where(RUNS.index != 6, RUNS["loss"] * 1.02))
    fit = fit_parametric(bent, bootstrap=0)
    axes_in_axes_out(lambda ax=None: fit.plot_influence(ax), x_scale="linear")
    ax = fit.plot_influence(runs=5)
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert len(names) == 5
    assert names[-1] == bent["run_id"][6]
    worst = fit.influence.loc[fit.influence["a_shift"].abs().idxmax(), "a"]
    assert xy(named(ax, "without the run"))[0][-1] == pytest.approx(worst)
