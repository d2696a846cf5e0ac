"""Figures of a study as files and as text to be put into a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoflop.files import replace_file
from isoflop.fitting.results.base import Fit, ProfileFit
from isoflop.fitting.results.isoflop_fit import IsoflopFit
from isoflop.fitting.results.parametric_fit import ParametricFit
from isoflop.plotting.curve_plots import plot_loss_curves

PNG_DPI = 160
NAMES = (
    "profiles", "law_params", "law_tokens", "overview", "surface", "law_loss", "rollout", "residuals", "loss_curves"
)  # fmt: skip
"""All figures that a study can have."""


def study_figures(
    fits: Sequence[Fit], curves: pd.DataFrame | None, kind: str = "all"
) -> dict[str, Figure]:
    """Name -> figure, in the order of the report; what can't be drawn is not there.

    Of the profiles the first fit of its kind is drawn, and so of the surface; of the curves that of a kind of token.
    """
    axes: dict[str, Axes] = {}
    profiles = next((fit for fit in fits if isinstance(fit, IsoflopFit)), None)
    surface = next((fit for fit in fits if isinstance(fit, ParametricFit)), None)
    if profiles is not None:
        axes["profiles"] = profiles.plot()
        axes["law_params"], axes["law_tokens"] = (
            profiles.plot_law("params"),
            profiles.plot_law("tokens"),
        )
        axes["overview"] = plot_overview(profiles)[0]
    if surface is not None:
        axes["surface"], axes["law_loss"] = surface.plot(), surface.plot_law("loss")
    rolled = next(
        (fit for fit in (profiles, surface) if fit is not None and fit.rollout is not None), None
    )
    if rolled is not None:
        axes["rollout"] = rolled.plot_rollout("params")
    if surface is not None:
        axes["residuals"] = surface.plot_residuals("flops")
    if curves is not None and len(curves):
        axes["loss_curves"] = plot_loss_curves(curves, kind=kind)
    return {name: cast(Figure, ax.figure) for name, ax in axes.items()}


def plot_overview(fit: ProfileFit, fig: Figure | None = None) -> np.ndarray:
    """Draw profiles, N*(C) and D*(C) side by side; return three Axes (the figure:
    `axes[0].figure`).
    """
    fig = fig if fig is not None else Figure(figsize=(20.0, 4.4), layout="constrained")
    axes = fig.subplots(1, 3, width_ratios=(1.35, 1.0, 1.0))
    fit.plot(axes[0])
    fit.plot_law("params", axes[1])
    fit.plot_law("tokens", axes[2])
    return axes


def write_figures(directory: str | Path, figures: dict[str, Figure]) -> dict[str, str]:
    """Writes each figure as .png and .svg, beside and renamed; returns each one's <svg> element.

    What an earlier study left there under a name of `NAMES` goes; files of other names stay.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name in set(NAMES) - figures.keys():
        for kind in ("png", "svg"):
            (directory / f"{name}.{kind}").unlink(missing_ok=True)
    art = {}
    for name, figure in figures.items():
        drawn = {kind: _drawn(figure, kind) for kind in ("png", "svg")}
        for kind, data in drawn.items():
            with replace_file(directory / f"{name}.{kind}") as temporary:
                temporary.write_bytes(data)
        art[name] = _element(drawn["svg"])
    return art


def inline_svg(figure: Figure) -> str:
    """The figure as an <svg> element without a prologue; the same figure gives the same text."""
    return _element(_drawn(figure, "svg"))


def _element(svg: bytes) -> str:
    text = svg.decode()
    return text[text.index("<svg") :]


def _drawn(figure: Figure, kind: str) -> bytes:
    """No date, and ids from a fixed salt: a report made twice from one study is the same bytes."""
    options = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": PNG_DPI}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "isoflop"}):
        figure.savefig(buffer, format=kind, facecolor="white", **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()
