"""The import graph has no circle; modules and constants each have one name; docstrings exist.

`make check` holds the allowed directions between rooms (`.importlinter`).
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
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


def test_no_constant_has_two_definitions() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in _constants(ast.parse(path.read_text())):
            modules[name.lstrip("_")].append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}


def _constants(module: ast.Module) -> set[str]:
    """Return the names in capitals that a module assigns, without type variables."""
    targets = [
        target
        for statement in module.body
        for target in (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [statement.target]
            if isinstance(statement, ast.AnnAssign)
            else []
        )
    ]
    nodes = (node for target in targets for node in ast.walk(target))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return {name for name in names if re.fullmatch("_?[A-Z][A-Z0-9_]+", name)}
