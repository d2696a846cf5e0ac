"""The code of a study: a copy of the package, so that an edit of the tree doesn't change runs that wait in a queue."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import uuid
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def study_code(directory: Path, *, renew: bool = False) -> tuple[Path, bool]:
    """The folder from which a study's jobs import `isoflop`, and whether it differs from the code that runs now.

    It is made at the first submission and kept from then on, so that all runs of a study have the same code.

    Args:
        directory: of the sweep.
        renew: copy the code that runs now, for the runs that are not done yet.
    """
    folder, now = directory / "code", _digest()
    kept = _kept(folder)
    if kept is not None and not renew:
        return kept, kept.name != now
    copy = folder / now
    if not (copy / "made").exists():
        part = folder / f".{now}.{uuid.uuid4().hex[:8]}.tmp"
        shutil.copytree(PACKAGE, part / "isoflop", ignore=shutil.ignore_patterns("__pycache__"))
        (part / "changes.diff").write_text(_changes())
        (part / "made").touch()
        try:
            os.rename(part, copy)
        except OSError:  # somebody else was faster
            shutil.rmtree(part)
    else:
        os.utime(copy / "made")
    return copy, False


def kept_code_differs(directory: Path) -> str | None:
    """What a person should know before runs are added to a study whose code is not the code that runs now; else None.

    Args:
        directory: of the sweep.
    """
    kept = _kept(directory / "code")
    if kept is None or kept.name == _digest():
        return None
    before, now = _described((kept / "changes.diff").read_text()), _described(_changes())
    return f"new and queued runs use the study's code, {before}, not {now} that runs here; --new-code takes this"


def _kept(folder: Path) -> Path | None:
    """The newest copy of the code."""
    made = sorted(folder.glob("[!.]*/made"), key=lambda path: path.stat().st_mtime)
    return made[-1].parent if made else None


def _described(changes: str) -> str:
    """Which code a `changes.diff` belongs to: commit 0a1b2c3 with changes."""
    commit, _, diff = changes.partition("\n")
    if not commit:
        return "an installed version"
    return f"{commit[: len('commit ') + 7]}{' with changes' if diff.strip() else ''}"


def _digest() -> str:
    """A hash of the package's Python files, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _changes() -> str:
    """The commit that the package is of, and what was changed since; empty where it is in no checkout."""
    commit, diff = git("rev-parse", "HEAD"), git("diff", "HEAD", "--", str(PACKAGE))
    return "" if commit is None or diff is None else f"commit {commit}{diff}"


def git(*words: str) -> str | None:
    """What git prints in the checkout that the package is of; None where it is in none, such as an installed one."""
    here = PACKAGE.parent
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "--no-pager", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that a result depends on, and of `more`."""
    return {package: version(package) for package in ("isoflop", "torch", "lightning", "numpy", *more)}
