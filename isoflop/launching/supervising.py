"""The module name in pickles of supervisor jobs, for one release (`Supervisor.__module__`)."""

from __future__ import annotations

from isoflop.launching.supervisor import Supervisor

__all__ = ["Supervisor"]
