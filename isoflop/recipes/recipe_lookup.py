"""Lookup of a recipe by the name in a sweep: a shipped one, or an attribute of a module."""

from __future__ import annotations

import difflib
from importlib import import_module

from isoflop.errors import ConfigError
from isoflop.recipes.rules import RecipeLike
from isoflop.recipes.shipped_recipes import RECIPES


def find_recipe(name: str) -> RecipeLike:
    """Return a shipped recipe by name, or a lab's own as `package.module:attribute`.

    Raises:
        ConfigError: an unknown name, or an attribute that can't be imported or is no recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    if ":" not in name:
        nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)
        hint = f"did you mean {nearest[0]}?" if nearest else f"use one of {', '.join(RECIPES)}"
        raise ConfigError(
            f"recipe {name!r} is not known; {hint} (or module:attribute for your own recipe)"
        )
    module_name, _, attribute = name.partition(":")
    try:
        module = import_module(module_name)
        recipe = getattr(module, attribute, None)
    except Exception as problem:  # an import of a lab's module may raise anything
        is_absent = (
            isinstance(problem, ModuleNotFoundError)
            and problem.name == module_name.partition(".")[0]
        )
        fix = (
            "; is its folder installed or on PYTHONPATH? If not: export PYTHONPATH=FOLDER"
            if is_absent
            else ""
        )
        raise ConfigError(f"recipe {name!r} can't be imported ({problem}){fix}") from problem
    if recipe is None:
        names = [key for key, value in vars(module).items() if _is_recipe(value)]
        fix = (
            f"it has {', '.join(names)}"
            if names
            else "define it there: an object with name, version, shape and solve"
        )
        raise ConfigError(f"recipe {name!r}: {module_name} has no {attribute!r}; {fix}")
    if not _is_recipe(recipe):
        raise ConfigError(f"recipe {name!r} is no recipe: it needs name, version, shape and solve")
    return recipe


def _is_recipe(value: object) -> bool:
    return not isinstance(value, type) and isinstance(value, RecipeLike)
