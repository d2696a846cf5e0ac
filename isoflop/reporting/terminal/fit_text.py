"""Text of `isoflop fit`, `predict` and `compare`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isoflop.fitting.comparison import SYMBOLS
from isoflop.fitting.terms import ENDS, STATISTICAL
from isoflop.frames import cell, records
from isoflop.reporting.terminal.console import print_table
from isoflop.text import count_text, flops_text, percent_text

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.fitting.comparison import Comparison, Difference
    from isoflop.fitting.prediction.predict import MethodPrediction, Prediction
    from isoflop.fitting.study_fits import StudyFits

SIZE_LABELS = {0.25: "1/4 N*", 0.5: "1/2 N*", 2.0: "2 N*"}
N_LABELS = {"total": "total", "one_embedding": "one embedding", "non_embedding": "non-embedding"}


def print_fits(study: StudyFits) -> None:
    """Print methods side by side, then each in full; for several losses the table alone."""
    print_comparison(study.comparison)
    if len(study.sets) > 1:
        return
    for fit in study.fits:
        print(f"\n{fit.summary()}")
    print_sensitivity(study.sensitivity, study.fits[0].confidence)


def print_comparison(comparison: Comparison) -> None:
    """Print laws side by side, with a sentence on their gap."""
    level = f"[{percent_text(comparison.confidence)}]"
    budget = flops_text(comparison.flops)
    has_loss = any(not math.isnan(row["loss"]) for row in records(comparison.table))
    headers = ["law", f"a {level}", f"b {level}"]
    headers += [f"N* at {budget} {level}", f"D* at {budget} {level}"]
    headers += [f"loss {level}"] if has_loss else []
    quantities = list(SYMBOLS) if has_loss else list(SYMBOLS)[:-1]
    rows = [
        [row["law"], *(_interval_cell(row, quantity) for quantity in quantities)]
        for row in records(comparison.table)
    ]
    print_table(headers, rows, text=headers)
    if comparison.gap:
        print(f"\n{comparison.gap}")


def print_pairs(comparison: Comparison) -> None:
    """Print differences between laws with their p values, and verdicts."""
    if not comparison.pairs:
        return
    headers = ["law", "against", *SYMBOLS.values(), "verdict"]
    rows = []
    for pair in comparison.pairs:
        by_name = {difference.quantity: difference for difference in pair.differences}
        cells = [_difference_cell(by_name.get(quantity)) for quantity in SYMBOLS]
        rows.append([pair.second, pair.first, *cells, pair.verdict])
    print()
    print_table(headers, rows, text=["law", "against", "verdict"])


def print_sensitivity(table: pd.DataFrame, confidence: float) -> None:
    """Print exponents for each definition of N and C, or nothing if the runs allow only one."""
    if len(table) == len(set(table["method"])):
        return
    level = f"[{percent_text(confidence)}]"
    headers = ["law", "N counts", "C is", f"a {level}", f"b {level}"]
    rows = []
    for row in records(table):
        spans = [_interval_cell(row, name) for name in ("a", "b")]
        rows.append([row["method"], N_LABELS[row["n"]], row["c"], *spans])
    print("\nExponents by the definition of N and C:\n")
    print_table(headers, rows, text=headers)


def print_prediction(prediction: Prediction) -> None:
    """Print N*, D* and loss by each law, near-optimal sizes, other sizes and the run."""
    level = percent_text(prediction.confidence)
    print(f"At {flops_text(prediction.flops)} training FLOPs:\n")
    headers = ["law", "", "value", f"{level} if the law is true", f"{level} with its own error"]
    rows = []
    for method in prediction.methods:
        known = method.has_model_error(prediction.flops)
        rows += _quantity_rows(method.name, method.table, known)
        if method.over_sizes is not None:
            label = "  with C = 6ND" if method.cost.is_six_nd else "  over all sizes"
            rows += _quantity_rows(label, method.over_sizes, known)
    print_table(headers, rows, text=["law", ""])
    if prediction.gap:
        print(f"\n{prediction.gap}")
    for method in prediction.methods:
        _print_optimum(method)
    if prediction.configuration is not None:
        print(f"\nOne run, by the law {prediction.chosen.name}, as a sweep file:\n")
        print(prediction.yaml(), end="")
        run = prediction.configuration.runs[0]
        print(
            f"\nwidth {run.width}, {run.layers} layers, {run.heads} heads, "
            f"MLP {run.shape.mlp_width}: {count_text(run.params_total)} parameters in all\n"
            f"batch {run.batch_size:,} x {run.seq_len:,} tokens, {run.steps:,} steps: "
            f"{count_text(run.tokens)} tokens; learning rate {run.lr:.4g}, beta2 {run.beta2:.4f}"
        )


def _print_optimum(method: MethodPrediction) -> None:
    optimum = method.optimum
    if optimum is None:
        return
    print()
    for near in optimum.near_optimal:
        low, high = (
            "any size" if end is None else count_text(end) for end in (near.low, near.high)
        )
        print(f"Within {percent_text(near.share)} of the least loss: N from {low} to {high}")
    print("\nThe same loss by other sizes:\n")
    rows = []
    for other in optimum.equal_loss:
        width = [] if other.width is None else [str(other.width)]
        cost = ["never", "-", "-"]
        if math.isfinite(other.tokens):
            cost = [count_text(other.tokens), flops_text(other.flops, 3), f"x{other.ratio:.2f}"]
        rows.append([SIZE_LABELS[other.factor], *width, count_text(other.params), *cost])
    widths = [] if optimum.shape is None else ["width"]
    print_table(["size", *widths, "N", "D", "FLOPs", "of the budget"], rows, text=["size"])


def _quantity_rows(name: str, table: pd.DataFrame, has_model_error: bool) -> list[list[str]]:
    rows = []
    for k, quantity in enumerate(str(index) for index in table.index):
        value, *_ = values = [cell(table, quantity, end) for end in (*ENDS, *STATISTICAL)]
        spans = [
            _span(quantity, values[3:]),
            _span(quantity, values[1:3]) if has_model_error else "not known",
        ]
        rows.append(["" if k else name, SYMBOLS[quantity], _value_text(quantity, value), *spans])
    return rows


def _interval_cell(row: Mapping[str, Any], quantity: str) -> str:
    """Return `value [low, high]`, or the value alone without an interval."""
    value = _value_text(quantity, row[quantity])
    span = _span(quantity, (row[f"{quantity}_low"], row[f"{quantity}_high"]))
    return value if span == "-" else f"{value} [{span.replace(' to ', ', ')}]"


def _difference_cell(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    is_exponent = difference.quantity in ("a", "b")
    text = f"{difference.value:+.3f}" if is_exponent else f"x{difference.value:.3f}"
    p = difference.p_model
    return text if math.isnan(p) else f"{text} (p {_p_text(p)})"


def _span(quantity: str, ends: Sequence[float]) -> str:
    if any(math.isnan(end) for end in ends):
        return "-"
    return " to ".join(_value_text(quantity, end) for end in ends)


def _value_text(quantity: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if quantity in ("params", "tokens"):
        return count_text(value)
    return f"{value:.3f}" if quantity in ("a", "b") else f"{value:.4f}"


def _p_text(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
