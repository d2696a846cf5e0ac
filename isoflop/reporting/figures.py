"""Figures of a study, as files and as SVG text for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoflop.files import replace_file
from isoflop.fitting.results.base import Fit
from isoflop.fitting.results.isoflop_fit import IsoflopFit
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.fitting.results.profile_fit import ProfileFit
from isoflop.plotting.curve_plots import plot_loss_curves

PNG_DPI = 160
FIGURE_NAMES = (
    "profiles",
    "law_params",
    "law_tokens",
    "overview",
    "surface",
    "law_loss",
    "rollout",
    "residuals",
    "loss_curves",
)
"""All figures of a study, in the order of the report."""


def study_figures(
    fits: Sequence[Fit], curves: pd.DataFrame | None, kind: str = "all"
) -> dict[str, Figure]:
    """Draw the figures that the fits and curves allow, by name in the order of the report.

    Args:
        fits: the first isoflop fit and the first parametric fit are drawn.
        curves: see `plot_loss_curves`.
        kind: token kind of the loss curves.
    """
    axes: dict[str, Axes] = {}
    profiles = next((fit for fit in fits if isinstance(fit, IsoflopFit)), None)
    surface = next((fit for fit in fits if isinstance(fit, ParametricFit)), None)
    if profiles is not None:
        axes["profiles"] = profiles.plot()
        axes["law_params"] = profiles.plot_law("params")
        axes["law_tokens"] = profiles.plot_law("tokens")
        axes["overview"] = plot_overview(profiles)[0]
    if surface is not None:
        axes["surface"], axes["law_loss"] = surface.plot(), surface.plot_law("loss")
    for fit in (profiles, surface):
        if fit is not None and fit.rollout is not None and "rollout" not in axes:
            axes["rollout"] = fit.plot_rollout("params")
    if surface is not None:
        axes["residuals"] = surface.plot_residuals("flops")
    if curves is not None and len(curves):
        axes["loss_curves"] = plot_loss_curves(curves, kind=kind)
    return {name: cast(Figure, ax.figure) for name, ax in axes.items()}


def plot_overview(fit: ProfileFit, fig: Figure | None = None) -> np.ndarray:
    """Draw profiles, N*(C) and D*(C) side by side.

    Returns:
        Three Axes, (3,), in one figure: `axes[0].figure`.
    """
    fig = fig if fig is not None else Figure(figsize=(20.0, 4.4), layout="constrained")
    axes = fig.subplots(1, 3, width_ratios=(1.35, 1.0, 1.0))
    fit.plot(axes[0])
    fit.plot_law("params", axes[1])
    fit.plot_law("tokens", axes[2])
    return axes


def write_figures(directory: str | Path, figures: dict[str, Figure]) -> dict[str, str]:
    """Write each figure as .png and .svg, each atomically.

    Older files of other figures in `FIGURE_NAMES` are deleted; files with other names stay.

    Returns:
        The <svg> element of each figure, by name.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name in set(FIGURE_NAMES) - figures.keys():
        for kind in ("png", "svg"):
            (directory / f"{name}.{kind}").unlink(missing_ok=True)
    elements = {}
    for name, figure in figures.items():
        files = {kind: _render(figure, kind) for kind in ("png", "svg")}
        for kind, data in files.items():
            with replace_file(directory / f"{name}.{kind}") as temporary:
                temporary.write_bytes(data)
        elements[name] = _svg_element(files["svg"])
    return elements


def inline_svg(figure: Figure) -> str:
    """Return a figure as an <svg> element without a prologue; equal figures give equal text."""
    return _svg_element(_render(figure, "svg"))


def _svg_element(svg: bytes) -> str:
    text = svg.decode()
    return text[text.index("<svg") :]


def _render(figure: Figure, kind: str) -> bytes:
    """Return the bytes of a file without a date and with ids from a fixed salt, so that a repeated
    report has the same bytes.
    """
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": PNG_DPI}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "isoflop"}):
        figure.savefig(buffer, format=kind, facecolor="white", **options)
    return buffer.getvalue()
