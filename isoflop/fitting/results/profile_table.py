"""Table of the profiles of an IsoFLOP fit: optimum, interval, depth and status of each budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.intervals import (
    Interval,
    Line,
    draws_interval,
    exponential,
    t_interval,
    wider,
)
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.skew import Skew, vertex_shift
from isoflop.fitting.results.profile_fit import NEAR_OPTIMAL_SHARES
from isoflop.fitting.terms import Axis
from isoflop.frames import Floats

_OPTIMUM_COLUMNS = (
    "params_opt",
    "tokens_opt",
    "loss_opt",
    "low",
    "high",
    "curvature",
    "depth",
    "depth_to_noise",
    "interpolation_error",
)


def tabulate_profiles(
    profiles: list[para.Profile],
    parabolas: list[para.Parabola | None],
    states: list[para.Status],
    used: np.ndarray,
    axis: Axis,
    noise: Noise,
    optimum: Floats,
    skew: Skew | None,
    law: Line | None,
    confidence: float,
) -> pd.DataFrame:
    """Return a row for each budget; see `IsoflopFit.profiles`. With a `law`, the intervals of
    optima are at least as wide as the optima scatter about it.
    """
    other = "tokens" if axis == "params" else "params"
    near_columns = [
        f"near_{100 * share:g}_{end}" for share in NEAR_OPTIMAL_SHARES for end in ("low", "high")
    ]
    unknown = dict.fromkeys((*_OPTIMUM_COLUMNS, *near_columns), np.nan)
    rows = []
    for k, (profile, parabola) in enumerate(zip(profiles, parabolas, strict=True)):
        row: dict[str, Any] = {"budget": profile.budget, "flops": profile.flops} | unknown
        if parabola is not None:
            row["curvature"] = parabola.curvature
        if parabola is not None and states[k] not in ("concave", "too_few"):
            (vertex,), (other_vertex,), (lowest,) = find_optima(
                [(profile, parabola)], [parabola.coefficients]
            )
            interval = draws_interval(float(vertex), optimum[:, k], noise.residual_dof, confidence)
            if law is not None:
                se = float(np.sqrt(law.variance))
                interval = wider(interval, t_interval(float(vertex), se, law.dof, confidence))
            if skew is not None:
                shift = vertex_shift(profile, parabola, skew.ratio)
                interval = skew.reach(interval, shift, confidence)
            depth = para.measure_depth(profile, float(lowest))
            row |= {f"{axis}_opt": np.exp(vertex), f"{other}_opt": np.exp(other_vertex)}
            row |= {"loss_opt": lowest, "depth": depth}
            _, row["low"], row["high"] = exponential(interval)
            row["depth_to_noise"] = depth / (noise.sd * lowest) if noise.sd > 0 else np.inf
            row["interpolation_error"] = para.read_other_axis(profile, vertex)[2]
            for share in NEAR_OPTIMAL_SHARES:
                half = float(np.sqrt(2.0 * share * max(lowest, 0.0) / parabola.curvature))
                near = exponential(Interval(vertex, vertex - half, vertex + half))
                row[f"near_{100 * share:g}_low"] = near.low
                row[f"near_{100 * share:g}_high"] = near.high
        row |= {"n_points": len(profile.x), "n_runs": int(profile.weight.sum())}
        rows.append(row | {"status": states[k], "used": bool(used[k])})
    return pd.DataFrame(rows)


def find_optima(
    pairs: list[tuple[para.Profile, para.Parabola]], coefficients: list[Floats]
) -> tuple[Floats, Floats, Floats]:
    """Return ln(axis), ln(other axis) and loss at the vertices, each (draws, profiles)."""
    vertices = [q.vertices(c) for (_, q), c in zip(pairs, coefficients, strict=True)]
    others = [para.read_other_axis(p, v)[0] for (p, _), v in zip(pairs, vertices, strict=True)]
    lowest = [q.lowest(c) for (_, q), c in zip(pairs, coefficients, strict=True)]
    return np.stack(vertices, axis=-1), np.stack(others, axis=-1), np.stack(lowest, axis=-1)
