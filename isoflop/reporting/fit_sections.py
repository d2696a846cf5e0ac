"""Parts of the report about fits: profiles, laws, methods side by side, where they lead, how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from isoflop.fitting.results.base import Fit, ProfileFit
from isoflop.fitting.results.isoflop_fit import IsoflopFit
from isoflop.fitting.terms import TITLES
from isoflop.frames import records
from isoflop.reporting import markup as page
from isoflop.text import count_text, flops_text

STATUS_WORDS = {
    "interior": "the minimum lies inside the sizes that were run, with two sizes or more on either side",
    "one_sided": "inside, but the best run is at an end, or a single size holds one side",
    "edge": "the minimum lies outside the sizes that were run: an extrapolation",
    "concave": "the parabola bends the wrong way: there is no minimum",
    "too_few": "fewer than four sizes: nothing is left to tell a minimum from noise",
}


FARTHEST = 1000.0  # an interval that reaches further says nothing


def method_name(fit: Fit) -> str:
    """The method in words, with the axis where it is the less usual one."""
    title = TITLES[fit.method]
    return f"{title}, in ln D" if getattr(fit, "axis", "params") == "tokens" else title


def profile_section(fit: ProfileFit, art: Mapping[str, str]) -> str:
    """The profiles as a figure and a table, and what their statuses mean."""
    caption = (
        "Each colour is one budget: models of many sizes, all trained with the same compute. Too small a model can't "
        "use the data, too large a one sees too little of it. The diamond is the best size, its bar the "
        f"{fit.confidence:.0%} interval; where the curve is thick, a size costs less than 0.1% of the least loss. "
        "Hollow points belong to profiles that the laws leave out."
    )
    seen = list(dict.fromkeys(fit.profiles["status"]))
    words = page.notes(
        page.Markup(f"<b>{s.replace('_', ' ')}</b>: {escape(STATUS_WORDS[s])}.") for s in seen
    )
    drawing = page.figure(
        art["profiles"], caption, "IsoFLOP profiles: loss against size for each budget"
    )
    return page.section("IsoFLOP profiles", drawing, _profile_table(fit), words)


def _profile_table(fit: ProfileFit) -> str:
    letter = "N*" if fit.axis == "params" else "D*"
    headings = (
        "Budget",
        "N*",
        "D*",
        f"{letter} from",
        "to",
        "Loss",
        "Depth",
        "Depth/noise",
        "Sizes",
        "Profile",
    )
    rows = []
    for row in records(fit.profiles):
        counts = [count_text(row[c]) for c in ("params_opt", "tokens_opt", "low", "high")]
        fixed = [
            _fixed(row["loss_opt"], 4),
            _fixed(row["depth"], 4),
            _fixed(row["depth_to_noise"], 1),
        ]
        status = page.badge(
            f"{row['status'].replace('_', ' ')}{'' if row['used'] else ', not used'}",
            not row["used"],
        )
        rows.append([flops_text(row["budget"]), *counts, *fixed, str(row["n_points"]), status])
    return page.table(headings, rows, text=(9,))


def first_that_tells(fits: Sequence[Fit]) -> Fit | None:
    """The first fit, of those of the first one's loss and N, whose exponents may be a result."""
    return next((fit for fit in fits if _same_question(fit, fits[0]) and not fit.no_law), None)


def law_section(
    fit: Fit,
    art: Mapping[str, str],
    more_fits: Sequence[Fit],
    refused: Mapping[str, str],
    kind: str = "all",
) -> str:
    """N*(C) and D*(C), and the exponents by every method, side by side; the column `loss` is of a `kind` of token."""
    captions = {
        "law_params": "The best model size of each budget and the power law through them; dashed beyond the data.",
        "law_tokens": "The same for training data. The inner band is right if the law goes on as it is; the outer one "
        "allows for what it missed when its largest budgets were hidden.",
    }
    fits = [fit, *more_fits]
    alike = [f for f in fits if _same_question(f, fit)]
    parts = [_pair(art, captions), _method_table(fits, kind)]
    parts.append(page.paragraph(_agreement(alike)) if len(alike) > 1 else "")
    parts.append(
        page.notes(
            f"{TITLES.get(method, method)}: not fitted: {why}" for method, why in refused.items()
        )
    )
    profiles = [f for f in fits if isinstance(f, IsoflopFit)]
    parts.append(_interval_table(profiles, kind) if profiles else "")
    return page.section("The laws", *parts)


def surface_section(art: Mapping[str, str]) -> str:
    """The fitted surface, where there is one."""
    captions = {
        "surface": "The law of all runs at once: lines of equal loss over model size and data, the runs, and the best "
        "of both for each compute.",
        "law_loss": "The loss that the law says is the least for a compute, above it the runs.",
    }
    return page.section("The loss as a surface", _pair(art, captions))


def prediction_section(fit: Fit, more_fits: Sequence[Fit]) -> str:
    """N*, D* and loss at the largest budget and at ten times it, by each method, with both intervals."""
    largest = float(fit.fitted_flops.max())
    rows = []
    for flops in (largest, 10.0 * largest):
        for one in [f for f in (fit, *more_fits) if _same_question(f, fit)]:
            for quantity, row in one.predict(flops).iterrows():
                rows.append(_prediction(one, flops, str(quantity), row.to_dict()))
    level = f"{fit.confidence:.0%}"
    text = (
        f"At the largest budget and at ten times it. The {level} interval called statistical is right where the law is "
        "true; the one with model error allows for the law's own error beyond the data, as far as hidden budgets show "
        "it."
    )
    headings = (
        "Compute",
        "Method",
        "",
        "Value",
        f"{level} statistical",
        f"{level} with model error",
    )
    return page.section(
        "Where the laws lead", page.paragraph(text), page.table(headings, rows, text=(1, 2))
    )


def doubt_section(fit: Fit, more_fits: Sequence[Fit], art: Mapping[str, str]) -> str:
    """The findings of each method, a finding that several share once; roll-out and residuals."""
    parts, said = [], set()
    for one in [f for f in (fit, *more_fits) if _same_question(f, fit)]:
        new = [d for d in one.diagnostics if d["message"] not in said]
        said |= {d["message"] for d in new}
        items = [
            page.Markup(f"{page.badge(d['code'].replace('_', ' '), False)} {escape(d['message'])}")
            for d in new
        ]
        parts += [page.subheading(method_name(one)), page.notes(items)] if items else []
    captions = {
        "rollout": "The largest budgets hidden and predicted from the smaller ones: how far off, by how far beyond.",
        "residuals": "How the runs lie about the surface. A median that leaves zero is a law that is not the whole "
        "shape.",
    }
    return page.section("How sure is this", *parts, _pair(art, captions))


def reading_section(fit: Fit) -> str:
    """What the words mean."""
    axis = "number of tokens" if getattr(fit, "axis", "params") == "tokens" else "model size"
    items = [
        f"Loss is in nats per token. N counts {_n_words(fit.n)}. C is training FLOPs, forward and backward.",
        f"IsoFLOP profiles: per budget a parabola in the logarithm of the {axis} is fitted to the runs; its lowest "
        "point is the optimum. A straight line through the logarithms of the optima is the power law. Two intervals "
        "are computed: a bootstrap of the runs' residuals about the parabolas, and the t interval of the line over "
        "budgets. The wider one is stated.",
        "Jointly: all profiles have one asymmetric shape, each budget its own least loss; t intervals.",
        "L = E + A / N^alpha + B / D^beta: all runs are fitted at once, with C = 6ND for the optimum; t intervals.",
        "a and b need not add up to 1: with embeddings counted, compute is not 6ND.",
        "Depth is how far the lower of the two arms rises above the minimum. Below five times the noise of a run, "
        "the minimum can hardly be placed.",
    ]
    return page.section("How to read this", page.notes(items))


def _same_question(one: Fit, other: Fit) -> bool:
    """Whether two fits are of the same loss and the same count of N."""
    return (one.runs.columns["loss"], one.n) == (other.runs.columns["loss"], other.n)


def _pair(art: Mapping[str, str], captions: Mapping[str, str]) -> str:
    drawn = [page.figure(art[name], text, text) for name, text in captions.items() if name in art]
    return f'<div class="pair">{"".join(drawn)}</div>' if drawn else ""


def _loss_of(fit: Fit, kind: str) -> str:
    """The column of the loss, with the kind of token where neither it nor `all` says it."""
    name = fit.runs.columns["loss"]
    return f"{name} ({kind})" if name == "loss" and kind != "all" else name


def _method_table(fits: Sequence[Fit], kind: str) -> str:
    """A row a fit: its exponents with their intervals."""
    rows = []
    for fit in fits:
        table = fit.intervals()
        exponents = [
            span(table.loc[name].to_dict(), digits)
            for name, digits in (("a", 3), ("b", 3), ("ratio", 2))
        ]
        off = "-" if math.isnan(fit.noise.residual_sd) else f"{fit.noise.residual_sd:.2%}"
        rows.append(
            [
                method_name(fit),
                _loss_of(fit, kind),
                fit.n.replace("_", " "),
                *exponents,
                off,
                str(len(fit.runs)),
            ]
        )
    headings = (
        "Method",
        "Loss",
        "N counts",
        "a (N* ~ C^a)",
        "b (D* ~ C^b)",
        "b / a",
        "Off the fit",
        "Runs",
    )
    return page.table(headings, rows, text=(0, 1, 2))


def _interval_table(fits: Sequence[IsoflopFit], kind: str) -> str:
    """Exponents of the profiles with both intervals, a row an exponent and fit."""
    rows = []
    for fit in fits:
        table = fit.intervals()
        for name in ("a", "b", "ratio"):
            row = table.loc[name].to_dict()
            spans = [
                f"{row[f'{k}low']:.4f} to {row[f'{k}high']:.4f}"
                for k in ("", "bootstrap_", "line_")
            ]
            what = "b / a" if name == "ratio" else name
            rows.append(
                [method_name(fit), _loss_of(fit, kind), what, f"{row['value']:.4f}", *spans]
            )
    headings = (
        "Method",
        "Loss",
        "Exponent",
        "Value",
        "Interval (the wider)",
        "Bootstrap",
        "Line over budgets",
    )
    return page.table(headings, rows, text=(0, 1, 2))


def _agreement(fits: Sequence[Fit]) -> str:
    """Whether the intervals of a have anything in common."""
    rows = [fit.intervals().loc["a"].to_dict() for fit in fits]
    low, high = max(row["low"] for row in rows), min(row["high"] for row in rows)
    if low <= high:
        return f"The methods agree on a: {low:.3f} to {high:.3f} lies in every interval."
    return (
        "The methods do not agree: no value of a lies in every interval. The findings below say which law the runs "
        "are at odds with."
    )


def _prediction(fit: Fit, flops: float, quantity: str, row: Mapping[str, float]) -> list[str]:
    words = {"params": "N*", "tokens": "D*", "loss": "loss"}

    def shown(value: float) -> str:
        return f"{value:.4f}" if quantity == "loss" else count_text(value)

    both = [f"{shown(row[f'{k}low'])} to {shown(row[f'{k}high'])}" for k in ("statistical_", "")]
    if fit.rollout is None:
        both[1] = "not known"
    elif row["high"] > FARTHEST * row["value"]:
        both[1] = f"over {FARTHEST:g} times off is possible"
    return [
        flops_text(float(f"{flops:.3g}")),
        method_name(fit),
        words[quantity],
        shown(row["value"]),
        *both,
    ]


def span(row: Mapping[str, float], digits: int = 3) -> str:
    """value [low, high]."""
    if not math.isfinite(row["high"] - row["low"]):
        return f"{row['value']:.{digits}f} [unbounded]"
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _n_words(n: str) -> str:
    words = {
        "one_embedding": "one embedding table (of two) and the body",
        "non_embedding": "the body, no embeddings",
    }
    return words.get(n, "all parameters, embedding and head included")


def _fixed(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
