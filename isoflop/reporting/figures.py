"""Figures of a study as files and as text to be put into a page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, cast

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from isoflop.files import replace_file
from isoflop.fitting.result import IsoflopFit
from isoflop.reporting.plots import plot_law, plot_loss_curves, plot_overview, plot_profiles

PNG_DPI = 160


def study_figures(fit: IsoflopFit | None, curves: pd.DataFrame | None) -> dict[str, Figure]:
    """Name -> figure, in the order of the report; what can't be drawn is not there."""
    figures: dict[str, Figure] = {}
    if fit is not None:
        figures["profiles"] = cast(Figure, plot_profiles(fit).figure)
        figures["law_params"] = cast(Figure, plot_law(fit, "params").figure)
        figures["law_tokens"] = cast(Figure, plot_law(fit, "tokens").figure)
        figures["overview"] = cast(Figure, plot_overview(fit)[0].figure)
    if curves is not None and len(curves):
        figures["loss_curves"] = cast(Figure, plot_loss_curves(curves).figure)
    return figures


def write_figures(directory: str | Path, figures: dict[str, Figure]) -> list[Path]:
    """Writes each figure as .png and .svg, beside and renamed."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            path = directory / f"{name}.{kind}"
            with replace_file(path) as temporary, temporary.open("wb") as file:
                _save(figure, kind, file)
            written.append(path)
    return written


def inline_svg(figure: Figure) -> str:
    """The figure as an <svg> element without a prologue; the same figure gives the same text."""
    buffer = io.BytesIO()
    _save(figure, "svg", buffer)
    text = buffer.getvalue().decode()
    return text[text.index("<svg") :]


def _save(figure: Figure, kind: str, file: BinaryIO) -> None:
    """No date, and ids from a fixed salt: a report made twice from one study is the same bytes."""
    options = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": PNG_DPI}
    with matplotlib.rc_context({"svg.hashsalt": "isoflop"}):
        figure.savefig(file, format=kind, facecolor="white", **options)  # pyright: ignore[reportArgumentType]
