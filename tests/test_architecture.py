"""The import graph has no circle, no two modules have one name, and what is public is described.

`make check` holds the allowed directions between rooms (`.importlinter`).
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import isoflop

PACKAGE = Path(isoflop.__file__).parent


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Imports of all modules, those inside functions and for type checking too."""
    return grimp.build_graph("isoflop", cache_dir=None)


def test_no_circle(graph: grimp.ImportGraph) -> None:
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_two_modules_of_one_name(graph: grimp.ImportGraph) -> None:
    names = Counter(name.rpartition(".")[2] for name in graph.modules - {"isoflop"})
    assert [name for name, count in names.items() if count > 1] == []


def list_undocumented(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """Yield the public functions, methods and properties without a docstring."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from list_undocumented(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If):
            yield from list_undocumented(node.body + node.orelse, prefix)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            is_variant = "overload" in decorators or f"{node.name}.setter" in decorators
            if not (node.name.startswith("_") or is_variant or ast.get_docstring(node)):
                yield prefix + node.name


def test_public_functions_have_docstrings() -> None:
    """Interfaces (protocols) count too; special methods and functions in functions do not."""
    undocumented = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in list_undocumented(ast.parse(path.read_text(encoding="utf-8")).body, "")
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("def f(): ...", ["f"]),
        ("def f():\n    'text'", []),
        ("def _f(): ...", []),
        ("class C:\n    @property\n    def p(self): ...\n    def __init__(self): ...", ["C.p"]),
        ("class _C:\n    def m(self): ...", []),
        ("if x:\n    async def f(): ...\nelse:\n    def g(): ...", ["f", "g"]),
        ("@overload\ndef f(): ...", []),
        ("def f():\n    'text'\n    def g(): ...", []),
    ],
)
def test_undocumented_functions_are_listed(code: str, names: list[str]) -> None:
    assert list(list_undocumented(ast.parse(code).body, "")) == names
