"""What is known when follow-up runs are chosen: noise, optima over real shapes, options."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support.followup_studies import NOISE, SODA, every_second, with_losses

from isoflop.fitting import fit_parametric
from isoflop.followup.candidates import Place, places_of
from isoflop.followup.finished_study import EFFICIENCY, MOST_RISE, Study, pooled
from isoflop.planning.plan import plan


@pytest.fixture(scope="module")
def study() -> Study:
    laid_out = plan(every_second(3e19))
    fit = fit_parametric(with_losses(laid_out, noise=0.0), bootstrap=0, huber_delta=np.inf)
    done = Counter((run.budget, run.width) for run in laid_out.runs)
    return Study.of(fit.sample, fit.estimate, {}, done, places_of(laid_out.sweep))


def test_noise_is_pooled_where_seeds_and_residuals_agree() -> None:
    """Simulated: 15 residual degrees of freedom and 10 between seeds give the variance of 25."""
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        residual, seeds = rng.chisquare(15) / 15, rng.chisquare(10)
        found.append(pooled(NOISE**2 * residual / EFFICIENCY, 15, NOISE**2 * seeds, 10))
    assert np.mean(found) == pytest.approx(NOISE**2 / EFFICIENCY, rel=0.02)
    assert np.std(found) == pytest.approx(NOISE**2 / EFFICIENCY * np.sqrt(2 / 25), rel=0.07)


def test_residuals_count_alone_where_the_law_does_not_fit() -> None:
    assert pooled(25.0 * NOISE**2, 15, 10.0 * NOISE**2, 10) == 25.0 * NOISE**2
    assert pooled(NOISE**2, 15, 0.0, 0) == NOISE**2


def test_the_optimum_of_a_budget_is_the_best_of_the_shapes_that_it_can_buy(study: Study) -> None:
    """SODA's shapes cost more than 6ND when they are small, so less data are left and larger models are better."""
    for budget in (3e18, 3e20):
        here = [place for place in study.places if place.budget == budget]
        params, tokens = (
            np.array(v, dtype=float)
            for v in zip(*((p.params("total"), p.tokens) for p in here), strict=True)
        )
        losses = SODA.loss(params, tokens)
        assert abs(study.optima[budget] - np.log(params[np.argmin(losses)])) < 0.2
    assert study.optima[3e18] != pytest.approx(float(np.log(SODA.optimum(3e18)[0])), abs=0.01)
    assert study.optima[3e20] == pytest.approx(float(np.log(SODA.optimum(3e20)[0])), abs=0.1)


def test_options_are_near_enough_or_have_runs(study: Study) -> None:
    options = study.options()
    rises = {}
    for option in options:
        params, tokens = float(option.place.params("total")), float(option.place.tokens)
        best = SODA.optimum(6.0 * params * tokens)
        rises[option.place.key] = float(np.log(SODA.loss(params, tokens) / SODA.loss(*best)))
        assert option.offset == pytest.approx(np.log(params) - study.optima[option.place.budget])
    assert all(rise <= MOST_RISE + 1e-6 or study.done.get(key) for key, rise in rises.items())
    assert len(options) < len(study.places)
    assert sum(option.known for option in options) == 20


def test_banned_places_are_no_options(study: Study) -> None:
    laid_out = plan(every_second(3e19))
    fit = fit_parametric(with_losses(laid_out), bootstrap=0)
    key = study.places[10].key
    other = Study.of(fit.sample, fit.estimate, {}, {}, study.places, banned={key})
    assert key not in {place.key for place in other.places}


def test_coming_runs_tell_as_if_they_were_done(study: Study) -> None:
    place = next(place for place in study.places if place.key == (3e19, 896))
    assert place.key not in study.done
    coming = Study(study.sample, study.law, study.noise, {place: 2}, study.done, study.places)
    assert coming.configurations == study.configurations + 1
    more = coming.rows.T @ coming.rows - study.rows.T @ study.rows
    row = study.design.rows_at(
        *(np.array([float(v)]) for v in (place.params("total"), place.tokens))
    )[0]
    np.testing.assert_allclose(more, 2.0 * np.outer(row, row), rtol=1e-9)
    (option,) = (option for option in coming.options() if option.place.key == place.key)
    assert option.known == 2
    assert isinstance(option.place, Place)
