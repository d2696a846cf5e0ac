"""isoflop: how large a model to train, on how much data, for any compute budget.

    plan = isoflop.plan("sweeps/soda.yaml")
    runs = isoflop.read_runs("runs/soda")
    law = isoflop.fit_isoflop(runs)

Names load on first use, so `import isoflop` is instant; the stub `__init__.pyi` lists them. Only a
call of `load_weights` imports torch.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_load, _, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = sorted([*_names, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "__version__":
        return _load(name)
    from importlib.metadata import version

    return version(__name__)


def __dir__() -> list[str]:
    return __all__
