"""Recipes by name: shipped ones, and a user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.errors import ConfigError
from isoflop.recipes import RECIPES, SODA, RecipeLike, find_recipe


def test_recipes_are_found_by_name() -> None:
    assert find_recipe("soda") is SODA
    assert all(isinstance(recipe, RecipeLike) for recipe in RECIPES.values())


def test_a_recipe_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_recipes.py").write_text(
        "import dataclasses\n"
        "from isoflop.recipes import SODA\n"
        "deep = dataclasses.replace(\n"
        "    SODA, name='deep', version=3, depth=lambda width: width // 32\n"
        ")\n"
        "nothing = 3\n"
    )
    (tmp_path / "broken_recipes.py").write_text("1 / 0\n")
    (tmp_path / "needy_recipes.py").write_text("import absent_library\n")
    (tmp_path / "empty_recipes.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    deep = find_recipe("lab_recipes:deep")
    assert (deep.name, deep.version, deep.shape(256, 1000, 128).layers) == ("deep", 3, 8)
    for name, reason in [
        ("lab_recipes:nothing", "is no recipe: it needs name, version, shape and solve"),
        (
            "lab_recipes:missing",
            "^recipe 'lab_recipes:missing': lab_recipes has no 'missing'; it has SODA, deep$",
        ),
        (
            "empty_recipes:deep",
            "empty_recipes has no 'deep'; define it there: an object with name, version, shape and",
        ),
        ("broken_recipes:deep", r"can't be imported \(division by zero\)$"),
        ("needy_recipes:deep", r"can't be imported \(No module named 'absent_library'\)$"),
        (
            "absent_recipes:deep",
            r"can't be imported \(.*\); is its folder .* If not: export PYTHONPATH=FOLDER$",
        ),
        ("absent_recipes.more:deep", "If not: export PYTHONPATH=FOLDER$"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            find_recipe(name)


@pytest.mark.parametrize(("name", "nearest"), [("sodaa", "soda"), ("poket", "pocket")])
def test_an_unknown_recipe_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe '{name}' is not known; did you mean {nearest}?"):
        find_recipe(name)
