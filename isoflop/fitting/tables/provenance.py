"""Which runs a law was fitted to, and whether two laws share some."""

from __future__ import annotations

import re
from dataclasses import dataclass

from isoflop.fitting.tables.runs_table import RunsTable

UNNAMED = "the table"
_IDENTITY = re.compile(r".+-s\d+-[0-9a-f]{8}")
"""Names that isoflop gives: they end in a hash of what a run is. Other names may be those of other runs elsewhere."""


@dataclass(frozen=True)
class Origin:
    """The runs of a law.

    Attributes:
        source: where they were read; `the table` where that was no file.
        hash: of their sizes, tokens, losses, FLOPs and budgets; empty where there are no runs (a published law).
        run_ids: of the runs whose names hold their identity.
    """

    source: str
    hash: str
    run_ids: frozenset[str] = frozenset()

    @classmethod
    def of(cls, table: RunsTable) -> Origin:
        """The origin of what is fitted to a table."""
        names = table.frame["run_id"].astype(str) if "run_id" in table.frame else []
        return cls(
            table.source, table.hash, frozenset(name for name in names if _IDENTITY.fullmatch(name))
        )

    def shares_runs(self, other: Origin) -> bool:
        """Whether a run is common to both: then the two laws are not independent.

        Runs without an identity are taken for the same where their source has the same name.
        """
        if not (self.hash and other.hash):
            return False
        if self.hash == other.hash or self.run_ids & other.run_ids:
            return True
        named = bool(self.run_ids and other.run_ids)
        return not named and self.source == other.source != UNNAMED
