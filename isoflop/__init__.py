"""isoflop: how large a model to train, on how much data, for any compute budget.

    plan = isoflop.plan("sweeps/soda.yaml")
    runs = isoflop.read_runs("runs/soda")
    law = isoflop.fit_isoflop(runs)

Names are loaded when they are first used: `import isoflop` is instant. `load_weights` alone imports torch, once it is
called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.errors import IsoflopError
    from isoflop.fitting import compare, fit_envelope, fit_isoflop, fit_joint, fit_parametric, load_fit, predict
    from isoflop.planning.plan import Plan, plan
    from isoflop.planning.runspec import RunSpec
    from isoflop.results import read_runs
    from isoflop.shapes import ModelShape
    from isoflop.training.weights import load_weights

    __version__: str

_HOMES = {
    "IsoflopError": "errors",
    "ModelShape": "shapes",
    "Plan": "planning.plan",
    "RunSpec": "planning.runspec",
    "compare": "fitting",
    "fit_envelope": "fitting",
    "fit_isoflop": "fitting",
    "fit_joint": "fitting",
    "fit_parametric": "fitting",
    "load_fit": "fitting",
    "load_weights": "training.weights",
    "plan": "planning.plan",
    "predict": "fitting",
    "read_runs": "results",
}

__all__ = [
    "IsoflopError",
    "ModelShape",
    "Plan",
    "RunSpec",
    "__version__",
    "compare",
    "fit_envelope",
    "fit_isoflop",
    "fit_joint",
    "fit_parametric",
    "load_fit",
    "load_weights",
    "plan",
    "predict",
    "read_runs",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version(__name__)
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
