"""Tests that run without torch: the choice of modules and of errors."""

from __future__ import annotations

from collections.abc import Collection
from importlib import util
from importlib.metadata import version
from pathlib import Path

import pytest
from support import missing_packages
from support.missing_packages import PACKAGES, cannot_import, find_left_out, find_missing

TORCH = frozenset({"torch"})
TREE = {
    "test_direct.py": "import torch.nn\n",
    "test_name.py": "from torch import nn\n",
    "test_class.py": "class A:\n    try:\n        import torch\n    finally:\n        pass\n",
    "test_helper.py": "from support import trains\n",
    "test_helper_of_helper.py": "import support.starts\n",
    "support/trains.py": "import torch\n",
    "support/starts.py": "from support.trains import train\n",
    "folder/conftest.py": "import torch\n",
    "folder/test_plain.py": "import json\n",
    "test_plain.py": "import numpy, torchless\nfrom support.late import train\n",
    "test_types.py": "if TYPE_CHECKING:\n    import torch\nelse:\n    import json\n",
    "support/late.py": "def train():\n    import torch\n",
}
LEFT_OUT = [
    "folder/test_plain.py",
    "test_class.py",
    "test_direct.py",
    "test_helper.py",
    "test_helper_of_helper.py",
    "test_name.py",
]


def test_modules_that_import_torch_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing_packages, "SEARCH_PATH", (tmp_path,))
    for name, text in TREE.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    left_out = find_left_out(TORCH, tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in left_out] == LEFT_OUT
    assert cannot_import(tmp_path / "folder", TORCH)
    assert not cannot_import(tmp_path / "support", TORCH)
    assert find_left_out(frozenset(), tmp_path) == []


@pytest.mark.parametrize(
    ("installed", "missing"), [(["torch"], []), (["wandb"], {*PACKAGES} - {"wandb"})]
)
def test_no_package_counts_as_missing_with_torch(
    installed: list[str], missing: Collection[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: name if name in installed else None)
    assert missing_packages.missing_packages.__wrapped__() == frozenset(missing)


def test_errors_for_want_of_torch() -> None:
    missing = ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    assert find_missing(missing, TORCH) == "torch"
    assert find_missing(missing, frozenset()) is None
    assert find_missing(ModuleNotFoundError(name="torchless"), TORCH) is None
    assert find_missing(None, TORCH) is None
    caused, during = ValueError(), AssertionError()
    caused.__cause__, during.__context__ = missing, missing
    assert find_missing(caused, TORCH) == "torch"
    assert find_missing(during, TORCH) is None


def test_a_missing_version_is_an_error_for_want_of_its_package() -> None:
    with pytest.raises(ModuleNotFoundError) as problem:
        version("isoflop-absent")
    assert find_missing(problem.value, frozenset({"isoflop-absent"})) == "isoflop-absent"
