"""Findings that all methods share: facts that a reader must know before trusting a fit.

docs/findings.md has an entry for each code.
"""

from __future__ import annotations

import numpy as np

from isoflop.fitting.estimators.clustered_errors import GroupedResiduals
from isoflop.fitting.estimators.holdout import HoldOut
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.results.base import MIN_LAW_BUDGETS
from isoflop.fitting.tables.fit_table import RunsTable
from isoflop.fitting.terms import Finding, finding
from isoflop.frames import records
from isoflop.text import flops_text, percent_text

MAX_EPOCHS = 4.0
FEW_BUDGETS = 5
FINDING_ALPHA = 0.01
"""p-value below which a test of noise or form is reported."""
_WIDENED_T_INTERVALS = "The t intervals allow for it; percentile intervals do not."


def few_budgets_findings(count: int) -> list[Finding]:
    """Return a finding if fewer than 5 budgets enter the law."""
    if count >= FEW_BUDGETS:
        return []
    if count < MIN_LAW_BUDGETS:
        text = (
            "With 1 budget no power law can be fitted from the data"
            if count == 1
            else f"With {count} budgets the power law fits exactly and cannot be checked"
        )
        text += f"; use at least {MIN_LAW_BUDGETS}."
    else:
        dof = count - 2
        text = (
            f"With {count} budgets the power laws have {dof} degree{'s' if dof != 1 else ''} of "
            "freedom, so the intervals are wide."
        )
    return [finding("few_budgets", text)]


def noise_findings(noise: Noise, misfit: str) -> list[Finding]:
    """Return findings on the noise between seeds, and on a fit that misses by more (F test).

    Args:
        noise: noise of the runs.
        misfit: clause that names a wrong form of the fit, for the message.
    """
    equal_seeds = _equal_seeds_findings(noise)
    if not noise.replicate_dof:
        text = "No configuration was run with two seeds: noise can't be separated from misfit."
        return equal_seeds or [finding("no_replicates", text)]
    text = (
        f"Seeds of one configuration differ by {percent_text(noise.replicate_sd)} of the loss "
        f"(standard deviation, {noise.replicate_dof} degrees of freedom); residual sd "
        f"{percent_text(noise.residual_sd)}."
    )
    findings = [finding("replicate_noise", text), *equal_seeds]
    if noise.lack_of_fit < FINDING_ALPHA:
        text = (
            f"Residuals exceed the noise between seeds (F test, p = {noise.lack_of_fit:.2g}): "
            f"{misfit}, or the recipe suits some sizes worse than others."
        )
        findings.insert(0, finding("lack_of_fit", text))
    return findings


def _equal_seeds_findings(noise: Noise) -> list[Finding]:
    if not noise.copies:
        return []
    text = (
        f"In {noise.copies} configuration{'s' if noise.copies > 1 else ''} seeds have the same "
        "loss (one run listed twice, or rounded losses?). Equal losses carry no "
        "information on the noise."
    )
    return [finding("equal_seeds", text)]


def shared_noise_findings(
    budget_residuals: GroupedResiduals | None,
    size_residuals: GroupedResiduals | None = None,
    widened: str = _WIDENED_T_INTERVALS,
) -> list[Finding]:
    """Return findings on correlated residuals: of neighbouring sizes, or of one size over budgets.

    Args:
        budget_residuals: residuals within budgets; None without budgets.
        size_residuals: residuals of each size over its budgets; None if they are not tested.
        widened: sentence on the intervals that allow for the correlation.
    """
    findings = []
    if budget_residuals is not None and budget_residuals.p < FINDING_ALPHA:
        text = (
            "Residuals of neighbouring sizes within a budget are correlated "
            f"(p = {budget_residuals.p:.2g}): either the recipe suits some sizes worse than "
            f"others, or the form of the fit is wrong. {_interval_text(budget_residuals, widened)}"
        )
        findings.append(finding("shared_noise", text))
    if size_residuals is not None and size_residuals.p < FINDING_ALPHA:
        text = (
            "Sizes deviate from the fit in one direction at all their budgets "
            f"(p = {size_residuals.p:.2g}): either their learning rate, depth or number of heads "
            "suits them badly, or the form of the fit is wrong. Tune these sizes, or leave them "
            f"out, and fit again. {_interval_text(size_residuals, widened)}"
        )
        findings.append(finding("shared_noise", text))
    return findings


def _interval_text(residuals: GroupedResiduals, widened: str) -> str:
    if residuals.clustered_covariance is None:
        return "The intervals do not allow for it and are too narrow."
    return widened


def rollout_findings(rollout: HoldOut | None, level: str = "budget") -> list[Finding]:
    """Return a finding on the errors at the largest budgets, hidden from the fit.

    Args:
        rollout: hold-out tests; None if there is none.
        level: `budget`, or `band` for runs without budgets, in bands of compute.
    """
    if rollout is None:
        text = (
            "No budget could be hidden and predicted: there are too few budgets, or too few runs "
            "without the hidden one. The error of the law beyond its data is not known."
        )
        return [finding("no_rollout", text)]
    tests = []
    for row in records(rollout.table()):
        if row["hidden"] == 1 or row["budget"] == rollout.reach[1]:
            errors = [
                f"{label} {percent_text(row[name], signed=True)} "
                f"(noise {percent_text(row[f'{name}_se'])})"
                for name, label in (("params", "N*"), ("loss", "loss"))
                if name in row and row[name] == row[name]
            ]
            count = "" if row["hidden"] == 1 else f"{row['hidden']:.0f} "
            hidden = f"{count}largest {level}{'s' if count else ''}"
            budget = flops_text(row["budget"])
            target = budget if level == "budget" else f"the {level} up to {budget}"
            tests.append(
                f"without the {hidden}, {target} is predicted with an error of "
                f"{' and '.join(errors)}"
            )
    return [finding("rollout", f"Hold-out test: {'; '.join(tests)}.")]


def table_findings(table: RunsTable) -> list[Finding]:
    """Return findings on the runs themselves."""
    return [*_simulated_findings(table), *_epochs_findings(table), *table.findings]


def dropped_rows_findings(table: RunsTable) -> list[Finding]:
    """Return findings on the rows that were left out."""
    return [
        finding("rows_dropped", f"Left out: {name}: {reason}.") for name, reason in table.dropped
    ]


def _simulated_findings(table: RunsTable) -> list[Finding]:
    if "simulated" not in table.frame:
        return []
    count = int(np.count_nonzero(table.array("simulated")))
    if not count:
        return []
    losses = "All losses are"
    if count < len(table.frame):
        losses = f"{count} of {len(table.frame)} losses are"
    text = (
        f"{losses} simulated (train.trainer): drawn from a law, not trained. Nothing here is a "
        "result."
    )
    return [finding("simulated", text)]


def _epochs_findings(table: RunsTable) -> list[Finding]:
    if "epochs" not in table.frame:
        return []
    epochs = table.array("epochs")
    count = int(np.count_nonzero(epochs > MAX_EPOCHS))
    if not count:
        return []
    runs = "1 run passes over its data" if count == 1 else f"{count} runs pass over their data"
    text = (
        f"{runs} more than {MAX_EPOCHS:g} times (at most {np.nanmax(epochs):.1f} times): repeated "
        "data teach less than new data."
    )
    return [finding("epochs", text)]
