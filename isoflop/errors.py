"""Errors that a user can cause: one line with the fault, its place and the fix."""

from __future__ import annotations

MAX_MESSAGE_CHARACTERS = 300
"""Longest part of another program's message to show or record."""


class IsoflopError(Exception):
    """An error with a message for the user and the exit code of the command line.

    Attributes:
        exit_code: exit code of the process (2 bad input, 3 budget cap, 4 cluster unavailable).
    """

    exit_code = 2


class ConfigError(IsoflopError):
    """A sweep file, a cluster profile or an override that can't be used."""


class BudgetError(IsoflopError):
    """A study that would cost more than its cap."""

    exit_code = 3


class DataError(IsoflopError):
    """A corpus, shard or codec that is missing, damaged or too small."""


class FitError(IsoflopError):
    """A table of runs that can't be fitted, with the reason."""


class RunError(IsoflopError):
    """A run directory or checkpoint that can't be used."""


class BusyError(RunError):
    """Another process does the same work, and will finish it."""


class ClusterError(IsoflopError):
    """A cluster that does not answer, or refuses the options of a profile."""

    exit_code = 4
