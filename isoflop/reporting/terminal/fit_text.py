"""What `isoflop fit`, `predict` and `compare` print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoflop.fitting.comparison import SYMBOLS
from isoflop.fitting.results.diagnostics import flops_text
from isoflop.fitting.results.fitted_laws import ENDS, STATISTICAL
from isoflop.fitting.results.summary import number
from isoflop.frames import cell, records
from isoflop.reporting.terminal.console import print_table

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.fitting.comparison import Comparison
    from isoflop.fitting.prediction.predict import MethodPrediction, Prediction
    from isoflop.fitting.study_fits import StudyFits

FACTORS = {0.25: "1/4 N*", 0.5: "1/2 N*", 2.0: "2 N*"}
COUNTS = {"total": "total", "one_embedding": "one embedding", "non_embedding": "non-embedding"}


def print_fits(study: StudyFits) -> None:
    """Methods side by side, then each in full; of several losses the table alone."""
    print_comparison(study.comparison)
    if len(study.sets) > 1:
        return
    for fit in study.fits:
        print(f"\n{fit.summary()}")
    print_sensitivity(study.sensitivity, study.fits[0].confidence)


def print_comparison(comparison: Comparison) -> None:
    """Laws side by side, how far apart they are in words, and which differ."""
    level = f"[{comparison.confidence:.0%}]"
    at = flops_text(comparison.flops)
    has_loss = any(not math.isnan(row["loss"]) for row in records(comparison.table))
    headers = ["law", f"a {level}", f"b {level}", f"N* at {at} {level}", f"D* at {at} {level}"]
    headers += [f"loss {level}"] if has_loss else []
    rows = []
    for row in records(comparison.table):
        cells = [row["law"]]
        for quantity in SYMBOLS if has_loss else list(SYMBOLS)[:-1]:
            cells.append(
                _with_ends(quantity, *(row[quantity + end] for end in ("", "_low", "_high")))
            )
        rows.append(cells)
    print_table(headers, rows, text=headers)
    if comparison.gap:
        print(f"\n{comparison.gap}")


def print_pairs(comparison: Comparison) -> None:
    """Which laws differ, and with what probability they would by chance."""
    if not comparison.pairs:
        return
    headers = ["law", "against", *SYMBOLS.values(), "verdict"]
    rows = []
    for pair in comparison.pairs:
        by_name = {difference.quantity: difference for difference in pair.differences}
        cells = []
        for quantity in SYMBOLS:
            difference = by_name.get(quantity)
            if difference is None:
                cells.append("-")
                continue
            text = (
                f"{difference.value:+.3f}" if quantity in ("a", "b") else f"x{difference.value:.3f}"
            )
            p = difference.p_model
            cells.append(text if math.isnan(p) else f"{text} (p {_p(p)})")
        rows.append([pair.second, pair.first, *cells, pair.verdict])
    print()
    print_table(headers, rows, text=["law", "against", "verdict"])


def print_sensitivity(table: pd.DataFrame, confidence: float) -> None:
    """Exponents by what N and C count; nothing where the runs leave one choice."""
    if len(table) == len(set(table["method"])):
        return
    level = f"[{confidence:.0%}]"
    headers = ["law", "N counts", "C is", f"a {level}", f"b {level}"]
    rows = []
    for row in records(table):
        spans = [
            _with_ends(name, *(row[name + end] for end in ("", "_low", "_high")))
            for name in ("a", "b")
        ]
        rows.append([row["method"], COUNTS[row["n"]], row["c"], *spans])
    print("\nWhat N and C count decides the exponents:\n")
    print_table(headers, rows, text=headers)


def print_prediction(prediction: Prediction) -> None:
    """N*, D* and loss by each law, how flat the optimum is, what other sizes cost, and the run to train."""
    level = f"{prediction.confidence:.0%}"
    print(f"At {flops_text(prediction.flops)} training FLOPs:\n")
    headers = ["law", "", "value", f"{level} if the law is true", f"{level} with its own error"]
    rows = []
    for method in prediction.methods:
        known = method.own_error_known(prediction.flops)
        rows += _quantity_rows(method.name, method.table, known)
        if method.closed_form is not None:
            rows += _quantity_rows("  with C = 6ND", method.closed_form, known)
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
            f"\nwidth {run.width}, {run.layers} layers, {run.heads} heads, MLP {run.shape.mlp_width}: "
            f"{number(run.params_total)} parameters in all\nbatch {run.batch_size:,} x {run.seq_len:,} tokens, "
            f"{run.steps:,} steps: {number(run.tokens)} tokens; learning rate {run.lr:.4g}, beta2 {run.beta2:.4f}"
        )


def _print_optimum(method: MethodPrediction) -> None:
    optimum = method.optimum
    if optimum is None:
        return
    print()
    for near in optimum.near:
        low, high = ("any size" if end is None else number(end) for end in (near.low, near.high))
        print(f"Within {100 * near.share:g} % of the least loss: N from {low} to {high}")
    print("\nThe same loss by other sizes:\n")
    rows = []
    for other in optimum.equal_loss:
        size = [
            FACTORS[other.factor],
            *([] if other.width is None else [str(other.width)]),
            number(other.params),
        ]
        if not math.isfinite(other.tokens):
            rows.append([*size, "never", "-", "-"])
        else:
            rows.append(
                [
                    *size,
                    number(other.tokens),
                    flops_text(float(f"{other.flops:.3g}")),
                    f"x{other.ratio:.2f}",
                ]
            )
    widths = [] if optimum.shape is None else ["width"]
    print_table(["size", *widths, "N", "D", "FLOPs", "of the budget"], rows, text=["size"])


def _quantity_rows(name: str, table: pd.DataFrame, own_error_known: bool) -> list[list[str]]:
    rows = []
    for k, quantity in enumerate(str(index) for index in table.index):
        value, *_ = values = [cell(table, quantity, end) for end in (*ENDS, *STATISTICAL)]
        spans = [
            _span(quantity, values[3:]),
            _span(quantity, values[1:3]) if own_error_known else "not known",
        ]
        rows.append(["" if k else name, SYMBOLS[quantity], _one(quantity, value), *spans])
    return rows


def _with_ends(quantity: str, value: float, low: float, high: float) -> str:
    span = _span(quantity, (low, high))
    return (
        _one(quantity, value)
        if span == "-"
        else f"{_one(quantity, value)} [{span.replace(' to ', ', ')}]"
    )


def _span(quantity: str, ends: Sequence[float]) -> str:
    return (
        "-"
        if any(math.isnan(end) for end in ends)
        else " to ".join(_one(quantity, end) for end in ends)
    )


def _one(quantity: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if quantity in ("params", "tokens"):
        return number(value)
    return f"{value:.3f}" if quantity in ("a", "b") else f"{value:.4f}"


def _p(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
