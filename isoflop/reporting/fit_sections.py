"""Sections of the report about fits: profiles, laws, methods, predictions and findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.isoflop_fit import IsoflopFit
from isoflop.fitting.results.profile_fit import ProfileFit
from isoflop.fitting.terms import METHOD_TITLES
from isoflop.frames import records
from isoflop.reporting import markup as page
from isoflop.text import count_text, flops_text, percent_text

STATUS_TEXTS = {
    "interior": "the minimum lies inside the sizes run, with two or more sizes on either side",
    "shallow": "hardly curved: its curvature is that of all budgets, and it counts by its variance",
    "one_sided": "inside, but the best run is at an end, or only one size on one side",
    "edge": "the minimum lies outside the sizes run: an extrapolation",
    "concave": "the parabola bends the wrong way: there is no minimum",
    "too_few": "fewer than four sizes: a minimum can't be distinguished from noise",
}
MAX_INTERVAL_FACTOR = 1000.0
"""An upper end beyond this many times the value is not printed."""


def method_name(fit: Fit) -> str:
    """Return the title of the method, with its axis unless that is the parameters."""
    title = METHOD_TITLES[fit.method]
    return f"{title}, in ln D" if getattr(fit, "axis", "params") == "tokens" else title


def profile_section(fit: ProfileFit, art: Mapping[str, str]) -> str:
    """Return the section of the profiles: figure, table and the meaning of their statuses."""
    caption = (
        "Each colour is one budget: models of many sizes, all trained with the same compute. A "
        "model that is too small can't use the data; one that is too large gets too little of it. "
        f"The diamond is the best size, its bar the {percent_text(fit.confidence)} interval. On "
        "the thick section of a curve a size costs less than 0.1% of the least loss. Hollow points "
        "belong to profiles excluded from the laws."
    )
    alt = "IsoFLOP profiles: loss against size for each budget"
    statuses = page.notes(
        page.Markup(f"<b>{status.replace('_', ' ')}</b>: {escape(STATUS_TEXTS[status])}.")
        for status in dict.fromkeys(fit.profiles["status"])
    )
    drawing = page.figure(art["profiles"], caption, alt)
    return page.section("IsoFLOP profiles", drawing, _profile_table(fit), statuses)


def _profile_table(fit: ProfileFit) -> str:
    letter = "N*" if fit.axis == "params" else "D*"
    headings = ["Budget", "N*", "D*", f"{letter} from", "to"]
    headings += ["Loss", "Depth", "Depth/noise", "Sizes", "Profile"]
    rows = []
    for row in records(fit.profiles):
        counts = [count_text(row[c]) for c in ("params_opt", "tokens_opt", "low", "high")]
        losses = [_decimals(row[c], 4) for c in ("loss_opt", "depth")]
        losses.append(_decimals(row["depth_to_noise"], 1))
        label = f"{row['status'].replace('_', ' ')}{'' if row['used'] else ', not used'}"
        status = page.badge(label, not row["used"])
        rows.append([flops_text(row["budget"]), *counts, *losses, str(row["n_points"]), status])
    return page.table(headings, rows, text=(9,))


def first_law(fits: Sequence[Fit]) -> Fit | None:
    """Return the first valid law among fits of the same loss and N as the first fit."""
    return next((fit for fit in fits if _is_comparable(fit, fits[0]) and not fit.no_law), None)


def law_section(
    fit: Fit,
    art: Mapping[str, str],
    more_fits: Sequence[Fit],
    refused: Mapping[str, str],
    kind: str = "all",
) -> str:
    """Return the section of the laws: N*(C), D*(C) and the exponents of every method.

    Args:
        fit: the fit that the page is about.
        art: SVG elements by figure name.
        more_fits: fits by other methods, of other losses or on another axis.
        refused: reasons of refused methods, by method.
        kind: token kind of the column `loss`.
    """
    captions = {
        "law_params": "The best model size of each budget and the power law through them; dashed "
        "beyond the data.",
        "law_tokens": "The same for training data. The inner band is right if the law continues "
        "unchanged; the outer one allows for its error when its largest budgets were hidden.",
    }
    fits = [fit, *more_fits]
    comparable = [other for other in fits if _is_comparable(other, fit)]
    profiles = [other for other in fits if isinstance(other, IsoflopFit)]
    refusals = (
        f"{METHOD_TITLES.get(method, method)}: not fitted: {reason}"
        for method, reason in refused.items()
    )
    return page.section(
        "The laws",
        _pair(art, captions),
        _method_table(fits, kind),
        page.paragraph(_agreement(comparable)) if len(comparable) > 1 else "",
        page.notes(refusals),
        _interval_table(profiles, kind) if profiles else "",
    )


def surface_section(art: Mapping[str, str]) -> str:
    """Return the section of the fitted surface, or nothing without its figures."""
    captions = {
        "surface": "The law of all runs at once: lines of equal loss over model size and data, the "
        "runs, and the best of both for each compute.",
        "law_loss": "The least loss at each compute by the law, and above it the runs.",
    }
    return page.section("The loss as a surface", _pair(art, captions))


def prediction_section(fit: Fit, more_fits: Sequence[Fit]) -> str:
    """Return the section of predictions at the largest budget and at ten times it, by method.

    Each of N*, D* and loss has its statistical interval and the one with the law's own error.
    """
    largest = float(fit.fitted_flops.max())
    comparable = [other for other in (fit, *more_fits) if _is_comparable(other, fit)]
    rows = [
        _prediction_row(other, flops, str(quantity), row.to_dict())
        for flops in (largest, 10.0 * largest)
        for other in comparable
        for quantity, row in other.predict(flops).iterrows()
    ]
    level = percent_text(fit.confidence)
    text = (
        f"At the largest budget and at ten times it. The statistical {level} interval is right if "
        "the law is true. The one with model error allows for the law's own error beyond the data, "
        "as far as hidden budgets show it."
    )
    headings = ["Compute", "Method", "", "Value", f"{level} statistical"]
    headings.append(f"{level} with model error")
    return page.section(
        "Predictions", page.paragraph(text), page.table(headings, rows, text=(1, 2))
    )


def findings_section(fit: Fit, more_fits: Sequence[Fit], art: Mapping[str, str]) -> str:
    """Return the section of findings by method, with hold-out and residuals.

    A finding shared by several methods appears once.
    """
    blocks: list[str] = []
    messages: set[str] = set()
    for other in [other for other in (fit, *more_fits) if _is_comparable(other, fit)]:
        new = [d for d in other.diagnostics if d["message"] not in messages]
        messages |= {d["message"] for d in new}
        items = [
            page.Markup(f"{page.badge(d['code'].replace('_', ' '), False)} {escape(d['message'])}")
            for d in new
        ]
        blocks += [page.subheading(method_name(other)), page.notes(items)] if items else []
    captions = {
        "rollout": "The largest budgets hidden and predicted from the smaller ones: the error "
        "against the distance beyond the data.",
        "residuals": "Residuals of the runs about the surface. Where the median leaves zero the "
        "fitted form is incomplete.",
    }
    return page.section("Findings and residuals", *blocks, _pair(art, captions))


def reading_section(fit: Fit) -> str:
    """Return the section that explains the terms of the page."""
    axis = "number of tokens" if getattr(fit, "axis", "params") == "tokens" else "model size"
    items = [
        f"Loss is in nats per token. N counts {_n_text(fit.n)}. C is training FLOPs, forward and "
        "backward.",
        f"IsoFLOP profiles: per budget a parabola in the logarithm of the {axis} is fitted to the "
        "runs; its lowest point is the optimum. A straight line through the logarithms of the "
        "optima is the power law. Two intervals are computed: a bootstrap of the runs' residuals "
        "about the parabolas, and the regression's t interval over budgets. The wider one is "
        "stated.",
        "Jointly: all profiles have one asymmetric shape, each budget its own least loss; t "
        "intervals.",
        "L = E + A / N^alpha + B / D^beta: all runs are fitted at once; the optimum is at "
        "the cost of a token (C / D) of the runs; t intervals.",
        "a and b need not add up to 1: with embeddings counted, compute is not 6ND.",
        "Depth is the rise of the lower of the two arms above the minimum. Below five times the "
        "noise of a run, the position of the minimum is hardly known.",
    ]
    return page.section("How to read this", page.notes(items))


def _is_comparable(fit: Fit, other: Fit) -> bool:
    """Return whether two fits have the same loss and the same count of N."""
    return (fit.runs.columns["loss"], fit.n) == (other.runs.columns["loss"], other.n)


def _pair(art: Mapping[str, str], captions: Mapping[str, str]) -> str:
    figures = [page.figure(art[name], text, text) for name, text in captions.items() if name in art]
    return f'<div class="pair">{"".join(figures)}</div>' if figures else ""


def _loss_label(fit: Fit, kind: str) -> str:
    """Return the column of the loss, with the token kind unless that is `all` or in the name."""
    name = fit.runs.columns["loss"]
    return f"{name} ({kind})" if name == "loss" and kind != "all" else name


def _method_table(fits: Sequence[Fit], kind: str) -> str:
    """Return a table with a row per fit: exponents with their intervals, and residuals."""
    rows = []
    for fit in fits:
        table = fit.intervals()
        exponents = [
            span(table.loc[name].to_dict(), digits)
            for name, digits in (("a", 3), ("b", 3), ("ratio", 2))
        ]
        sd = "-" if math.isnan(fit.noise.residual_sd) else percent_text(fit.noise.residual_sd)
        labels = [method_name(fit), _loss_label(fit, kind), fit.n.replace("_", " ")]
        rows.append([*labels, *exponents, sd, str(len(fit.runs))])
    headings = ["Method", "Loss", "N counts", "a (N* ~ C^a)", "b (D* ~ C^b)"]
    headings += ["b / a", "Residual sd", "Runs"]
    return page.table(headings, rows, text=(0, 1, 2))


def _interval_table(fits: Sequence[IsoflopFit], kind: str) -> str:
    """Return a table with a row per fit and exponent, with both intervals."""
    rows = []
    for fit in fits:
        table = fit.intervals()
        for name in ("a", "b", "ratio"):
            row = table.loc[name].to_dict()
            spans = [
                f"{row[f'{k}low']:.4f} to {row[f'{k}high']:.4f}"
                for k in ("", "bootstrap_", "line_")
            ]
            labels = [
                method_name(fit),
                _loss_label(fit, kind),
                "b / a" if name == "ratio" else name,
            ]
            rows.append([*labels, f"{row['value']:.4f}", *spans])
    headings = ["Method", "Loss", "Exponent", "Value"]
    headings += ["Interval (the wider)", "Bootstrap", "Line over budgets"]
    return page.table(headings, rows, text=(0, 1, 2))


def _agreement(fits: Sequence[Fit]) -> str:
    """Return a sentence on the overlap of all intervals of a."""
    rows = [fit.intervals().loc["a"].to_dict() for fit in fits]
    low, high = max(row["low"] for row in rows), min(row["high"] for row in rows)
    if low <= high:
        return f"The methods agree on a: {low:.3f} to {high:.3f} lies in every interval."
    return (
        "The methods do not agree: no value of a lies in every interval. The findings below name "
        "the laws that contradict the runs."
    )


def _prediction_row(fit: Fit, flops: float, quantity: str, row: Mapping[str, float]) -> list[str]:
    symbols = {"params": "N*", "tokens": "D*", "loss": "loss"}

    def text(value: float) -> str:
        return f"{value:.4f}" if quantity == "loss" else count_text(value)

    spans = [f"{text(row[f'{k}low'])} to {text(row[f'{k}high'])}" for k in ("statistical_", "")]
    if fit.rollout is None:
        spans[1] = "not known"
    elif row["high"] > MAX_INTERVAL_FACTOR * row["value"]:
        spans[1] = f"uncertain by more than a factor of {MAX_INTERVAL_FACTOR:g}"
    labels = [flops_text(flops, 3), method_name(fit), symbols[quantity]]
    return [*labels, text(row["value"]), *spans]


def span(row: Mapping[str, float], digits: int = 3) -> str:
    """Return `value [low, high]`."""
    if not math.isfinite(row["high"] - row["low"]):
        return f"{row['value']:.{digits}f} [unbounded]"
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _n_text(n: str) -> str:
    texts = {
        "one_embedding": "one embedding table (of two) and the body",
        "non_embedding": "the body, no embeddings",
    }
    return texts.get(n, "all parameters, embedding and head included")


def _decimals(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
