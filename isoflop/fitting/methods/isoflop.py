"""IsoFLOP profiles (Hoffmann et al. 2022, Approach 2): a parabola a budget, power laws through the optima."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Unpack, cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.clustered_errors import Neighbours
from isoflop.fitting.estimators.holdout import Predict, RollOut, roll_out
from isoflop.fitting.estimators.intervals import (
    Interval,
    Line,
    check_confidence,
    check_resamples,
    draws_interval,
    exponential,
    lines_through,
    t_interval,
    wider,
)
from isoflop.fitting.estimators.noise import Noise, noise_of
from isoflop.fitting.estimators.skew import Shift, Skew, shift_of, skewness
from isoflop.fitting.results.base import NEAR_OPTIMAL_SHARES
from isoflop.fitting.results.diagnostics import diagnose, explain_status
from isoflop.fitting.results.isoflop_fit import IsoflopFit
from isoflop.fitting.tables.runs_table import ReadOptions, RunsTable, read_table
from isoflop.fitting.terms import Axis
from isoflop.frames import column
from isoflop.text import flops_text

Floats = np.ndarray
Use = Sequence[para.Status] | Literal["all"]
MIN_BUDGETS = 3  # two budgets fix a line exactly: no interval


def fit_isoflop(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    axis: Axis = "params",
    use: Use = ("interior",),
    bootstrap: int = 4000,
    confidence: float = 0.95,
    seed: int = 0,
    **columns: Unpack[ReadOptions],
) -> IsoflopFit:
    """Fits N*(C) = k_N C^a and D*(C) = k_D C^b through the optima of IsoFLOP profiles.

    Per budget, loss (nats per token) is a parabola in ln N (axis `params`) or ln D (axis `tokens`), least squares on
    the means of configurations, weighted by their seeds. Its vertex is the optimum; the other axis at the vertex comes
    from a quadratic of ln D in ln N (or the reverse) through the runs of that budget, so C = 6ND is not assumed and
    a + b need not be 1. The laws are unweighted straight lines in logarithms over budgets; C is the geometric mean of
    the runs' training FLOPs.

    Intervals: a residual bootstrap (relative residuals of all profiles used, scaled by 1/sqrt(1 - leverage), stretched
    to t quantiles) and the t interval of the line; the wider is the result's, both are kept. A parabola is symmetric:
    where the profiles are not, its vertex lies off the optimum. How far is told by one skew common to all profiles
    (see `skew`); the intervals of the laws and of N* and D* reach there, in `profiles` and in `predict`. Where
    neighbouring sizes share noise, those of single optima reach as far as optima scatter about the law.

    Args:
        runs: a table (see `read_table`, which takes `params, tokens, loss, flops, budget, n, loss_unit`).
        axis: what the parabola is in.
        n: which parameter count; a `RunsTable` knows its own.
        use: statuses of profiles that enter the laws, or `all` that have a minimum; default only `interior`.
        bootstrap: number of resamples; 0 leaves the t interval alone.
        confidence: of the intervals.
        seed: of the resampling; the same seed gives the same digits, whatever the order of the rows.

    Raises:
        FitError: input that can't be used; fewer than 3 budgets whose profile may be used.
    """
    check_options(axis, bootstrap, confidence)
    chosen = statuses_of(use)
    table = read_table(runs, **columns)
    profiles = profiles_of(table, axis)
    parabolas = [para.fit_parabola(p) for p in profiles]
    states: list[para.Status] = [
        para.status_of(p, q) for p, q in zip(profiles, parabolas, strict=True)
    ]
    used = np.array([s in chosen and s not in ("concave", "too_few") for s in states])
    if used.sum() < MIN_BUDGETS:
        raise FitError(_refusal(table, profiles, parabolas, states, int(used.sum()), axis))
    return _fit(table, axis, profiles, parabolas, states, used, chosen, bootstrap, confidence, seed)


def profiles_of(table: RunsTable, axis: Axis) -> list[para.Profile]:
    """The profiles of a table, by ascending budget, each by ascending size."""
    frame = table.configurations
    names = ("budget", axis, "loss", "flops", "seeds", "tokens" if axis == "params" else "params")
    columns = np.stack([column(frame, name) for name in names])
    columns = columns[:, np.lexsort(columns[2::-1])]  # by budget, then size, then loss
    starts = np.flatnonzero(np.diff(columns[0])) + 1
    return [_profile(*group) for group in np.split(columns, starts, axis=1)]


def _profile(
    budget: Floats, size: Floats, loss: Floats, flops: Floats, seeds: Floats, other: Floats
) -> para.Profile:
    mean_flops = float(np.exp(np.average(np.log(flops), weights=seeds)))
    return para.Profile(float(budget[0]), mean_flops, np.log(size), loss, seeds, np.log(other))


def check_options(axis: str, bootstrap: int, confidence: float) -> None:
    """Refuses options that no profile can be fitted with."""
    if axis not in ("params", "tokens"):
        raise FitError(f"unknown axis {axis!r}: params or tokens")
    check_resamples(bootstrap)
    check_confidence(confidence)


def statuses_of(use: Use) -> tuple[para.Status, ...]:
    """The statuses that `use` stands for."""
    chosen = para.STATUSES if use == "all" else tuple(cast(Sequence[para.Status], use))
    if isinstance(use, str) and use != "all":
        chosen = (cast(para.Status, use),)
    unknown = [s for s in chosen if s not in para.STATUSES]
    if unknown:
        raise FitError(f"unknown status {unknown[0]!r}: {', '.join(para.STATUSES)} or all")
    return chosen


def _refusal(
    table: RunsTable,
    profiles: list[para.Profile],
    parabolas: list[para.Parabola | None],
    states: list[para.Status],
    good: int,
    axis: Axis,
) -> str:
    words = [
        f"{flops_text(p.budget)}: {explain_status(s, p, q, axis)}"
        for p, q, s in zip(profiles, parabolas, states, strict=True)
    ]
    shown = "; ".join(words[:12]) + (f"; and {len(words) - 12} more" if len(words) > 12 else "")
    return f"{table.source}: {good} of {len(words)} budgets can be used, {MIN_BUDGETS} are needed. {shown}"


def _fit(
    table: RunsTable,
    axis: Axis,
    profiles: list[para.Profile],
    parabolas: list[para.Parabola | None],
    states: list[para.Status],
    used: np.ndarray,
    chosen: tuple[para.Status, ...],
    bootstrap: int,
    confidence: float,
    seed: int,
) -> IsoflopFit:
    pairs = [
        (p, q) for p, q, u in zip(profiles, parabolas, used, strict=True) if u and q is not None
    ]
    _refuse_below_zero(table, pairs)
    noise = _noise(table, pairs)
    ln_flops = np.log([p.flops for p, _ in pairs])
    if not np.ptp(ln_flops) > 0.0:
        raise FitError(
            f"{table.source}: the budgets that can be used have equal FLOPs: no law goes through them"
        )
    vertices, others, lowest = _optima(pairs, [q.coefficients[None] for _, q in pairs])
    names = (axis, "tokens" if axis == "params" else "params")
    points = dict(zip(names, (vertices[0], others[0]), strict=True)) | {"loss": np.log(lowest[0])}
    lines = {name: Line.through(ln_flops, points[name]) for name in ("params", "tokens", "loss")}
    draws = _draws(profiles, parabolas, pairs, used, names, ln_flops, bootstrap, seed)
    skew, neighbours = skew_of(pairs, axis, ln_flops)
    law = lines[axis] if neighbours is not None and neighbours.shared is not None else None
    frame = _profile_frame(
        profiles, parabolas, states, used, axis, noise, draws["optimum"], skew, law, confidence
    )
    rollout = roll_out_lines(ln_flops, points, lines)
    return IsoflopFit(
        axis=axis,
        runs=table,
        profiles=frame,
        lines=lines,
        covariance=_covariance(lines, ln_flops, points),
        draws=draws,
        noise=noise,
        rollout=rollout,
        skew=skew,
        use=chosen,
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        diagnostics=diagnose(
            table, frame, noise, axis, draws["optimum"], rollout, skew, neighbours
        ),
    )


def skew_of(
    pairs: list[tuple[para.Profile, para.Parabola]], axis: Axis, ln_flops: Floats
) -> tuple[Skew | None, Neighbours | None]:
    """The skew of the profiles used and what it moves the laws by, and what is left; None where nothing tells it."""
    found, neighbours = skewness(pairs)
    if found is None:
        return None, neighbours
    own = np.array([shift_of(profile, parabola, found[0]) for profile, parabola in pairs])
    vertices = np.array([float(q.vertices(q.coefficients)) for _, q in pairs])
    there = zip(pairs, vertices, own, strict=True)
    other = np.array(
        [float(para.other_at(p, v)[0] - para.other_at(p, v - s)[0]) for (p, _), v, s in there]
    )
    shifts = {axis: own, "tokens" if axis == "params" else "params": other}
    return Skew(
        *found, {name: Shift.through(ln_flops, values) for name, values in shifts.items()}
    ), neighbours


def roll_out_lines(
    ln_flops: Floats, points: dict[str, Floats], lines: dict[str, Line]
) -> RollOut | None:
    """Roll-outs of the laws over the budgets used: the line through the smaller ones against the optima above."""
    budgets = np.exp(ln_flops)

    def hide(keep: np.ndarray) -> Predict:
        parts = {
            name: Line.through(ln_flops[keep], points[name][keep]) for name in ("params", "tokens")
        }

        def predict(level: float) -> tuple[dict[str, Floats], dict[str, Floats]]:
            k, x = int(np.argmin(np.abs(budgets - level))), float(np.log(level))
            errors = {
                name: np.asarray(part.at(x) - points[name][k]) for name, part in parts.items()
            }
            ses = {
                name: np.sqrt(lines[name].variance * (1.0 + part.variance_factor(x)))
                for name, part in parts.items()
            }
            return errors, ses

        return predict

    return roll_out(budgets, hide)


def _refuse_below_zero(table: RunsTable, pairs: list[tuple[para.Profile, para.Parabola]]) -> None:
    """A loss below zero can't be: such losses are no profile, and nothing relative to them has a meaning."""
    for profile, parabola in pairs:
        if min(float(parabola.lowest(parabola.coefficients)), float(parabola.fitted.min())) <= 0.0:
            budget = flops_text(profile.budget)
            raise FitError(
                f"{table.source}: the parabola of {budget} FLOPs dips below zero: these losses are no profile"
            )


def _optima(
    pairs: list[tuple[para.Profile, para.Parabola]], coefficients: list[Floats]
) -> tuple[Floats, Floats, Floats]:
    """ln(axis), ln(other axis) and loss at the vertices, each (draws, profiles)."""
    vertices = [q.vertices(c) for (_, q), c in zip(pairs, coefficients, strict=True)]
    others = [para.other_at(p, v)[0] for (p, _), v in zip(pairs, vertices, strict=True)]
    lowest = [q.lowest(c) for (_, q), c in zip(pairs, coefficients, strict=True)]
    return np.stack(vertices, axis=-1), np.stack(others, axis=-1), np.stack(lowest, axis=-1)


def _covariance(lines: dict[str, Line], x: Floats, points: dict[str, Floats]) -> float:
    """Covariance of the residuals of the N* and D* lines: near minus their variance, since D is about C/6N."""
    left, right = (
        points[k] - lines[k].middle - lines[k].slope * (x - x.mean()) for k in ("params", "tokens")
    )
    return float(left @ right) / lines["params"].dof


def _noise(table: RunsTable, pairs: list[tuple[para.Profile, para.Parabola]]) -> Noise:
    sums = [para.residual_sum(p, q) for p, q in pairs]
    return noise_of(table, sum(s for s, _ in sums), sum(d for _, d in sums))


def _draws(
    profiles: list[para.Profile],
    parabolas: list[para.Parabola | None],
    pairs: list[tuple[para.Profile, para.Parabola]],
    used: np.ndarray,
    names: tuple[str, str],
    ln_flops: Floats,
    bootstrap: int,
    seed: int,
) -> dict[str, Floats]:
    """Draws of exponents, of ln k and of every profile's ln(optimum) (NaN where there is no parabola)."""
    pool, rng = para.residual_pool(pairs), np.random.default_rng(seed)
    drawn: list[Floats | None] = []
    for profile, parabola in zip(profiles, parabolas, strict=True):
        if parabola is None or not bootstrap:
            drawn.append(None)
        else:
            picks = rng.integers(0, len(pool), size=(bootstrap, len(profile.x)))
            drawn.append(para.resample(profile, parabola, pool, picks))
    optimum = np.full((bootstrap, len(profiles)), np.nan)
    for k, (parabola, coefficients) in enumerate(zip(parabolas, drawn, strict=True)):
        if parabola is not None and coefficients is not None:
            optimum[:, k] = parabola.vertices(coefficients)
    draws = {"optimum": optimum}
    vertices = optimum[:, used]
    others = np.stack(
        [para.other_at(p, vertices[:, k])[0] for k, (p, _) in enumerate(pairs)], axis=-1
    )
    for name, values in zip(names, (vertices, others), strict=True):
        letter = "a" if name == "params" else "b"
        draws[letter], draws[f"ln_k_{name}"] = lines_through(ln_flops, values)
    return draws


def _profile_frame(
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
    """A row a budget; see `IsoflopFit.profiles`. With a `law`, optima reach as far as they scatter about it."""
    other = "tokens" if axis == "params" else "params"
    rows = []
    for k, (profile, parabola) in enumerate(zip(profiles, parabolas, strict=True)):
        row = {
            "budget": profile.budget,
            "flops": profile.flops,
            "params_opt": np.nan,
            "tokens_opt": np.nan,
        }
        row |= {
            "loss_opt": np.nan,
            "low": np.nan,
            "high": np.nan,
            "curvature": np.nan,
            "depth": np.nan,
        }
        row |= {"depth_to_noise": np.nan, "interpolation_error": np.nan}
        row |= {
            f"near_{100 * share:g}_{end}": np.nan
            for share in NEAR_OPTIMAL_SHARES
            for end in ("low", "high")
        }
        if parabola is not None:
            row["curvature"] = parabola.curvature
        if parabola is not None and states[k] not in ("concave", "too_few"):
            (vertex,), (also,), (lowest,) = _optima([(profile, parabola)], [parabola.coefficients])
            interval = draws_interval(float(vertex), optimum[:, k], noise.residual_dof, confidence)
            if law is not None:
                interval = wider(
                    interval,
                    t_interval(float(vertex), float(np.sqrt(law.variance)), law.dof, confidence),
                )
            if skew is not None:
                interval = skew.reach(interval, shift_of(profile, parabola, skew.ratio), confidence)
            low_high = exponential(interval)
            depth = para.depth_of(profile, float(lowest))
            row |= {f"{axis}_opt": np.exp(vertex), f"{other}_opt": np.exp(also), "loss_opt": lowest}
            row |= {"low": low_high.low, "high": low_high.high, "depth": depth}
            row["depth_to_noise"] = depth / (noise.sd * lowest) if noise.sd > 0 else np.inf
            row["interpolation_error"] = para.other_at(profile, vertex)[2]
            for share in NEAR_OPTIMAL_SHARES:
                half = float(np.sqrt(2.0 * share * max(lowest, 0.0) / parabola.curvature))
                near = exponential(Interval(vertex, vertex - half, vertex + half))
                row |= {
                    f"near_{100 * share:g}_low": near.low,
                    f"near_{100 * share:g}_high": near.high,
                }
        row |= {"n_points": len(profile.x), "n_runs": int(profile.weight.sum())}
        rows.append(row | {"status": states[k], "used": bool(used[k])})
    return pd.DataFrame(rows)
