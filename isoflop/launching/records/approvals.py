"""Approved runs of a study: the user agreed to their bill; a supervisor queues no others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from isoflop.files import replace_file
from isoflop.launching.records.submissions import read_submissions, submissions_folder


def read_approved(directory: Path) -> set[str]:
    """Return submitted runs, and approved ones that the cluster did not accept yet.

    Raises:
        ConfigError: a record that can't be read.
    """
    submitted = {run_id for submission in read_submissions(directory) for run_id in submission.runs}
    return submitted | _read(directory)


def approve(directory: Path, runs: Iterable[str]) -> None:
    """Approve runs before they are queued. Requires the submissions lease."""
    _write(directory, _read(directory) | set(runs))


def revoke(directory: Path, runs: Iterable[str]) -> set[str]:
    """Revoke approval of runs not yet submitted and return their ids.

    Requires the submissions lease.
    """
    approved = _read(directory)
    revoked = approved & set(runs)
    _write(directory, approved - revoked)
    submitted = {run_id for submission in read_submissions(directory) for run_id in submission.runs}
    return revoked - submitted


def _file(directory: Path) -> Path:
    # In a folder of its own: files beside it are records of submissions.
    return submissions_folder(directory) / "supervisor" / "approved.json"


def _read(directory: Path) -> set[str]:
    try:
        run_ids = json.loads(_file(directory).read_text())
    except (FileNotFoundError, ValueError):
        return set()
    if not isinstance(run_ids, list):
        return set()
    return {run_id for run_id in run_ids if isinstance(run_id, str)}


def _write(directory: Path, runs: set[str]) -> None:
    if runs != _read(directory):
        with replace_file(_file(directory)) as temporary:
            temporary.write_text(json.dumps(sorted(runs)) + "\n")
