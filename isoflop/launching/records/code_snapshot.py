"""Code snapshot of a study: a copy of the package, so that edits do not change queued runs."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import uuid
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
"""Folder of the package `isoflop`."""

RECORDED_PACKAGES = ("isoflop", "torch", "lightning", "pytorch-lightning", "numpy")

CODE_SUFFIXES = (".py", ".pyi")


def snapshot_code(directory: Path, *, renew: bool = False) -> tuple[Path, bool]:
    """Return the folder from which a study's jobs import `isoflop`, and whether it is outdated.

    It is copied at the first submission and not changed afterwards: all runs of a study have the
    same code. It is outdated if it differs from the current code.

    Args:
        directory: the sweep's directory.
        renew: copy the current code, for all unfinished runs.

    Raises:
        OSError: the copy failed, such as on a full disk.
    """
    folder, digest = directory / "code", _digest()
    newest = _newest_copy(folder)
    if newest is not None and not renew:
        return newest, newest.name != digest
    copy = folder / digest
    if not (copy / "made").exists():
        partial = folder / f".{digest}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            shutil.copytree(PACKAGE, partial / "isoflop", ignore=_ignored)
            (partial / "changes.diff").write_text(_changes())
            (partial / "made").touch()
            os.rename(partial, copy)
        except OSError as problem:
            shutil.rmtree(partial, ignore_errors=True)
            if not (copy / "made").exists():  # else another process was faster
                raise _system_error(problem, folder) from None
    else:
        os.utime(copy / "made")
    return copy, False


def _ignored(folder: str, names: list[str]) -> set[str]:
    """Return names not to copy: caches and broken links, such as an editor's lock of a file."""
    return {name for name in names if name == "__pycache__" or not Path(folder, name).exists()}


def _system_error(problem: OSError, folder: Path) -> OSError:
    """Return the operating system's error behind an error of `shutil.copytree`."""
    if not isinstance(problem, shutil.Error):
        return problem
    text = str(problem)
    code = next(
        (code for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES) if os.strerror(code) in text),
        errno.EIO,
    )
    return OSError(code, os.strerror(code), str(folder))


def describe_code_difference(directory: Path) -> str | None:
    """Return a warning if a study's code differs from the current code, else None.

    Args:
        directory: the sweep's directory.
    """
    copy = _newest_copy(directory / "code")
    if copy is None or copy.name == _digest():
        return None
    snapshot = _describe((copy / "changes.diff").read_text(), copy.name)
    current = _describe(_changes(), _digest())
    return (
        f"new and queued runs use the study's code, {snapshot}, not the current code, {current}; "
        "--new-code selects the current code"
    )


def find_commit(code: Path | None = None) -> str | None:
    """Return the commit of a study's code or of the current code, with `-dirty` if it was changed.

    Args:
        code: a folder returned by `snapshot_code`; None for the current code.
    """
    commit, changed = _parse_changes(
        _changes() if code is None else (code / "changes.diff").read_text()
    )
    return f"{commit}-dirty" if commit and changed else commit or None


def _newest_copy(folder: Path) -> Path | None:
    """Return the newest copy of the code; None without one."""
    made = sorted(folder.glob("[!.]*/made"), key=lambda path: path.stat().st_mtime)
    return made[-1].parent if made else None


def _describe(changes: str, digest: str) -> str:
    """Describe code by its `changes.diff` and hash, as `commit 0a1b2c3 with changes (1a2b3c4)`."""
    commit, changed = _parse_changes(changes)
    if not commit:
        return f"an installed version ({digest[:7]})"
    return f"commit {commit[:7]}{f' with changes ({digest[:7]})' if changed else ''}"


def _parse_changes(changes: str) -> tuple[str, bool]:
    """Return the commit at the start of a `changes.diff`, and whether changes follow."""
    commit, _, diff = changes.partition("\n")
    return commit.removeprefix("commit "), bool(diff.strip())


def _digest() -> str:
    """Return a hash of the package's Python files and stubs, by name and content."""
    digest = hashlib.sha256()
    files = [path for path in PACKAGE.rglob("*.py*") if path.suffix in CODE_SUFFIXES]
    for path in sorted(path for path in files if path.exists()):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _changes() -> str:
    """Return the package's commit and the changes since; empty outside a checkout.

    In a job the package is a study's copy, with these changes in a file beside it.
    """
    if (PACKAGE.parent / "made").exists():
        return (PACKAGE.parent / "changes.diff").read_text()
    commit, diff = git("rev-parse", "HEAD"), git("diff", "HEAD", "--", str(PACKAGE))
    if commit is None or diff is None:
        return ""
    # Untracked modules, ignored ones too: all are copied.
    untracked = git("ls-files", "-z", "--others", "--", str(PACKAGE)) or ""
    modules = [
        f"not in git: {path}\n"
        for path in untracked.split("\0")
        if path.endswith(CODE_SUFFIXES) and Path(PACKAGE.parent, path).exists()
    ]
    return f"commit {commit}{diff}{''.join(modules)}"


def git(*arguments: str) -> str | None:
    """Return git's output in the package's checkout; None without one, or if git fails."""
    checkout = PACKAGE.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "--no-pager", *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def versions(*more: str) -> dict[str, str]:
    """Return versions of isoflop, of packages that affect results, and of `more`."""
    return {package: _version(package) for package in (*RECORDED_PACKAGES, *more)}


_version = cache(version)  # it parses a package's metadata at each call
