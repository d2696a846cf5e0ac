"""Input of a selection: noise, optima over real shapes, options."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support.followup_studies import NOISE, SODA, every_second, with_losses

from isoflop.fitting import fit_parametric
from isoflop.followup.candidates import CandidatePoint, list_candidate_points
from isoflop.followup.finished_study import (
    HUBER_EFFICIENCY,
    MAX_LN_LOSS_RISE,
    FinishedStudy,
    pool_variance,
)
from isoflop.planning.plan import plan


@pytest.fixture(scope="module")
def study() -> FinishedStudy:
    laid_out = plan(every_second(3e19))
    fit = fit_parametric(with_losses(laid_out, noise=0.0), bootstrap=0, huber_delta=np.inf)
    done = Counter((run.budget, run.width) for run in laid_out.runs)
    points = list_candidate_points(laid_out.sweep)
    return FinishedStudy.from_estimate(fit.sample, fit.estimate, {}, done, points)


def test_noise_is_pooled_where_seeds_and_residuals_agree() -> None:
    """By simulation, 15 residual degrees of freedom and 10 between seeds count as 25."""
    rng, pooled, expected = np.random.default_rng(0), [], NOISE**2 / HUBER_EFFICIENCY
    for _ in range(4000):
        residual, seeds = rng.chisquare(15) / 15, rng.chisquare(10)
        variance = NOISE**2 * residual / HUBER_EFFICIENCY
        pooled.append(pool_variance(variance, 15, NOISE**2 * seeds, 10))
    assert np.mean(pooled) == pytest.approx(expected, rel=0.02)
    assert np.std(pooled) == pytest.approx(expected * np.sqrt(2 / 25), rel=0.07)


def test_residuals_count_alone_where_the_law_does_not_fit() -> None:
    assert pool_variance(25.0 * NOISE**2, 15, 10.0 * NOISE**2, 10) == 25.0 * NOISE**2
    assert pool_variance(NOISE**2, 15, 0.0, 0) == NOISE**2


def test_the_optimum_of_a_budget_is_that_of_its_shapes(study: FinishedStudy) -> None:
    """SODA's small shapes cost more than 6ND, so larger models with less data are better."""
    for budget in (3e18, 3e20):
        points = [point for point in study.points if point.budget == budget]
        params = np.array([point.params("total") for point in points], dtype=float)
        tokens = np.array([point.tokens for point in points], dtype=float)
        losses = SODA.loss(params, tokens)
        assert abs(study.optima[budget] - np.log(params[np.argmin(losses)])) < 0.2
    assert study.optima[3e18] != pytest.approx(float(np.log(SODA.optimum(3e18)[0])), abs=0.01)
    assert study.optima[3e20] == pytest.approx(float(np.log(SODA.optimum(3e20)[0])), abs=0.1)


def test_options_are_near_enough_or_have_runs(study: FinishedStudy) -> None:
    options, rises, sizes = study.options(), {}, np.geomspace(1e6, 1e11, 20_001)
    for option in options:
        params, tokens = float(option.point.params("total")), float(option.point.tokens)
        data = study.sample.cost.ln_tokens(np.log(sizes), np.log(float(option.point.train_flops)))
        least = SODA.loss(sizes, np.exp(data)).min()
        rises[option.point.key] = float(np.log(SODA.loss(params, tokens) / least))
        assert option.offset == pytest.approx(np.log(params) - study.optima[option.point.budget])
    limit = MAX_LN_LOSS_RISE + 1e-6
    assert all(rise <= limit or study.done.get(key) for key, rise in rises.items())
    assert len(options) < len(study.points)
    assert sum(option.known for option in options) == 20


def test_excluded_points_are_no_options(study: FinishedStudy) -> None:
    laid_out = plan(every_second(3e19))
    fit = fit_parametric(with_losses(laid_out), bootstrap=0)
    points, key = study.points, study.points[10].key
    other = FinishedStudy.from_estimate(fit.sample, fit.estimate, {}, {}, points, excluded={key})
    assert key not in {point.key for point in other.points}


def test_unfinished_runs_count_as_finished_ones(study: FinishedStudy) -> None:
    point = next(point for point in study.points if point.key == (3e19, 896))
    assert point.key not in study.done
    runs = {"unfinished": {point: 2}, "done": study.done, "points": study.points}
    larger = FinishedStudy(study.sample, study.law, study.noise, **runs)
    assert larger.configurations == study.configurations + 1
    more = larger.rows.T @ larger.rows - study.rows.T @ study.rows
    row = study.design.rows_at(
        *(np.array([float(v)]) for v in (point.params("total"), point.tokens))
    )[0]
    np.testing.assert_allclose(more, 2.0 * np.outer(row, row), rtol=1e-9)
    (option,) = (option for option in larger.options() if option.point.key == point.key)
    assert option.known == 2
    assert isinstance(option.point, CandidatePoint)
