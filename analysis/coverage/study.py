"""Measure the coverage of intervals; write true.csv, uneven.csv and wrong.csv beside this file.

    python analysis/coverage/study.py [--replicates 2000]

Calls the functions of `isoflop fit` on all replicates as one batch: the estimates of the parametric
law and of the joint profiles with their covariance and roll-outs, and the line through parabolas.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from worlds import DESIGNS, GRIDS, LAWS, UNEVEN, WRONG, World, list_points, noise, relative_sd

from isoflop.fitting.estimators import joint_estimate as joint
from isoflop.fitting.estimators import surface_estimate as estimate
from isoflop.fitting.estimators.holdout import HoldOut
from isoflop.fitting.estimators.newton import Observations
from isoflop.fitting.estimators.parabola import fit_parabola
from isoflop.fitting.estimators.surface_estimate import (
    Estimate,
    Sample,
    estimate_many,
    estimate_one,
)
from isoflop.fitting.estimators.surface_optimum import optimum
from isoflop.fitting.methods.isoflop import collect_profiles
from isoflop.fitting.methods.joint import combine_profiles, fit_best_start, hold_out_joint
from isoflop.fitting.methods.parametric import hold_out_surface
from isoflop.fitting.tables.fit_table import read_table
from isoflop.frames import Floats

FOLDER = Path(__file__).parent
CONFIDENCE = 0.95
EXTRAPOLATION_FACTOR = 10.0
CHUNK_REPLICATES = 500


class Replicates(NamedTuple):
    """Replicates of one simulated study, and the truth.

    Attributes:
        params: N of each run.
        tokens: D of each run.
        budget: FLOPs of each run.
        clean: losses without noise.
        losses: losses with noise, (replicates, runs).
        target: compute of the predictions, in FLOPs.
        truth: exponent a, ln N* and ln loss at the target.
    """

    params: Floats
    tokens: Floats
    budget: Floats
    clean: Floats
    losses: Floats
    target: float
    truth: dict[str, float]

    def table(self) -> pd.DataFrame:
        """Return the runs without noise as a table."""
        columns = {"params": self.params, "tokens": self.tokens, "flops": self.budget}
        return pd.DataFrame({**columns, "budget": self.budget, "loss": self.clean})


class Estimates(NamedTuple):
    """Estimates of one quantity, of all replicates.

    Attributes:
        value: estimates.
        half: half-widths of their intervals.
        truth: true value.
        allowance: allowances for model error.
    """

    value: Floats
    half: Floats
    truth: float
    allowance: Floats


def main() -> None:
    """Write the three tables, or one of them with --only."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--only", choices=["true", "uneven", "wrong"])
    options = parser.parse_args()
    count = options.replicates
    if options.only in (None, "true"):
        cells = itertools.product(LAWS, DESIGNS, GRIDS, (0.003, 0.01), ("gauss", "t3"))
        _write("true.csv", [_true_law(*cell, count) for cell in _with_progress(list(cells))])
    if options.only in (None, "uneven"):
        cells = itertools.product(LAWS, DESIGNS, GRIDS, (0.003,), ("gauss", "t3"), UNEVEN)
        rows = [_true_law(*cell[:5], count, cell[5]) for cell in _with_progress(list(cells))]
        _write("uneven.csv", rows)
    if options.only in (None, "wrong"):
        cases = [(wrong, much) for wrong, sizes in WRONG.items() for much in sizes]
        cells = itertools.product(LAWS, DESIGNS, ("centred", "drifting to 3"), cases)
        _write("wrong.csv", [_wrong_law(*cell, count) for cell in _with_progress(list(cells))])


def _with_progress(cells: list[tuple]) -> Iterator[tuple]:
    start = time.monotonic()
    for k, cell in enumerate(cells):
        print(f"{time.monotonic() - start:6.0f} s  {k + 1} of {len(cells)}", *cell, flush=True)
        yield cell


def _write(name: str, rows: list[dict]) -> None:
    pd.DataFrame(rows).to_csv(FOLDER / name, index=False, float_format="%.5g")


def _true_law(
    law: str, design: str, grid: str, sd: float, kind: str, replicates: int, uneven: str = ""
) -> dict:
    """Return the coverage of a, N* and loss, at 10 times the largest budget, of a true law."""
    world = World(LAWS[law], "true", 0.0, DESIGNS[design][0])
    row = {"law": law, "design": design, "grid": grid, "noise": sd, "kind": kind, "uneven": uneven}
    row["replicates"] = replicates
    study = (world, design, grid, sd, kind, replicates, uneven)
    for name, (value, half, truth, _) in _estimate_in_chunks(*study).items():
        row[f"{name}_bias"] = value.mean() - truth
        row[f"{name}_sd"] = value.std()
        row[f"{name}_covered"] = np.mean(np.abs(value - truth) <= half)
    if uneven:
        with patch.object(estimate, "UNEVEN_NOISE_ALPHA", 0.0):
            estimates = _estimate_in_chunks(*study)
        for name, (value, half, truth, _) in estimates.items():
            row[f"{name}_covered_as_if_even"] = np.mean(np.abs(value - truth) <= half)
    return row


def _wrong_law(law: str, design: str, grid: str, case: tuple[str, float], replicates: int) -> dict:
    """Return the coverage of N* and loss at 10 times the largest budget, of a wrong law.

    The noise is 0.3% of the loss.
    """
    world = World(LAWS[law], *case, DESIGNS[design][0])
    row = {"law": law, "design": design, "grid": grid, "wrong": case[0], "much": case[1]}
    row["replicates"] = replicates
    study = (world, design, grid, 0.003, "gauss", replicates)
    estimates = _estimate_in_chunks(*study, held_out=True)
    for name, (value, half, truth, allowance) in estimates.items():
        if name.endswith(("size", "loss")):
            row[f"{name}_bias"] = np.median(value) - truth
            row[f"{name}_statistical"] = np.mean(np.abs(value - truth) <= half)
            row[f"{name}_with_model_error"] = np.mean(np.abs(value - truth) <= half + allowance)
            row[f"{name}_widened"] = np.median(1.0 + allowance / half)
    return row


def _estimate_in_chunks(
    world: World,
    design: str,
    grid: str,
    sd: float,
    kind: str,
    replicates: int,
    uneven: str = "",
    *,
    held_out: bool = False,
) -> dict[str, Estimates]:
    """Return the estimates of all replicates for each quantity."""
    chunks = []
    for start in range(0, replicates, CHUNK_REPLICATES):
        count = min(CHUNK_REPLICATES, replicates - start)
        study = _draw_replicates(world, design, grid, sd, kind, count, start, uneven)
        chunks.append(
            _fit_surfaces(study, held_out) | _fit_joint(study, held_out) | _fit_parabolas(study)
        )
    merged = {}
    for name in chunks[0]:
        values, halves, truths, allowances = zip(*(chunk[name] for chunk in chunks), strict=True)
        merged[name] = Estimates(
            np.concatenate(values), np.concatenate(halves), truths[0], np.concatenate(allowances)
        )
    return merged


def _draw_replicates(
    world: World,
    design: str,
    grid: str,
    sd: float,
    kind: str,
    count: int,
    seed: int,
    uneven: str,
) -> Replicates:
    params, tokens, budget = list_points(world.law, design, grid)
    clean = world.loss(params, tokens)
    spread = relative_sd(world.law, params, budget, uneven)
    losses = clean * np.exp(noise(kind, sd, (count, len(clean)), 1_000_003 * seed + 17) * spread)
    target = EXTRAPOLATION_FACTOR * float(budget.max())
    size, loss = world.optimum(target)
    truth = {"a": world.law.a, "size": size, "loss": loss}
    return Replicates(params, tokens, budget, clean, losses, target, truth)


def _fit_surfaces(study: Replicates, held_out: bool) -> dict[str, Estimates]:
    """Fit the parametric law."""
    (count, runs), budget, truth = study.losses.shape, study.budget, study.truth
    points = Observations.from_counts(study.params, study.tokens, study.clean)
    weights = np.ones(runs)
    first = estimate_one(Sample(points, weights, budget, budget, np.arange(runs)), np.inf).theta
    sample = Sample(points.with_loss(study.losses), weights, budget, budget, np.arange(runs))
    fits = estimate_many(sample, np.repeat(first, count, axis=0), None)
    alpha, beta = fits.theta[:, 3], fits.theta[:, 4]
    slope = np.zeros((count, 5))
    slope[:, 3], slope[:, 4] = -beta / (alpha + beta) ** 2, alpha / (alpha + beta) ** 2
    values, gradients = optimum(points, fits.theta, study.target)
    holdout = hold_out_surface(sample, fits, None) if held_out else None
    t = stdtrit(sample.dof, 0.5 + CONFIDENCE / 2.0)
    quantities = {"a": slope, "size": gradients[:, 0], "loss": gradients[:, 2]}
    half = {name: t * _standard_errors(fits, gradient) for name, gradient in quantities.items()}
    size_error = _allowance(holdout, "params", study)
    loss_error = _allowance(holdout, "loss", study)
    exponents = beta / (alpha + beta)
    return {
        "parametric_a": Estimates(exponents, half["a"], truth["a"], np.zeros(count)),
        "parametric_size": Estimates(values[:, 0], half["size"], truth["size"], size_error),
        "parametric_loss": Estimates(values[:, 2], half["loss"], truth["loss"], loss_error),
    }


def _fit_joint(study: Replicates, held_out: bool) -> dict[str, Estimates]:
    """Fit the joint profiles."""
    count, truth = len(study.losses), study.truth
    curves, x_mean, c_mean = combine_profiles(collect_profiles(read_table(study.table()), "params"))
    order = np.lexsort((study.params, study.budget))
    first = fit_best_start(curves, np.inf).theta
    many = joint.Curves(curves.x, curves.c, curves.group, study.losses[:, order], curves.seeds)
    fits = joint.fit_curves(many, np.repeat(first, count, axis=0), None)
    holdout = hold_out_joint(many, fits, None, c_mean, "params") if held_out else None
    t = stdtrit(len(curves.x) - curves.parameter_count, 0.5 + CONFIDENCE / 2.0)
    unit = np.eye(5)
    at = unit[3] + (np.log(study.target) - c_mean) * unit[4]
    half = {
        name: t * np.sqrt(np.einsum("i,mij,j->m", g, fits.covariance, g))
        for name, g in (("a", unit[4]), ("size", at))
    }
    sizes, size_error = fits.theta @ at + x_mean, _allowance(holdout, "params", study)
    return {
        "joint_a": Estimates(fits.theta[:, 4], half["a"], truth["a"], np.zeros(count)),
        "joint_size": Estimates(sizes, half["size"], truth["size"], size_error),
    }


def _fit_parabolas(study: Replicates) -> dict[str, Estimates]:
    """Fit the line through the vertices of parabolas, with its t interval.

    `isoflop fit` prints this interval or the bootstrap's, whichever is wider: its coverage is at
    least as high.
    """
    profiles = collect_profiles(read_table(study.table()), "params")
    losses = study.losses[:, np.lexsort((study.params, study.budget))]
    vertices, start = [], 0
    for profile in profiles:
        fitted = fit_parabola(profile)
        profile_losses = losses[:, start : start + len(profile.x)]
        vertices.append(fitted.vertices(profile_losses @ fitted.solve.T))
        start += len(profile.x)
    y, x = np.stack(vertices, axis=1), np.log([p.flops for p in profiles])
    fine = np.isfinite(y).all(axis=1)
    y, centred, dof = y[fine], x - x.mean(), len(x) - 2
    slope = y @ centred / (centred @ centred)
    residuals = y - y.mean(axis=1, keepdims=True) - slope[:, None] * centred
    variance = np.sum(residuals**2, axis=1) / dof
    t, offset = stdtrit(dof, 0.5 + CONFIDENCE / 2.0), np.log(study.target) - x.mean()
    slope_error = np.sqrt(variance / (centred @ centred))
    size_error = np.sqrt(variance * (1.0 / len(x) + offset**2 / (centred @ centred)))
    sizes, zeros = y.mean(axis=1) + slope * offset, np.zeros(len(y))
    return {
        "parabola_a": Estimates(slope, t * slope_error, study.truth["a"], zeros),
        "parabola_size": Estimates(sizes, t * size_error, study.truth["size"], zeros),
    }


def _standard_errors(fits: Estimate, gradient: Floats) -> Floats:
    return np.sqrt(np.maximum(np.einsum("mi,mij,mj->m", gradient, fits.covariance, gradient), 0.0))


def _allowance(holdout: HoldOut | None, quantity: str, study: Replicates) -> Floats:
    if holdout is None:
        return np.zeros(len(study.losses))
    return holdout.allowance(quantity, study.target)


if __name__ == "__main__":
    main()
