"""The IsoFLOP method (Hoffmann et al. 2022, Approach 2): a parabola for each budget, power laws
through the optima.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from isoflop.fitting.estimators.shallow_profiles import (
    CurvatureLaw,
    Pairs,
    WeightedOptima,
    share_curvature,
    weigh_optima,
    weighted_line,
)
from isoflop.fitting.estimators.skew import measure_skew
from isoflop.fitting.results.diagnostics_profiles import diagnose_profiles, explain_status
from isoflop.fitting.results.isoflop_fit import IsoflopFit
from isoflop.fitting.results.profile_table import find_optima, tabulate_profiles
from isoflop.fitting.tables.fit_table import ReadOptions, RunsTable, read_table
from isoflop.fitting.terms import Axis
from isoflop.frames import Bools, Floats, column
from isoflop.text import flops_text

AllowedStatuses = Sequence[para.Status] | Literal["all"]
DEFAULT_USE: tuple[para.Status, ...] = ("interior", "shallow")
MIN_BUDGETS = 3  # two budgets determine a line exactly and leave no interval


def fit_isoflop(
    runs: pd.DataFrame | str | Path | RunsTable,
    *,
    axis: Axis = "params",
    use: AllowedStatuses = DEFAULT_USE,
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

    A profile whose curvature is less than 4 standard errors above zero is `shallow`: alone it does
    not place its minimum. It takes its curvature from all budgets, and the lines then weigh each
    budget by its variance (see `shallow_profiles`). Their t intervals include the error of the
    shared curvature, and are the intervals of the result.

    Without a shallow profile, intervals are the wider of two: a residual bootstrap (relative
    residuals of all profiles used, scaled by 1/sqrt(1 - leverage), stretched to t quantiles) and
    the regression's t interval. The result keeps both. A parabola is symmetric, so its vertex
    lies off the optimum of a skewed profile. One skew common to all profiles (see `skew`) gives the
    shift. The intervals of the laws and of N* and D*, in `profiles` and in `predict`, reach the
    shifted values. If neighbouring
    sizes share noise, the intervals of single optima are at least as wide as the optima scatter
    about the law.

    Args:
        runs: a table of runs, its file, a sweep's directory, or a `RunsTable`; see `read_table`.
        axis: axis of the parabola.
        use: statuses of profiles that enter the laws; default `interior` and `shallow`. `all` that
            have a minimum enter by their own parabolas, unweighted, as published studies do it.
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
    own = [para.fit_parabola(p) for p in profiles]
    parabolas, law = own, None
    if use != "all":
        parabolas, law = share_curvature(profiles, own, residual_sd(profiles, own))
    states: list[para.Status] = [
        para.classify_profile(p, q) for p, q in zip(profiles, parabolas, strict=True)
    ]
    used = np.array([s in chosen and s not in ("concave", "too_few") for s in states])
    if used.sum() < MIN_BUDGETS:
        raise FitError(_refusal(table, profiles, parabolas, states, int(used.sum()), axis))
    shown = _Profiles(profiles, own, parabolas, states, used, law)
    return _fit(table, axis, shown, chosen, bootstrap, confidence, seed)


@dataclass(frozen=True, eq=False)
class _Profiles:
    """All profiles, by ascending budget.

    Attributes:
        profiles: the profiles.
        own: the parabola of each alone; None where there is none.
        parabolas: the same, those of shallow profiles with the curvature of the law.
        states: status of each.
        used: mask of those that enter the laws.
        curvature_law: law of the curvature; None if no profile is shallow.
    """

    profiles: list[para.Profile]
    own: list[para.Parabola | None]
    parabolas: list[para.Parabola | None]
    states: list[para.Status]
    used: Bools
    curvature_law: CurvatureLaw | None

    def pairs(self, parabolas: list[para.Parabola | None]) -> Pairs:
        """Return the profiles used, with their parabolas of a list."""
        return [
            (p, q)
            for p, q, u in zip(self.profiles, parabolas, self.used, strict=True)
            if u and q is not None
        ]


def residual_sd(profiles: list[para.Profile], parabolas: list[para.Parabola | None]) -> float:
    """Return the standard deviation of one run's relative residual about its own parabola; 0
    without degrees of freedom.
    """
    sums = [
        para.residual_sum(p, q)
        for p, q in zip(profiles, parabolas, strict=True)
        if q is not None and p.sizes >= para.MIN_PROFILE_SIZES and float(q.fitted.min()) > 0.0
    ]
    dof = sum(d for _, d in sums)
    return float(np.sqrt(sum(s for s, _ in sums) / dof)) if dof else 0.0


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
    shown: _Profiles,
    chosen: tuple[para.Status, ...],
    bootstrap: int,
    confidence: float,
    seed: int,
) -> IsoflopFit:
    pairs = shown.pairs(shown.parabolas)
    _refuse_negative_loss(table, pairs)
    noise = _pooled_noise(table, shown.pairs(shown.own))
    ln_flops = np.log([p.flops for p, _ in pairs])
    if not np.ptp(ln_flops) > 0.0:
        raise FitError(
            f"{table.source}: the usable budgets have equal FLOPs, so they determine no law"
        )
    vertices, others, lowest = find_optima(pairs, [q.coefficients[None] for _, q in pairs])
    names = (axis, "tokens" if axis == "params" else "params")
    points = dict(zip(names, (vertices[0], others[0]), strict=True)) | {"loss": np.log(lowest[0])}
    weighted = None
    if shown.curvature_law is not None and any(q.is_shared for _, q in pairs):
        sd = residual_sd(shown.profiles, shown.own)
        weighted = weigh_optima(pairs, shown.curvature_law, sd, ln_flops)
    slopes = {axis: np.ones(len(pairs)), names[1]: _other_slopes(pairs, vertices[0])}

    def draw_line(name: str, keep: Bools | None = None) -> Line:
        keep = np.ones(len(pairs), dtype=bool) if keep is None else keep
        if weighted is None or name == "loss":
            return Line.through(ln_flops[keep], points[name][keep])
        return weighted_line(ln_flops, points[name], weighted, slopes[name], keep)

    lines = {name: draw_line(name) for name in ("params", "tokens", "loss")}
    draws = _draws(shown, pairs, names, ln_flops, weighted, bootstrap, seed)
    alone = [pair for pair in pairs if not pair[1].is_shared]
    skew, budget_residuals = None, None
    if len(alone) > 1 and np.ptp(alone_flops := np.log([p.flops for p, _ in alone])) > 0.0:
        skew, budget_residuals = measure_skew(alone, axis, alone_flops)
    has_shared_noise = (
        budget_residuals is not None and budget_residuals.clustered_covariance is not None
    )
    law = lines[axis] if has_shared_noise else None
    frame = tabulate_profiles(
        shown.profiles,
        shown.parabolas,
        shown.states,
        shown.used,
        axis,
        noise,
        draws["optimum"],
        skew,
        law,
        confidence,
    )
    rollout = hold_out_lines(ln_flops, points, lines, draw_line)
    return IsoflopFit(
        axis=axis,
        runs=table,
        profiles=frame,
        lines=lines,
        covariance=_covariance(lines, ln_flops, points, weighted),
        weighted=weighted is not None,
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
    ln_flops: Floats,
    points: dict[str, Floats],
    lines: dict[str, Line],
    draw_line: Callable[[str, Bools], Line],
) -> HoldOut | None:
    """Return hold-out tests of the laws over the budgets used: errors of the line through the
    smaller budgets at the optima of the larger ones.

    Args:
        ln_flops: ln C of the budgets, (K,).
        points: ln of their optima by name, (K,).
        lines: the lines through all.
        draw_line: draws the line of a name through the budgets of a mask.
    """
    budgets = np.exp(ln_flops)

    def hide(keep: np.ndarray) -> Predict:
        fitted = {name: draw_line(name, keep) for name in ("params", "tokens")}

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


def _covariance(
    lines: dict[str, Line], x: Floats, points: dict[str, Floats], weighted: WeightedOptima | None
) -> float:
    """Return the covariance of the residuals of the N* and D* lines: about minus their variance,
    since D is about C/6N.
    """
    size_residuals, token_residuals = (
        points[k] - lines[k].middle - lines[k].slope * (x - lines[k].x_mean)
        for k in ("params", "tokens")
    )
    weights = 1.0 if weighted is None else weighted.weights
    return float((weights * size_residuals) @ token_residuals) / lines["params"].dof


def _other_slopes(pairs: Pairs, optima: Floats) -> Floats:
    """Return the derivative of ln of the other axis by ln of the optimum, (K,)."""
    return np.array(
        [float(para.read_other_axis(p, x)[1]) for (p, _), x in zip(pairs, optima, strict=True)]
    )


def _pooled_noise(table: RunsTable, pairs: list[tuple[para.Profile, para.Parabola]]) -> Noise:
    sums = [para.residual_sum(p, q) for p, q in pairs]
    return estimate_noise(table, sum(s for s, _ in sums), sum(d for _, d in sums))


def _draws(
    shown: _Profiles,
    pairs: Pairs,
    names: tuple[str, str],
    ln_flops: Floats,
    weighted: WeightedOptima | None,
    bootstrap: int,
    seed: int,
) -> dict[str, Floats]:
    """Return draws of the exponents, of ln k and of every profile's ln(optimum), NaN without a
    parabola.
    """
    profiles, parabolas = shown.profiles, shown.parabolas
    pool, rng = para.residual_pool(shown.pairs(shown.own)), np.random.default_rng(seed)
    drawn: list[Floats | None] = []
    for profile, parabola in zip(profiles, parabolas, strict=True):
        if parabola is None or not bootstrap:
            drawn.append(None)
        else:
            picks = rng.integers(0, len(pool), size=(bootstrap, len(profile.x)))
            drawn.append(para.resample(profile, parabola, pool, picks))
    if shown.curvature_law is not None and bootstrap:
        normals = rng.standard_normal((bootstrap, 2))
        for k, (profile, parabola) in enumerate(zip(profiles, parabolas, strict=True)):
            coefficients = drawn[k]
            if parabola is not None and parabola.is_shared and coefficients is not None:
                curvature = shown.curvature_law.draws(float(np.log(profile.flops)), normals)
                drawn[k] = parabola.with_curvature(coefficients, curvature)
    optimum = np.full((bootstrap, len(profiles)), np.nan)
    for k, (parabola, coefficients) in enumerate(zip(parabolas, drawn, strict=True)):
        if parabola is not None and coefficients is not None:
            optimum[:, k] = parabola.vertices(coefficients)
    draws = {"optimum": optimum}
    vertices = optimum[:, shown.used]
    others = np.stack(
        [para.read_other_axis(p, vertices[:, k])[0] for k, (p, _) in enumerate(pairs)], axis=-1
    )
    for name, values in zip(names, (vertices, others), strict=True):
        letter = "a" if name == "params" else "b"
        weights = None if weighted is None else weighted.weights
        draws[letter], draws[f"ln_k_{name}"] = lines_through(ln_flops, values, weights)
    return draws
