"""The IsoFLOP method (Hoffmann et al. 2022, Approach 2): a parabola for each budget, power laws
through the optima.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Unpack, cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.estimators import parabola as para
from isoflop.fitting.estimators.holdout import HoldOut, Predict, hold_out
from isoflop.fitting.estimators.intervals import (
    Line,
    check_confidence,
    check_resamples,
    lines_through,
)
from isoflop.fitting.estimators.noise import Noise, estimate_noise
from isoflop.fitting.estimators.skew import measure_skew
from isoflop.fitting.results.diagnostics_profiles import diagnose_profiles, explain_status
from isoflop.fitting.results.isoflop_fit import IsoflopFit
from isoflop.fitting.results.profile_table import find_optima, tabulate_profiles
from isoflop.fitting.tables.fit_table import ReadOptions, RunsTable, read_table
from isoflop.fitting.terms import Axis
from isoflop.frames import Floats, column
from isoflop.text import flops_text

AllowedStatuses = Sequence[para.Status] | Literal["all"]
MIN_BUDGETS = 3  # two budgets determine a line exactly and leave no interval


def fit_isoflop(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    axis: Axis = "params",
    use: AllowedStatuses = ("interior",),
    bootstrap: int = 4000,
    confidence: float = 0.95,
    seed: int = 0,
    **columns: Unpack[ReadOptions],
) -> IsoflopFit:
    """Fit N*(C) = k_N C^a and D*(C) = k_D C^b through the optima of IsoFLOP profiles.

    For each budget, a parabola in ln N (axis `params`) or ln D (axis `tokens`) is fitted to the
    loss (nats per token), by least squares on the means of configurations, weighted by their seeds.
    Its vertex is the optimum. The other axis at the vertex comes from a quadratic of ln D in ln N
    (or the reverse) through the runs of that budget, so C = 6ND is not assumed and a + b need not
    be 1. The laws are unweighted straight lines in logarithms over budgets. C is the geometric mean
    of the runs' training FLOPs.

    Intervals are the wider of two: a residual bootstrap (relative residuals of all profiles used,
    scaled by 1/sqrt(1 - leverage), stretched to t quantiles) and the regression's t interval. The
    result keeps both. A parabola is symmetric, so its vertex lies off the optimum of a skewed
    profile. One skew common to all profiles (see `skew`) gives the shift. The intervals of the laws
    and of N* and D*, in `profiles` and in `predict`, reach the shifted values. If neighbouring
    sizes share noise, the intervals of single optima are at least as wide as the optima scatter
    about the law.

    Args:
        runs: a table of runs, its file, a sweep's directory, or a `RunsTable`; see `read_table`.
        axis: axis of the parabola.
        use: statuses of profiles that enter the laws, or `all` that have a minimum; default only
            `interior`.
        bootstrap: number of resamples; 0 for the t interval alone.
        confidence: level of the intervals, a share.
        seed: seed of the resampling; the same seed gives the same digits, whatever the order of the
            rows.
        **columns: columns and units of the table: `params, tokens, loss, flops, budget, n,
            loss_unit` of `ReadOptions`.

    Raises:
        FitError: input that can't be used; fewer than 3 budgets with a usable profile.
    """
    check_profile_options(axis, bootstrap, confidence)
    chosen = parse_statuses(use)
    table = read_table(runs, **columns)
    profiles = collect_profiles(table, axis)
    parabolas = [para.fit_parabola(p) for p in profiles]
    states: list[para.Status] = [
        para.classify_profile(p, q) for p, q in zip(profiles, parabolas, strict=True)
    ]
    used = np.array([s in chosen and s not in ("concave", "too_few") for s in states])
    if used.sum() < MIN_BUDGETS:
        raise FitError(_refusal(table, profiles, parabolas, states, int(used.sum()), axis))
    return _fit(table, axis, profiles, parabolas, states, used, chosen, bootstrap, confidence, seed)


def collect_profiles(table: RunsTable, axis: Axis) -> list[para.Profile]:
    """Return the profiles of a table, by ascending budget, each by ascending size."""
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


def check_profile_options(axis: str, bootstrap: int, confidence: float) -> None:
    """Check the options of profiles.

    Raises:
        FitError: an unknown axis, or a number of resamples or a confidence out of range.
    """
    if axis not in ("params", "tokens"):
        raise FitError(f"unknown axis {axis!r}: params or tokens")
    check_resamples(bootstrap)
    check_confidence(confidence)


def parse_statuses(use: AllowedStatuses) -> tuple[para.Status, ...]:
    """Return the statuses that `use` stands for.

    Raises:
        FitError: an unknown status.
    """
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
    usable: int,
    axis: Axis,
) -> str:
    reasons = [
        f"{flops_text(p.budget)}: {explain_status(s, p, q, axis)}"
        for p, q, s in zip(profiles, parabolas, states, strict=True)
    ]
    more = [f"and {len(reasons) - 12} more"] if len(reasons) > 12 else []
    return (
        f"{table.source}: {usable} of {len(reasons)} budgets can be used, {MIN_BUDGETS} are "
        f"needed. {'; '.join([*reasons[:12], *more])}"
    )


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
    _refuse_negative_loss(table, pairs)
    noise = _pooled_noise(table, pairs)
    ln_flops = np.log([p.flops for p, _ in pairs])
    if not np.ptp(ln_flops) > 0.0:
        raise FitError(
            f"{table.source}: the usable budgets have equal FLOPs, so they determine no law"
        )
    vertices, others, lowest = find_optima(pairs, [q.coefficients[None] for _, q in pairs])
    names = (axis, "tokens" if axis == "params" else "params")
    points = dict(zip(names, (vertices[0], others[0]), strict=True)) | {"loss": np.log(lowest[0])}
    lines = {name: Line.through(ln_flops, points[name]) for name in ("params", "tokens", "loss")}
    draws = _draws(profiles, parabolas, pairs, used, names, ln_flops, bootstrap, seed)
    skew, budget_residuals = measure_skew(pairs, axis, ln_flops)
    has_shared_noise = (
        budget_residuals is not None and budget_residuals.clustered_covariance is not None
    )
    law = lines[axis] if has_shared_noise else None
    frame = tabulate_profiles(
        profiles, parabolas, states, used, axis, noise, draws["optimum"], skew, law, confidence
    )
    rollout = hold_out_lines(ln_flops, points, lines)
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
        diagnostics=diagnose_profiles(
            table, frame, noise, axis, draws["optimum"], rollout, skew, budget_residuals
        ),
    )


def hold_out_lines(
    ln_flops: Floats, points: dict[str, Floats], lines: dict[str, Line]
) -> HoldOut | None:
    """Return hold-out tests of the laws over the budgets used: errors of the line through the
    smaller budgets at the optima of the larger ones.
    """
    budgets = np.exp(ln_flops)

    def hide(keep: np.ndarray) -> Predict:
        fitted = {
            name: Line.through(ln_flops[keep], points[name][keep]) for name in ("params", "tokens")
        }

        def predict(level: float) -> tuple[dict[str, Floats], dict[str, Floats]]:
            k, x = int(np.argmin(np.abs(budgets - level))), float(np.log(level))
            errors = {
                name: np.asarray(line.at(x) - points[name][k]) for name, line in fitted.items()
            }
            ses = {
                name: np.sqrt(lines[name].variance * (1.0 + line.variance_factor(x)))
                for name, line in fitted.items()
            }
            return errors, ses

        return predict

    return hold_out(budgets, hide)


def _refuse_negative_loss(
    table: RunsTable, pairs: list[tuple[para.Profile, para.Parabola]]
) -> None:
    """Raise if a parabola predicts a negative loss: relative residuals then have no meaning."""
    for profile, parabola in pairs:
        if min(float(parabola.lowest(parabola.coefficients)), float(parabola.fitted.min())) <= 0.0:
            raise FitError(
                f"{table.source}: the parabola of {flops_text(profile.budget)} FLOPs predicts a "
                "negative loss; check the loss column and its unit"
            )


def _covariance(lines: dict[str, Line], x: Floats, points: dict[str, Floats]) -> float:
    """Return the covariance of the residuals of the N* and D* lines: about minus their variance,
    since D is about C/6N.
    """
    size_residuals, token_residuals = (
        points[k] - lines[k].middle - lines[k].slope * (x - x.mean()) for k in ("params", "tokens")
    )
    return float(size_residuals @ token_residuals) / lines["params"].dof


def _pooled_noise(table: RunsTable, pairs: list[tuple[para.Profile, para.Parabola]]) -> Noise:
    sums = [para.residual_sum(p, q) for p, q in pairs]
    return estimate_noise(table, sum(s for s, _ in sums), sum(d for _, d in sums))


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
    """Return draws of the exponents, of ln k and of every profile's ln(optimum), NaN without a
    parabola.
    """
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
        [para.read_other_axis(p, vertices[:, k])[0] for k, (p, _) in enumerate(pairs)], axis=-1
    )
    for name, values in zip(names, (vertices, others), strict=True):
        letter = "a" if name == "params" else "b"
        draws[letter], draws[f"ln_k_{name}"] = lines_through(ln_flops, values)
    return draws
