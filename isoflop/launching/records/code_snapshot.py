"""The code of a study: a copy of the package, so that an edit of the tree doesn't change runs that wait in a queue."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import uuid
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]


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
        try:
            shutil.copytree(PACKAGE, part / "isoflop", ignore=_ignored)
            (part / "changes.diff").write_text(_changes())
            (part / "made").touch()
            os.rename(part, copy)
        except OSError as problem:
            shutil.rmtree(part, ignore_errors=True)
            if not (copy / "made").exists():  # else somebody else was faster
                raise _plain(problem, folder) from None
    else:
        os.utime(copy / "made")
    return copy, False


def _ignored(folder: str, names: list[str]) -> set[str]:
    """What is not copied: caches, and links that lead nowhere, such as an editor's lock of a file that it has open."""
    return {name for name in names if name == "__pycache__" or not Path(folder, name).exists()}


def _plain(problem: OSError, folder: Path) -> OSError:
    """An error of copying many files as that of the system's that it was."""
    if not isinstance(problem, shutil.Error):
        return problem
    words = str(problem)
    code = next(
        (code for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES) if os.strerror(code) in words),
        errno.EIO,
    )
    return OSError(code, os.strerror(code), str(folder))


def kept_code_differs(directory: Path) -> str | None:
    """What a person should know before runs are added to a study whose code is not the code that runs now; else None.

    Args:
        directory: of the sweep.
    """
    kept = _kept(directory / "code")
    if kept is None or kept.name == _digest():
        return None
    before, now = (
        _described((kept / "changes.diff").read_text(), kept.name),
        _described(_changes(), _digest()),
    )
    return f"new and queued runs use the study's code, {before}, not {now} that runs here; --new-code takes this"


def commit_of(code: Path | None = None) -> str | None:
    """The commit of a study's code, or of the code that runs now: with `-dirty` where it was changed since.

    Args:
        code: a folder that `study_code` gave.
    """
    commit, changed = _parts(_changes() if code is None else (code / "changes.diff").read_text())
    return f"{commit}-dirty" if commit and changed else commit or None


def _kept(folder: Path) -> Path | None:
    """The newest copy of the code."""
    made = sorted(folder.glob("[!.]*/made"), key=lambda path: path.stat().st_mtime)
    return made[-1].parent if made else None


def _described(changes: str, digest: str) -> str:
    """Which code it is, by its `changes.diff` and its hash: commit 0a1b2c3 with changes (1a2b3c4)."""
    commit, changed = _parts(changes)
    if not commit:
        return f"an installed version ({digest[:7]})"
    return f"commit {commit[:7]}{f' with changes ({digest[:7]})' if changed else ''}"


def _parts(changes: str) -> tuple[str, bool]:
    """The commit that a `changes.diff` begins with, and whether there are changes."""
    commit, _, diff = changes.partition("\n")
    return commit.removeprefix("commit "), bool(diff.strip())


def _digest() -> str:
    """A hash of the package's Python files, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*.py") if path.exists()):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _changes() -> str:
    """The commit that the package is of, and what was changed since; empty where it is in no checkout.

    In a job the package is a study's copy, which brought this along.
    """
    if (PACKAGE.parent / "made").exists():
        return (PACKAGE.parent / "changes.diff").read_text()
    commit, diff = git("rev-parse", "HEAD"), git("diff", "HEAD", "--", str(PACKAGE))
    if commit is None or diff is None:
        return ""
    new = (
        git("ls-files", "-z", "--others", "--", str(PACKAGE)) or ""
    )  # ignored ones too: all are copied
    modules = [
        f"not in git: {path}\n"
        for path in new.split("\0")
        if path.endswith(".py") and Path(PACKAGE.parent, path).exists()
    ]
    return f"commit {commit}{diff}{''.join(modules)}"


def git(*words: str) -> str | None:
    """What git prints in the checkout that the package is of; None where it is in none, such as an installed one."""
    here = PACKAGE.parent
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "--no-pager", *words]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that a result depends on, and of `more`."""
    return {
        package: version(package) for package in ("isoflop", "torch", "lightning", "numpy", *more)
    }
