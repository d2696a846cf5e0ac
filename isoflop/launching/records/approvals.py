"""Which runs of a study somebody has agreed to pay for: a supervisor queues no others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from isoflop.files import replace_file
from isoflop.launching.records.submissions import read_submissions, submissions_folder


def approved(directory: Path) -> set[str]:
    """The runs that submissions have, and those that one was to have when the cluster took no more.

    Raises:
        ConfigError: a record that can't be read.
    """
    return {
        run_id for submission in read_submissions(directory) for run_id in submission.runs
    } | _kept(directory)


def approve(directory: Path, runs: Iterable[str]) -> None:
    """Adds runs, before they are queued; for who holds the lease on submissions."""
    _keep(directory, _kept(directory) | set(runs))


def withdraw(directory: Path, runs: Iterable[str]) -> set[str]:
    """Takes back what was agreed to of runs that no submission has; for who holds the lease. Returns them."""
    kept = _kept(directory)
    withdrawn = kept & set(runs)
    _keep(directory, kept - withdrawn)
    submitted = {run_id for submission in read_submissions(directory) for run_id in submission.runs}
    return withdrawn - submitted


def _file(directory: Path) -> Path:
    return (
        submissions_folder(directory) / "supervisor" / "approved.json"
    )  # not among the records of submissions


def _kept(directory: Path) -> set[str]:
    try:
        found = json.loads(_file(directory).read_text())
    except (FileNotFoundError, ValueError):
        return set()
    return (
        {run_id for run_id in found if isinstance(run_id, str)}
        if isinstance(found, list)
        else set()
    )


def _keep(directory: Path, runs: set[str]) -> None:
    if runs != _kept(directory):
        with replace_file(_file(directory)) as temporary:
            temporary.write_text(json.dumps(sorted(runs)) + "\n")
