"""English text that comes with every Python: the documentation in its standard library."""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "__pycache__",
}
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[,;:]?")
SENTENCE = re.compile(r"[A-Z].*[.!?]")

BLOCK_FIELDS = ("cases", "body", "handlers", "orelse", "finalbody")
"""Fields of statements that hold other statements, in the order of `ast`."""


def sentences() -> list[str]:
    """Return distinct sentences of plain words, in an order that is fixed for one Python.

    Python 3.11 has 8,752 sentences with 580,000 characters.
    """
    distinct: dict[str, None] = {}
    for text in _docstrings():
        for sentence in _speakable(text):
            distinct.setdefault(sentence)
    return list(distinct)


def _docstrings() -> Iterator[str]:
    for path in _list_modules(Path(sysconfig.get_paths()["stdlib"])):
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError, OSError):  # a template, another encoding, a dead link
            continue
        for node in _walk_statements(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""
    yield from _topics()


def _list_modules(root: Path) -> list[Path]:
    modules = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = set(subfolders) - SKIPPED_FOLDERS
        modules += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(modules)


def _walk_statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield a module and its statements in the order of `ast.walk`, without the expressions."""
    nodes: deque[ast.AST] = deque([tree])
    while nodes:
        node = nodes.popleft()
        yield node
        for block in BLOCK_FIELDS:
            nodes.extend(getattr(node, block, ()))


def _topics() -> Iterator[str]:
    """Yield the language reference of `help()`; some Linux distributions leave it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name in sorted(topics):
        yield topics[name]


def _speakable(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph:
            continue
        plain = re.sub(r"\s+", " ", re.sub(r"[`*\"]+", "", paragraph)).strip()
        for sentence in re.split(r"(?<=[.!?])\s+", plain):
            tokens = sentence[:-1].split()
            if (
                4 <= len(tokens) <= 30
                and SENTENCE.fullmatch(sentence)
                and all(map(WORD.fullmatch, tokens))
            ):
                yield sentence
