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
    made = sorted(folder.glob("[!.]*/made"), key=lambda path: path.stat().st_mtime)
    if made and not renew:
        return made[-1].parent, made[-1].parent.name != now
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
