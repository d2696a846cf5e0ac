"""Provenance of a law: the runs it was fitted to, and whether two laws share some."""

from __future__ import annotations

import re
from dataclasses import dataclass

from isoflop.fitting.tables.fit_table import RunsTable

UNNAMED_SOURCE = "the table"
_RUN_ID = re.compile(r".+-s\d+-[0-9a-f]{8}")
"""Pattern of isoflop's own run names, which end in a hash of the run's identity. Other names may be
used for other runs elsewhere."""


@dataclass(frozen=True)
class Provenance:
    """Runs of a law.

    Attributes:
        source: file or directory of the runs; `the table` for a DataFrame.
        hash: hash of their sizes, tokens, losses, FLOPs and budgets; empty without runs (a
            published law).
        run_ids: names of the runs whose name contains their identity.
    """

    source: str
    hash: str
    run_ids: frozenset[str] = frozenset()

    @classmethod
    def from_table(cls, table: RunsTable) -> Provenance:
        """Return the provenance of a law that is fitted to a table."""
        names = table.frame["run_id"].astype(str) if "run_id" in table.frame else []
        run_ids = frozenset(name for name in names if _RUN_ID.fullmatch(name))
        return cls(table.source, table.hash, run_ids)

    def shares_runs(self, other: Provenance) -> bool:
        """Return whether two laws have a run in common, so that they are not independent.

        Runs without an identity count as the same if the names of their sources are equal.
        """
        if not (self.hash and other.hash):
            return False
        if self.hash == other.hash or self.run_ids & other.run_ids:
            return True
        named = bool(self.run_ids and other.run_ids)
        return not named and self.source == other.source != UNNAMED_SOURCE
