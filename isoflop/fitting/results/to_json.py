"""What fit.json says of one fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from isoflop.fitting.results.base import Fit, ProfileFit
from isoflop.fitting.results.fitted_laws import ENDS
from isoflop.frames import column, mask, records
from isoflop.json_values import plain

if TYPE_CHECKING:
    from isoflop.fitting.estimators.holdout import RollOut
    from isoflop.fitting.methods.envelope import EnvelopeFit
    from isoflop.fitting.results.isoflop_fit import IsoflopFit
    from isoflop.fitting.results.joint_fit import JointFit
    from isoflop.fitting.results.parametric_fit import ParametricFit


def fit_entry(fit: Fit) -> dict[str, Any]:
    """One entry of `fits`: interface names first, then what a reader needs to check them."""
    table = fit.intervals()
    entry = {
        "method": fit.method,
        "n": fit.n,
        "loss": fit.loss_column,
        "hash": fit.origin.hash,
        "confidence": fit.confidence,
        "exponents": {name: _interval(table.loc[name].to_dict()) for name in ("a", "b")},
        "ratio": _interval(table.loc["ratio"].to_dict()),
        "no_law": fit.no_law or None,
        "noise": vars(fit.noise),
        **_OWN[fit.method](fit),
        "rollout": [] if fit.rollout is None else records(fit.rollout.table()),
        "law": fit.core.to_dict()
        | {"budgets": list(fit.reach), "rollout": rollout_entry(fit.rollout)}
        | _skew(fit),
        "diagnostics": [dict(d) for d in fit.diagnostics],
    }
    return plain(entry)


def _skew(fit: Fit) -> dict[str, Any]:
    return {} if fit.skew is None else {"skew": fit.skew.to_dict()}


def rollout_entry(rollout: RollOut | None) -> dict[str, Any] | None:
    """All roll-outs, also those that are not shown: every one may widen a prediction."""
    if rollout is None:
        return None
    misses = [
        {
            "hidden": miss.hidden,
            "budget": miss.budget,
            "distance": miss.distance,
            "errors": {name: error.item() for name, error in miss.errors.items()},
            "ses": {name: se.item() for name, se in miss.ses.items()},
        }
        for miss in rollout.misses
    ]
    return {"reach": list(rollout.reach), "misses": misses}


def _interval(row: Mapping[Any, Any]) -> dict[str, Any]:
    """value, low, high; and, where it is the wider of two, the two."""
    chosen = {key: row[key] for key in ENDS}
    both = {
        kind: [row[f"{kind}_low"], row[f"{kind}_high"]]
        for kind in ("bootstrap", "line")
        if f"{kind}_low" in row
    }
    return chosen | both


def _profile_entry(fit: ProfileFit) -> dict[str, Any]:
    used = column(fit.profiles, "n_runs")[mask(fit.profiles, "used")]
    return {
        "axis": fit.axis,
        "coefficients": cast("IsoflopFit | JointFit", fit).coefficients.to_dict("index"),
        "profiles": records(fit.profiles),
        "runs_used": int(used.sum()),
    }


def _joint_entry(fit: JointFit) -> dict[str, Any]:
    table = fit.intervals()
    return {
        **_profile_entry(fit),
        "arms": {name: _interval(table.loc[name].to_dict()) for name in ("left", "right")},
        "theta": fit.estimate.theta[0].tolist(),
        "covariance": fit.estimate.spread[0].tolist(),
        "objective": float(fit.estimate.objective[0]),
        "huber_delta": float(fit.estimate.delta[0]),
    }


def _parametric_entry(fit: ParametricFit) -> dict[str, Any]:
    table, covariance = fit.intervals(), fit.covariance
    return {
        "params": fit.params.to_dict(),
        "intervals": {name: _interval(table.loc[name].to_dict()) for name in fit.params.index},
        "objective": fit.objective,
        "covariance": {"of": list(covariance.index), "matrix": covariance.to_numpy().tolist()},
        "huber_delta": float(fit.estimate.delta[0]),
        "residual": fit.sample.points.scale,
        "convergence": {
            "slope": float(fit.estimate.slope[0]),
            "starts_agreeing": fit.estimate.agreeing,
            "condition": fit.condition,
        },
        "flops_range": [float(fit.sample.flops.min()), float(fit.sample.flops.max())],
        "dof": fit.sample.dof,
        "runs_used": len(fit.runs),
    }


def _envelope_entry(fit: EnvelopeFit) -> dict[str, Any]:
    return {"frontier": records(fit.frontier), "runs_used": len(fit.frontier)}


_OWN: dict[str, Any] = {
    "isoflop": _profile_entry,
    "joint": _joint_entry,
    "parametric": _parametric_entry,
    "envelope": _envelope_entry,
}
