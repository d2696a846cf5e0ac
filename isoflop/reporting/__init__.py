"""Figures and the HTML report of a study."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.reporting.html import write_report
    from isoflop.reporting.law_plots import plot_law, plot_rollout
    from isoflop.reporting.plots import plot_frontier, plot_loss_curves, plot_overview, plot_profiles
    from isoflop.reporting.residual_plots import plot_influence, plot_residuals
    from isoflop.reporting.surface_plots import plot_exponents, plot_surface
    from isoflop.reporting.sweep import report_sweep

_HOMES = {
    "plot_exponents": "surface_plots",
    "plot_frontier": "plots",
    "plot_influence": "residual_plots",
    "plot_law": "law_plots",
    "plot_loss_curves": "plots",
    "plot_overview": "plots",
    "plot_profiles": "plots",
    "plot_residuals": "residual_plots",
    "plot_rollout": "law_plots",
    "plot_surface": "surface_plots",
    "report_sweep": "sweep",
    "write_report": "html",
}

__all__ = [
    "plot_exponents",
    "plot_frontier",
    "plot_influence",
    "plot_law",
    "plot_loss_curves",
    "plot_overview",
    "plot_profiles",
    "plot_residuals",
    "plot_rollout",
    "plot_surface",
    "report_sweep",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
