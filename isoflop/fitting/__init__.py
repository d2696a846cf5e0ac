"""Fits scaling laws to a table of runs: reading, profiles, surfaces, envelope, simulation, saving, predicting."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.fitting.comparing import Comparison, compare
    from isoflop.fitting.envelope import EnvelopeFit, fit_envelope
    from isoflop.fitting.isoflop import fit_isoflop
    from isoflop.fitting.joint import fit_joint
    from isoflop.fitting.joint_fit import JointFit
    from isoflop.fitting.loading import FitFile, load_fit
    from isoflop.fitting.parametric import fit_parametric
    from isoflop.fitting.predicting import Prediction, predict
    from isoflop.fitting.result import IsoflopFit
    from isoflop.fitting.save import fit_document, write_fit
    from isoflop.fitting.simulate import simulate_isoflop
    from isoflop.fitting.study import StudyFits, fit_study
    from isoflop.fitting.surface import ParametricFit
    from isoflop.fitting.table import RunsTable, read_table
    from isoflop.laws import SURFACES, Surface

_HOMES = {
    "Comparison": "comparing",
    "EnvelopeFit": "envelope",
    "FitFile": "loading",
    "IsoflopFit": "result",
    "JointFit": "joint_fit",
    "ParametricFit": "surface",
    "Prediction": "predicting",
    "RunsTable": "table",
    "SURFACES": "simulate",
    "StudyFits": "study",
    "Surface": "simulate",
    "compare": "comparing",
    "fit_document": "save",
    "fit_envelope": "envelope",
    "fit_isoflop": "isoflop",
    "fit_joint": "joint",
    "fit_parametric": "parametric",
    "fit_study": "study",
    "load_fit": "loading",
    "predict": "predicting",
    "read_table": "table",
    "simulate_isoflop": "simulate",
    "write_fit": "save",
}

__all__ = [
    "SURFACES",
    "Comparison",
    "EnvelopeFit",
    "FitFile",
    "IsoflopFit",
    "JointFit",
    "ParametricFit",
    "Prediction",
    "RunsTable",
    "StudyFits",
    "Surface",
    "compare",
    "fit_document",
    "fit_envelope",
    "fit_isoflop",
    "fit_joint",
    "fit_parametric",
    "fit_study",
    "load_fit",
    "predict",
    "read_table",
    "simulate_isoflop",
    "write_fit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
