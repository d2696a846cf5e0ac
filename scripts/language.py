"""Measure the language of the code.

    python scripts/language.py [FOLDER ...]

The measures are vague names, docstrings that begin with a question word, long lines, and functions
called `..._of`. Prints one line a measure, and with --list the location of every count.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

_VAGUE_NAMES = """
found words place places one ones part left here there mine ours own told said seen kept thing
things some what why also these those again wanted given shown due took began
"""
VAGUE_NAMES = frozenset(_VAGUE_NAMES.split())
QUESTION_WORDS = ("What", "Whether", "Where", "Which", "How", "Of", "Who", "Whose", "When")
MAX_LINE_LENGTH = 100


def vague_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of every binding of a vague name: assignments, loops, arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        else:
            continue
        if name.strip("_") in VAGUE_NAMES:
            yield node.lineno, name


def question_docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and first words of docstrings that begin with a question word or with `of`."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text and text.split()[0].rstrip(",:;.") in QUESTION_WORDS:
            yield getattr(node, "lineno", 1), text.splitlines()[0]


def preposition_functions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of functions called `..._of` or `of_...`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = node.name.strip("_")
            if name.endswith("_of") or name.startswith("of_"):
                yield node.lineno, node.name


def main() -> None:
    """Print the measures of the folders in the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", default=["isoflop"])
    parser.add_argument("--list", action="store_true", help="print every location too")
    arguments = parser.parse_args()
    files = sorted(file for folder in arguments.folders for file in Path(folder).rglob("*.py"))
    lines = docstrings = 0
    locations: dict[str, list[str]] = {"vague": [], "question": [], "of": [], "long": []}
    for file in files:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines += text.count("\n")
        docstrings += sum(
            ast.get_docstring(node) is not None
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        )
        for kind, finder in (
            ("vague", vague_names),
            ("question", question_docstrings),
            ("of", preposition_functions),
        ):
            locations[kind] += [f"{file}:{line}: {name}" for line, name in finder(tree)]
        locations["long"] += [
            f"{file}:{number}: {len(line)} characters"
            for number, line in enumerate(text.splitlines(), start=1)
            if len(line) > MAX_LINE_LENGTH
        ]
    if arguments.list:
        for kind in locations.values():
            print(*kind, sep="\n")
    print(f"{len(files)} files, {lines:,} lines")
    print(f"vague names per 1,000 lines: {1000 * len(locations['vague']) / max(lines, 1):.1f}")
    print(f"docstrings with a question word: {len(locations['question'])} of {docstrings}")
    print(f"functions called ..._of: {len(locations['of'])}")
    print(f"lines over {MAX_LINE_LENGTH} characters: {len(locations['long'])}")


if __name__ == "__main__":
    main()
