"""Noise between seeds: pooled over different losses; equal losses carry no information."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest

from isoflop.fitting import (
    RunsTable,
    fit_isoflop,
    fit_joint,
    fit_parametric,
    read_table,
    simulate_isoflop,
)
from isoflop.fitting.estimators.noise import estimate_noise
from isoflop.fitting.results.diagnostics import noise_findings
from isoflop.frames import column

BASE = simulate_isoflop(points=9, spread=2.5, noise=0.004, seed=3).drop(columns="simulated")
TWICE = pd.concat([BASE, BASE.assign(seed=1, run_id=BASE["run_id"] + "-copy")])
BITS = pd.concat(
    [BASE, BASE.assign(seed=1, run_id=BASE["run_id"] + "-bits", loss=BASE["loss"] / 0.3 * 0.3)]
)
"""Copies whose last bits a change of units has changed."""
ONE = pd.concat([BASE, BASE.iloc[[4]].assign(seed=1, run_id="copy")])


def codes(fit) -> set[str]:
    return {finding["code"] for finding in fit.diagnostics}


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        (TWICE, "In 63 configurations seeds"),
        (BITS, "In 63 configurations seeds"),
        (ONE, "In 1 configuration seeds"),
    ],
)
@pytest.mark.parametrize("fit", [fit_isoflop, fit_joint, fit_parametric])
def test_copies_do_not_suppress_findings(fit, runs, text):
    options = {} if fit is fit_joint else {"bootstrap": 0}
    single, doubled = fit(BASE, **options), fit(runs, **options)
    expected = codes(single) - {"no_replicates", "uneven_noise"} | {"equal_seeds"}
    assert codes(doubled) - {"uneven_noise"} == expected
    assert text in next(
        finding["message"] for finding in doubled.diagnostics if finding["code"] == "equal_seeds"
    )
    assert doubled.noise.replicate_dof == 0
    assert doubled.noise.sd == doubled.noise.residual_sd > 0.0
    assert np.all(np.isfinite(fit_isoflop(runs, bootstrap=0).profiles["depth_to_noise"]))


def test_a_change_of_units_changes_last_bits() -> None:
    losses = BITS["loss"].to_numpy()
    assert 0 < np.count_nonzero(losses[:63] != losses[63:]) < 63


def test_copies_beside_true_seeds_do_not_make_noise_small():
    seeds = simulate_isoflop(points=9, noise=0.003, seeds=3)
    copies = seeds[seeds["seed"] == 0].assign(seed=9, run_id=lambda t: t["run_id"] + "-copy")
    mixed, clean = (read_table(t) for t in (pd.concat([seeds, copies]), seeds))
    both = [estimate_noise(table, 1.0, 40) for table in (mixed, clean)]
    assert both[0].replicate_sd == pytest.approx(both[1].replicate_sd)
    assert [noise.replicate_dof for noise in both] == [126, 126]
    assert [noise.copies for noise in both] == [63, 0]
    assert [finding["code"] for finding in noise_findings(both[0], "")] == [
        "lack_of_fit",
        "replicate_noise",
        "equal_seeds",
    ]


@functools.cache
def read_clean(seeds: int) -> RunsTable:
    """Return the runs of 42 configurations without noise."""
    return read_table(simulate_isoflop(points=6, noise=0.0, seeds=seeds))


@pytest.mark.parametrize(
    ("noise", "digits"), [(0.0005, 3), (0.0003, 3), (0.003, 2), (0.0005, 4), (0.003, 9)]
)
@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("bits", [False, True])
def test_seeds_equal_by_rounding_count(noise: float, digits: int, seeds: int, bits: bool) -> None:
    """Dropping equal seeds, and not seeds that differ by chance, would make noise 10 to 25% too
    large.
    """
    clean, unit, sds = read_clean(seeds), np.log(2) if bits else 1.0, []
    for seed in range(8):
        runs = simulate_isoflop(points=6, noise=noise, seeds=seeds, seed=seed).set_index("run_id")
        losses = column(runs.loc[clean.frame["run_id"]], "loss")
        frame = clean.frame.assign(loss=np.round(losses / unit, digits) * unit)
        table = dataclasses.replace(clean, frame=frame)
        sds.append(estimate_noise(table, 1.0, 40).replicate_sd)
    assert np.mean(sds) == pytest.approx(noise, rel=0.09)


@pytest.mark.parametrize("digits", [3, 4, 9])
def test_copies_are_more_than_rounding_explains(digits: int) -> None:
    seeds = simulate_isoflop(points=9, noise=0.003, seeds=3)
    copies = seeds[seeds["seed"] == 0].assign(seed=9, run_id=lambda t: t["run_id"] + "-copy")
    table = read_table(pd.concat([seeds, copies]).assign(loss=lambda t: t["loss"].round(digits)))
    noise = estimate_noise(table, 1.0, 40)
    assert noise.copies == 63
    assert noise.replicate_sd == pytest.approx(0.003, rel=0.1)
