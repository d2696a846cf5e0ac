"""Fits scaling laws to a table of runs: reading, IsoFLOP profiles, simulation, saving."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.fitting.isoflop import fit_isoflop
    from isoflop.fitting.result import IsoflopFit
    from isoflop.fitting.save import fit_document, write_fit
    from isoflop.fitting.simulate import simulate_isoflop
    from isoflop.fitting.table import RunsTable, read_table
    from isoflop.laws import SURFACES, Surface

_HOMES = {
    "IsoflopFit": "result",
    "RunsTable": "table",
    "SURFACES": "simulate",
    "Surface": "simulate",
    "fit_document": "save",
    "fit_isoflop": "isoflop",
    "read_table": "table",
    "simulate_isoflop": "simulate",
    "write_fit": "save",
}

__all__ = [
    "SURFACES",
    "IsoflopFit",
    "RunsTable",
    "Surface",
    "fit_document",
    "fit_isoflop",
    "read_table",
    "simulate_isoflop",
    "write_fit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
