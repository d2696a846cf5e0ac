"""Codes of findings, read from the source: every first argument of a call of `finding`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FITTING = Path(__file__).parents[2] / "isoflop" / "fitting"


def produced_codes() -> set[str]:
    """Return every code that a fit can report.

    A code may be a constant, or a name that is bound by an assignment, by a loop or comprehension
    over a tuple, or as a parameter, whose calls in the same module are then followed.

    Raises:
        AssertionError: a code that cannot be followed to constants.
    """
    codes: set[str] = set()
    for path in sorted(FITTING.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for function in functions:
            if function.name == "finding":
                continue
            for call in _calls(function, "finding"):
                resolved = _resolve(call.args[0], function, functions)
                assert resolved, (
                    f"{path}, line {call.lineno}: cannot follow the code of this finding"
                )
                codes |= resolved
    return codes


def _calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def _resolve(
    code: ast.expr, function: ast.FunctionDef, functions: list[ast.FunctionDef]
) -> set[str]:
    """Return the constants that an expression in a function can be."""
    if isinstance(code, ast.Constant):
        return {str(code.value)}
    if isinstance(code, ast.IfExp):
        return _resolve(code.body, function, functions) | _resolve(code.orelse, function, functions)
    if not isinstance(code, ast.Name):
        return set()
    parameters = [argument.arg for argument in function.args.args]
    if code.id in parameters:
        position = parameters.index(code.id)
        return {
            constant
            for caller in functions
            for call in _calls(caller, function.name)
            for constant in _resolve(call.args[position], caller, functions)
        }
    values: list[ast.expr] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            values += [item for target in node.targets for item in _bound(target, node.value, code)]
        elif isinstance(node, ast.For | ast.comprehension):
            items = _elements(node.iter, function)
            values += [value for item in items for value in _bound(node.target, item, code)]
    return {constant for value in values for constant in _resolve(value, function, functions)}


def _elements(iterable: ast.expr, function: ast.FunctionDef) -> list[ast.expr]:
    """Return the elements of a tuple or a list, also of one that a name of the function holds."""
    if isinstance(iterable, ast.Tuple | ast.List):
        return iterable.elts
    if isinstance(iterable, ast.Name):
        return [
            element
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            for value in _bound(target, node.value, iterable)
            for element in (value.elts if isinstance(value, ast.Tuple | ast.List) else ())
        ]
    return []


def _bound(target: ast.expr, value: ast.expr, name: ast.Name) -> Iterator[ast.expr]:
    """Yield the expression that an assignment of `value` to `target` binds to a name."""
    if isinstance(target, ast.Name) and target.id == name.id:
        yield value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple | ast.List):
        for inner, item in zip(target.elts, value.elts, strict=True):
            yield from _bound(inner, item, name)
