"""Noise between seeds: pooled over those that differ; seeds that are equal to the last digit tell nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isoflop.fitting import fit_isoflop, fit_joint, fit_parametric, read_table, simulate_isoflop
from isoflop.fitting.estimators.noise import noise_of
from isoflop.fitting.results.diagnostics import of_noise

BASE = simulate_isoflop(points=9, spread=2.5, noise=0.004, seed=3).drop(columns="simulated")
TWICE = pd.concat([BASE, BASE.assign(seed=1, run_id=BASE["run_id"] + "-again")])
ONE = pd.concat([BASE, BASE.iloc[[4]].assign(seed=1, run_id="again")])


def codes(fit) -> set[str]:
    return {found["code"] for found in fit.diagnostics}


@pytest.mark.parametrize(
    ("runs", "words"), [(TWICE, "In 63 configurations seeds"), (ONE, "In 1 configuration seeds")]
)
@pytest.mark.parametrize("fit", [fit_isoflop, fit_joint, fit_parametric])
def test_copies_switch_no_finding_off(fit, runs, words):
    options = {} if fit is fit_joint else {"bootstrap": 0}
    once, again = fit(BASE, **options), fit(runs, **options)
    assert codes(again) - {"uneven_noise"} == codes(once) - {"no_replicates", "uneven_noise"} | {
        "equal_seeds"
    }
    assert words in next(
        found["message"] for found in again.diagnostics if found["code"] == "equal_seeds"
    )
    assert again.noise.replicate_dof == 0
    assert again.noise.sd == again.noise.residual_sd > 0.0
    assert np.all(np.isfinite(fit_isoflop(runs, bootstrap=0).profiles["depth_to_noise"]))


def test_copies_beside_true_seeds_do_not_make_noise_small():
    seeds = simulate_isoflop(points=9, noise=0.003, seeds=3)
    copies = seeds[seeds["seed"] == 0].assign(seed=9, run_id=lambda t: t["run_id"] + "-copy")
    mixed, clean = (read_table(t) for t in (pd.concat([seeds, copies]), seeds))
    both = [noise_of(table, 1.0, 40) for table in (mixed, clean)]
    assert both[0].replicate_sd == pytest.approx(both[1].replicate_sd)
    assert [noise.replicate_dof for noise in both] == [126, 126]
    assert [noise.copies for noise in both] == [63, 0]
    assert [finding["code"] for finding in of_noise(both[0], "")] == [
        "lack_of_fit",
        "replicate_noise",
        "equal_seeds",
    ]


@pytest.mark.parametrize(
    ("noise", "digits"), [(0.0005, 3), (0.0003, 3), (0.003, 2), (0.0005, 4), (0.003, 9)]
)
@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("bits", [False, True])
def test_seeds_that_rounding_makes_equal_count(
    noise: float, digits: int, seeds: int, bits: bool
) -> None:
    """Leaving them out, and not those that differ by chance, would make noise 10 to 25 % too large."""
    found = []
    for seed in range(8):
        runs = simulate_isoflop(points=6, noise=noise, seeds=seeds, seed=seed)
        losses = runs["loss"] / np.log(2) if bits else runs["loss"]
        printed = runs.assign(loss=losses.round(digits) * (np.log(2) if bits else 1.0))
        found.append(noise_of(read_table(printed), 1.0, 40).replicate_sd)
    assert np.mean(found) == pytest.approx(noise, rel=0.09)


@pytest.mark.parametrize("digits", [3, 4, 9])
def test_copies_are_more_than_rounding_makes(digits: int) -> None:
    seeds = simulate_isoflop(points=9, noise=0.003, seeds=3)
    copies = seeds[seeds["seed"] == 0].assign(seed=9, run_id=lambda t: t["run_id"] + "-copy")
    table = read_table(pd.concat([seeds, copies]).assign(loss=lambda t: t["loss"].round(digits)))
    noise = noise_of(table, 1.0, 40)
    assert noise.copies == 63
    assert noise.replicate_sd == pytest.approx(0.003, rel=0.1)
