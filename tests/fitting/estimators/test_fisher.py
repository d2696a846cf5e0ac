"""Fisher information: published figures, the scatter of simulated fits, single runs left out or
added.
"""

from __future__ import annotations

import numpy as np
import pytest

import isoflop
from isoflop.errors import FitError
from isoflop.fitting.estimators.fisher import Design
from isoflop.fitting.estimators.surface_estimate import Sample, estimate_many
from isoflop.fitting.estimators.surface_optimum import optimum
from isoflop.laws import SURFACES

REPLICATES = 1500
TARGET = 1.3e22


def soda_design(law: str, noise: float = 0.003, seeds: np.ndarray | None = None) -> Design:
    runs = isoflop.plan("soda").runs
    params, tokens = (
        np.array([getattr(run, name) for run in runs], float) for name in ("params_total", "tokens")
    )
    return Design.from_counts(
        SURFACES[law], params, tokens, np.ones(len(runs)) if seeds is None else seeds, noise
    )


def test_soda_grid() -> None:
    design = soda_design("soda")
    assert design.sd(design.exponent()) == pytest.approx(0.0112, abs=5e-5)
    assert design.exponent().value == pytest.approx(SURFACES["soda"].a)
    assert design.dof == 59


@pytest.mark.parametrize("law", SURFACES)
@pytest.mark.parametrize("seeds", [1, 4])
def test_fits_of_simulated_runs_scatter_as_much(law: str, seeds: int) -> None:
    """Least squares scatter as the design expects, within Monte Carlo error (1 / sqrt(2 R)) and
    nonlinearity; Huber's loss by 2.5% more.
    """
    design = soda_design(law)
    weight = np.where(np.arange(len(design.points)) < 20, seeds, 1.0)
    design = Design(design.law, design.points, weight, design.noise)
    scatter = np.random.default_rng(0).normal(
        0.0, design.noise / np.sqrt(weight), (REPLICATES, len(weight))
    )
    losses = design.points.with_loss(design.points.loss * np.exp(scatter))
    flat = np.ones(len(weight))
    sample = Sample(losses, weight, flat, flat, np.arange(len(weight)))
    first = np.repeat(design.theta[None], REPLICATES, axis=0)
    for delta, factor in ((np.inf, 1.0), (None, 1.0 / np.sqrt(0.95))):
        theta = estimate_many(sample, first, delta).theta
        a = theta[:, 4] / (theta[:, 3] + theta[:, 4])
        loss = optimum(design.points, theta, TARGET)[0][:, 2]
        for estimates, target in ((a, design.exponent()), (loss, design.loss(TARGET))):
            assert estimates.std() == pytest.approx(factor * design.sd(target), rel=0.06)
            assert estimates.mean() == pytest.approx(target.value, abs=0.15 * design.sd(target))


def test_leaving_a_configuration_out_is_the_design_without_it() -> None:
    design, k = soda_design("soda"), 5
    keep = np.arange(64) != k
    params, tokens = (
        np.exp(design.points.x + design.points.x_mean),
        np.exp(design.points.y + design.points.y_mean),
    )
    rest = Design.from_counts(design.law, params[keep], tokens[keep], np.ones(63), design.noise)
    assert design.without_each(design.exponent())[k] == pytest.approx(rest.sd(rest.exponent()))
    assert design.without_each(design.loss(TARGET))[k] == pytest.approx(rest.sd(rest.loss(TARGET)))
    added = rest.with_each(rest.exponent(), rest.rows_at(params[[k]], tokens[[k]]))
    assert added[0] == pytest.approx(design.sd(design.exponent()))


def test_one_more_seed_is_one_more_run() -> None:
    design, seeds = soda_design("soda"), np.ones(64)
    seeds[7] = 2.0
    replicated = soda_design("soda", seeds=seeds)
    assert design.with_each(design.exponent(), design.rows)[7] == pytest.approx(
        replicated.sd(replicated.exponent())
    )


def test_power() -> None:
    design = soda_design("chinchilla")
    a = design.exponent()
    shift = abs(a.value - 0.5) / design.sd(a)
    drawn = np.random.default_rng(1)
    t = (drawn.normal(shift, 1.0, 200_000)) / np.sqrt(
        drawn.chisquare(design.dof, 200_000) / design.dof
    )
    limit = design.half_width(a, 0.95) / design.sd(a)
    assert design.power(a, 0.5, 0.95) == pytest.approx(float(np.mean(np.abs(t) > limit)), abs=0.005)
    assert design.power(a, a.value, 0.95) == pytest.approx(0.05, abs=0.002)
    assert soda_design("soda").power(soda_design("soda").exponent(), 0.5, 0.95) == pytest.approx(
        1.0
    )


def test_runs_that_do_not_fix_the_law_are_refused() -> None:
    params, tokens = np.array([1e8] * 8), np.geomspace(1e9, 1e11, 8)
    design = Design.from_counts(SURFACES["soda"], params, tokens, np.ones(8), 0.003)
    with pytest.raises(FitError, match="don't fix the law"):
        design.sd(design.exponent())
