"""How often the intervals of fits hold the truth: writes true.csv, uneven.csv and wrong.csv beside itself.

    python analysis/coverage/study.py [--replicates 2000]

The numbers are those of the functions that `isoflop fit` itself uses, on all replicates as one batch: the estimates of
the parametric law and of the joint profiles with their covariance and roll-outs, and the line through parabolas.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from worlds import DESIGNS, GRIDS, LAWS, UNEVEN, WRONG, World, noise, places, relative_sd

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
from isoflop.fitting.methods.isoflop import collect_profiles
from isoflop.fitting.methods.joint import combine_profiles, fit_best_start, hold_out_joint
from isoflop.fitting.methods.parametric import hold_out_surface
from isoflop.fitting.results.parametric_fit import optimum
from isoflop.fitting.tables.runs_table import read_table

HERE = Path(__file__).parent
LEVEL = 0.95
BEYOND = 10.0
CHUNK = 500


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--replicates", type=int, default=2000)
    options.add_argument("--only", choices=["true", "uneven", "wrong"])
    given = options.parse_args()
    if given.only in (None, "true"):
        kinds = itertools.product(LAWS, DESIGNS, GRIDS, (0.003, 0.01), ("gauss", "t3"))
        _write("true.csv", [_true(*kind, given.replicates) for kind in _shown(list(kinds))])
    if given.only in (None, "uneven"):
        kinds = itertools.product(LAWS, DESIGNS, GRIDS, (0.003,), ("gauss", "t3"), UNEVEN)
        _write(
            "uneven.csv",
            [_true(*kind[:5], given.replicates, kind[5]) for kind in _shown(list(kinds))],
        )
    if given.only in (None, "wrong"):
        cases = [(wrong, much) for wrong, sizes in WRONG.items() for much in sizes]
        kinds = itertools.product(LAWS, DESIGNS, ("centred", "drifting to 3"), cases)
        _write("wrong.csv", [_wrong(*kind, given.replicates) for kind in _shown(list(kinds))])


def _shown(kinds: list) -> list:
    began = time.monotonic()
    for k, kind in enumerate(kinds):
        print(f"{time.monotonic() - began:6.0f} s  {k + 1} of {len(kinds)}", *kind, flush=True)
        yield kind


def _write(name: str, rows: list[dict]) -> None:
    pd.DataFrame(rows).to_csv(HERE / name, index=False, float_format="%.5g")


def _true(
    law: str, design: str, grid: str, sd: float, kind: str, replicates: int, uneven: str = ""
) -> dict:
    """Coverage of a, of N* and of the loss at 10 times the largest budget, where the law is true."""
    world = World(LAWS[law], "true", 0.0, DESIGNS[design][0])
    row = {"law": law, "design": design, "grid": grid, "noise": sd, "kind": kind, "uneven": uneven}
    row["replicates"] = replicates
    found = _in_chunks(world, design, grid, sd, kind, replicates, rolled=False, uneven=uneven)
    for name, (value, half, truth, _) in found.items():
        row[f"{name}_bias"] = value.mean() - truth
        row[f"{name}_sd"] = value.std()
        row[f"{name}_covered"] = np.mean(np.abs(value - truth) <= half)
    if uneven:
        with patch.object(estimate, "UNEVEN_NOISE_ALPHA", 0.0):
            found = _in_chunks(
                world, design, grid, sd, kind, replicates, rolled=False, uneven=uneven
            )
        for name, (value, half, truth, _) in found.items():
            row[f"{name}_covered_as_if_even"] = np.mean(np.abs(value - truth) <= half)
    return row


def _wrong(law: str, design: str, grid: str, case: tuple[str, float], replicates: int) -> dict:
    """Coverage of N* and of the loss at 10 times the largest budget, where the law is wrong, at 0.3 % noise."""
    world = World(LAWS[law], *case, DESIGNS[design][0])
    row = {
        "law": law,
        "design": design,
        "grid": grid,
        "wrong": case[0],
        "much": case[1],
        "replicates": replicates,
    }
    found = _in_chunks(world, design, grid, 0.003, "gauss", replicates, rolled=True)
    for name, (value, half, truth, more) in found.items():
        if name.endswith(("size", "loss")):
            row[f"{name}_bias"] = np.median(value) - truth
            row[f"{name}_statistical"] = np.mean(np.abs(value - truth) <= half)
            row[f"{name}_with_model_error"] = np.mean(np.abs(value - truth) <= half + more)
            row[f"{name}_widened"] = np.median(1.0 + more / half)
    return row


def _in_chunks(
    world: World,
    design: str,
    grid: str,
    sd: float,
    kind: str,
    replicates: int,
    rolled: bool,
    uneven: str = "",
) -> dict:
    """Per quantity: estimates, half-widths, truth, allowance for model error, of all replicates."""
    parts = [
        _estimates(
            world, design, grid, sd, kind, min(CHUNK, replicates - start), start, rolled, uneven
        )
        for start in range(0, replicates, CHUNK)
    ]
    return {
        name: (*(np.concatenate([part[name][i] for part in parts]) for i in (0, 1)), parts[0][name][2],
               np.concatenate([part[name][3] for part in parts]))
        for name in parts[0]
    }  # fmt: skip


def _estimates(
    world: World,
    design: str,
    grid: str,
    sd: float,
    kind: str,
    count: int,
    seed: int,
    rolled: bool,
    uneven: str,
) -> dict:
    params, tokens, budget = places(world.law, design, grid)
    clean = world.loss(params, tokens)
    spread = relative_sd(world.law, params, budget, uneven)
    losses = clean * np.exp(noise(kind, sd, (count, len(clean)), 1_000_003 * seed + 17) * spread)
    far = BEYOND * float(budget.max())
    size, loss = world.optimum(far)
    truth = {"a": world.law.a, "size": size, "loss": loss}
    return {
        **_surface(params, tokens, budget, clean, losses, far, truth, rolled),
        **_joint(params, tokens, budget, clean, losses, far, truth, rolled),
        **_parabolas(params, tokens, budget, clean, losses, far, truth),
    }


def _surface(params, tokens, budget, clean, losses, far, truth, rolled) -> dict:
    count, runs = losses.shape
    points, ones = Observations.from_counts(params, tokens, clean), np.ones(runs)
    first = estimate_one(Sample(points, ones, budget, budget, np.arange(runs)), np.inf).theta
    sample = Sample(points.with_loss(losses), ones, budget, budget, np.arange(runs))
    found = estimate_many(sample, np.repeat(first, count, axis=0), None)
    alpha, beta = found.theta[:, 3], found.theta[:, 4]
    slope = np.zeros((count, 5))
    slope[:, 3], slope[:, 4] = -beta / (alpha + beta) ** 2, alpha / (alpha + beta) ** 2
    values, gradients = optimum(points, found.theta, far)
    roll = hold_out_surface(sample, found, None) if rolled else None
    t = stdtrit(sample.dof, 0.5 + LEVEL / 2.0)
    of = {"a": slope, "size": gradients[:, 0], "loss": gradients[:, 2]}
    half = {name: t * _errors(found, gradient) for name, gradient in of.items()}
    return {
        "parametric_a": (beta / (alpha + beta), half["a"], truth["a"], np.zeros(count)),
        "parametric_size": (
            values[:, 0],
            half["size"],
            truth["size"],
            _more(roll, "params", far, count),
        ),
        "parametric_loss": (
            values[:, 2],
            half["loss"],
            truth["loss"],
            _more(roll, "loss", far, count),
        ),
    }


def _joint(params, tokens, budget, clean, losses, far, truth, rolled) -> dict:
    count = len(losses)
    frame = pd.DataFrame(
        {"params": params, "tokens": tokens, "flops": budget, "budget": budget, "loss": clean}
    )
    curves, x_mean, c_mean = combine_profiles(collect_profiles(read_table(frame), "params"))
    order = np.lexsort((params, budget))
    first = fit_best_start(curves, np.inf).theta
    many = joint.Curves(curves.x, curves.c, curves.group, losses[:, order], curves.seeds)
    found = joint.fit_curves(many, np.repeat(first, count, axis=0), None)
    roll = hold_out_joint(many, found, None, c_mean, "params") if rolled else None
    t = stdtrit(len(curves.x) - curves.parameter_count, 0.5 + LEVEL / 2.0)
    unit = np.eye(5)
    at = unit[3] + (np.log(far) - c_mean) * unit[4]
    spread = {
        name: np.sqrt(np.einsum("i,mij,j->m", g, found.covariance, g))
        for name, g in (("a", unit[4]), ("size", at))
    }
    return {
        "joint_a": (found.theta[:, 4], t * spread["a"], truth["a"], np.zeros(count)),
        "joint_size": (
            found.theta @ at + x_mean,
            t * spread["size"],
            truth["size"],
            _more(roll, "params", far, count),
        ),
    }


def _parabolas(params, tokens, budget, clean, losses, far, truth) -> dict:
    """The line through the vertices of parabolas with its t interval; the one printed is this or the bootstrap's,
    whichever is wider, so it holds the truth at least as often.
    """
    frame = pd.DataFrame(
        {"params": params, "tokens": tokens, "flops": budget, "budget": budget, "loss": clean}
    )
    profiles = collect_profiles(read_table(frame), "params")
    order = np.lexsort((params, budget))
    vertices, start = [], 0
    for profile in profiles:
        fitted = fit_parabola(profile)
        here = losses[:, order][:, start : start + len(profile.x)]
        vertices.append(fitted.vertices(here @ fitted.solve.T))
        start += len(profile.x)
    y, x = np.stack(vertices, axis=1), np.log([p.flops for p in profiles])
    fine = np.isfinite(y).all(axis=1)
    y, centred, dof = y[fine], x - x.mean(), len(x) - 2
    slope = y @ centred / (centred @ centred)
    left = y - y.mean(axis=1, keepdims=True) - slope[:, None] * centred
    variance = np.sum(left**2, axis=1) / dof
    t, off = stdtrit(dof, 0.5 + LEVEL / 2.0), np.log(far) - x.mean()
    at = np.sqrt(variance * (1.0 / len(x) + off**2 / (centred @ centred)))
    none = np.zeros(len(y))
    return {
        "parabola_a": (slope, t * np.sqrt(variance / (centred @ centred)), truth["a"], none),
        "parabola_size": (y.mean(axis=1) + slope * off, t * at, truth["size"], none),
    }


def _errors(found: Estimate, gradient: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.einsum("mi,mij,mj->m", gradient, found.covariance, gradient), 0.0))


def _more(roll: HoldOut | None, quantity: str, far: float, count: int) -> np.ndarray:
    return np.zeros(count) if roll is None else roll.allowance(quantity, far)


if __name__ == "__main__":
    main()
