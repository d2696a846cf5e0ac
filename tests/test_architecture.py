"""The import graph has no circle, and no two modules have one name.

`make check` holds the allowed directions between rooms (`.importlinter`).
"""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest


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
