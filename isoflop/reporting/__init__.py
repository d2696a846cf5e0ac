"""Figures and the HTML report of a study."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.reporting.html import write_report
    from isoflop.reporting.plots import plot_law, plot_loss_curves, plot_overview, plot_profiles
    from isoflop.reporting.sweep import report_sweep

_HOMES = {
    "plot_law": "plots",
    "plot_loss_curves": "plots",
    "plot_overview": "plots",
    "plot_profiles": "plots",
    "report_sweep": "sweep",
    "write_report": "html",
}

__all__ = ["plot_law", "plot_loss_curves", "plot_overview", "plot_profiles", "report_sweep", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
