"""Notes on the limits of a prediction, a line each."""

from __future__ import annotations

import math
from collections.abc import Mapping

from isoflop.fitting.estimators.token_cost import TokenCost
from isoflop.fitting.results.fitted_laws import Laws
from isoflop.text import count_text, flops_text

FAR_DECADES = 1.5
"""Distance of a budget from those fitted, in decades, beyond which a prediction has a note."""


def undetermined_note(name: str, flops: float) -> str:
    """Return the note on a law that has no optimum at the budget."""
    return (
        f"{name}: left out: its N* or D* at {flops_text(flops)} FLOPs is not a finite number above "
        "0; its runs do not determine it"
    )


def distance_notes(flops: float, laws: Mapping[str, Laws]) -> list[str]:
    """Return a note if the budget lies far outside the range of a law's budgets; it names the law
    with the largest distance, in decades.
    """
    reaches = {name: law.reach for name, law in laws.items() if law.reach is not None}
    distances = [
        (math.log10(flops / top), "beyond the largest", top, name)
        for name, (_, top) in reaches.items()
    ]
    distances += [
        (math.log10(low / flops), "below the smallest", low, name)
        for name, (low, _) in reaches.items()
    ]
    decades, side, end, name = max(distances, default=(0.0, "", 0.0, ""))
    if decades < FAR_DECADES:
        return []
    fitted = "fitted" if len(set(reaches.values())) == 1 else f"that {name} was fitted to"
    run = "there" if side.startswith("below") else "in between"
    return [
        f"{flops_text(flops)} FLOPs are {decades:.1f} decades {side} budget {fitted} "
        f"({flops_text(end)}): a run {run} would give more certainty than any interval"
    ]


def cost_note(name: str, cost: TokenCost) -> str:
    """Return the note on an optimum at a size where the runs do not show the cost of a token."""
    low, high = map(count_text, cost.size_range)
    return (
        f"{name}: N* lies beyond the sizes that were run ({low} to {high}), where C / (6ND) is "
        "held at its value at the edge; give --recipe for the FLOPs of real models"
    )


def unknown_error_note(name: str, law: Laws) -> str:
    """Return the note on a law without its own error at the budget, with the reason."""
    is_small = any(finding["code"] == "no_rollout" for finding in law.diagnostics)
    reason = "it has no hold-out test"
    if is_small:
        reason = "too few budgets or runs for a hold-out test"
    return f"{name}: its own error beyond the runs is not known: {reason}"
