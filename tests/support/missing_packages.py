"""Choice of the tests that run without torch, for `scripts/test_versions.py`.

Where torch is installed all tests run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib import util
from pathlib import Path

PACKAGES = (
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "tensorboard",
    "torch",
    "torchmetrics",
    "transformers",
    "wandb",
)
"""Packages that training needs, by the names of their modules."""

TESTS = Path(__file__).parents[1]
SEARCH_PATH = (TESTS.parent, TESTS, TESTS.parent / "scripts")
"""Folders with the repository's own modules, all of them on Python's path."""


@cache
def missing_packages() -> frozenset[str]:
    """Return those of `PACKAGES` that are not installed; none if torch is."""
    if util.find_spec("torch"):
        return frozenset()
    return frozenset(name for name in PACKAGES if util.find_spec(name) is None)


def find_left_out(missing: frozenset[str], tests: Path = TESTS) -> list[Path]:
    """Return the test modules that cannot be imported, or whose folder's `conftest.py` cannot."""
    return [
        path
        for path in sorted(tests.rglob("test_*.py"))
        if any(
            cannot_import(source, missing)
            for source in (path, *path.parents)
            if source.is_relative_to(tests)
        )
    ]


def cannot_import(path: Path, missing: frozenset[str]) -> bool:
    """Return whether the import of a module, or of a folder's `conftest.py`, needs a package.

    Args:
        path: module or folder.
        missing: names of the packages that are not installed.
    """
    file = path / "conftest.py" if path.is_dir() else path
    is_module = bool(missing) and file.suffix == ".py" and file.exists()
    return is_module and not missing.isdisjoint(imported_packages(file))


def imported_packages(file: Path) -> frozenset[str]:
    """Return the packages that an import of a module loads, also through the repository's own."""
    packages: set[str] = set()
    files, pending = {file}, [file]
    while pending:
        own_files, other_packages = _read_imports(pending.pop())
        packages |= other_packages
        pending += own_files - files
        files |= own_files
    return frozenset(packages)


@cache
def _read_imports(file: Path) -> tuple[frozenset[Path], frozenset[str]]:
    """Return the repository's files and the other packages that a module itself imports."""
    files: set[Path] = set()
    packages: set[str] = set()
    for name in set(_imported_names(ast.parse(file.read_text(encoding="utf-8")).body)):
        own_files = _find_files(name)
        files |= own_files
        if not own_files:
            packages.add(name.partition(".")[0])
    return frozenset(files), frozenset(packages)


def _imported_names(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the dotted names that statements import when a module is loaded.

    Functions are not called then, and `TYPE_CHECKING` is false. A name that is imported from a
    module may be a module itself.
    """
    for statement in body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.module, "relative imports are not followed"
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            yield from _imported_names(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _imported_names(getattr(statement, field, []))


def _find_files(name: str) -> set[Path]:
    """Return the repository's files that an import of a dotted name loads."""
    parts = name.split(".")
    modules = [
        folder.joinpath(*parts[:length])
        for folder in SEARCH_PATH
        for length in range(1, len(parts) + 1)
    ]
    return {
        file
        for module in modules
        for file in (module / "__init__.py", module.with_suffix(".py"))
        if file.exists()
    }


def find_missing(error: BaseException | None, missing: frozenset[str]) -> str | None:
    """Return the missing package that an error, or its stated cause, is about; None without one."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").partition(".")[0]
            if package in missing:
                return package
        error = error.__cause__
    return None
