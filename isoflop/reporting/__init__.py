"""The HTML report, its figures, and text for the terminal.

Names load on first use; the stub `__init__.pyi` lists them.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
