"""The public surface of isoflop, and the packages that each name loads."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import isoflop

HEAVY = {
    "torch",
    "lightning",
    "pandas",
    "numpy",
    "scipy",
    "pyarrow",
    "matplotlib",
    "omegaconf",
    "typer",
    "rich",
}
SURFACE = {
    "IsoflopError": "isoflop.errors",
    "ModelShape": "isoflop.shapes",
    "Plan": "isoflop.planning.plan",
    "RunSpec": "isoflop.planning.run_spec",
    "compare": "isoflop.fitting.comparison",
    "fit_envelope": "isoflop.fitting.methods.envelope",
    "fit_isoflop": "isoflop.fitting.methods.isoflop",
    "fit_joint": "isoflop.fitting.methods.joint",
    "fit_parametric": "isoflop.fitting.methods.parametric",
    "load_fit": "isoflop.fitting.fitfile.read",
    "load_weights": "isoflop.training.weights",
    "plan": "isoflop.planning.plan",
    "predict": "isoflop.fitting.prediction.predict",
    "read_runs": "isoflop.runs.runs_table",
}
FITTING_SURFACE = {
    "Comparison": "isoflop.fitting.comparison",
    "EnvelopeFit": "isoflop.fitting.results.envelope_fit",
    "FitFile": "isoflop.fitting.fitfile.read",
    "IsoflopFit": "isoflop.fitting.results.isoflop_fit",
    "JointFit": "isoflop.fitting.results.joint_fit",
    "ParametricFit": "isoflop.fitting.results.parametric_fit",
    "Prediction": "isoflop.fitting.prediction.predict",
    "RunsTable": "isoflop.fitting.tables.fit_table",
    "SURFACES": "isoflop.laws",
    "StudyFits": "isoflop.fitting.study_fits",
    "Surface": "isoflop.laws",
    "compare": "isoflop.fitting.comparison",
    "fit_document": "isoflop.fitting.fitfile.write",
    "fit_envelope": "isoflop.fitting.methods.envelope",
    "fit_isoflop": "isoflop.fitting.methods.isoflop",
    "fit_joint": "isoflop.fitting.methods.joint",
    "fit_parametric": "isoflop.fitting.methods.parametric",
    "fit_study": "isoflop.fitting.study_fits",
    "load_fit": "isoflop.fitting.fitfile.read",
    "predict": "isoflop.fitting.prediction.predict",
    "read_table": "isoflop.fitting.tables.fit_table",
    "simulate_isoflop": "isoflop.fitting.simulate",
    "write_fit": "isoflop.fitting.fitfile.write",
}
RECIPES_SURFACE = {
    "BatchRule": "isoflop.recipes.rules",
    "Beta2Rule": "isoflop.recipes.rules",
    "Candidate": "isoflop.recipes.rules",
    "DropReason": "isoflop.recipes.rules",
    "Dropped": "isoflop.recipes.rules",
    "LearningRateRule": "isoflop.recipes.rules",
    "Limits": "isoflop.recipes.rules",
    "POCKET": "isoflop.recipes.shipped_recipes",
    "RECIPES": "isoflop.recipes.shipped_recipes",
    "Recipe": "isoflop.recipes.rules",
    "RecipeLike": "isoflop.recipes.rules",
    "SODA": "isoflop.recipes.shipped_recipes",
    "Unit": "isoflop.recipes.rules",
    "find_recipe": "isoflop.recipes.recipe_lookup",
    "pocket_depth": "isoflop.recipes.shipped_recipes",
    "pocket_heads": "isoflop.recipes.shipped_recipes",
    "soda_depth": "isoflop.recipes.shipped_recipes",
    "soda_heads": "isoflop.recipes.shipped_recipes",
}
SURFACES = {
    "isoflop": SURFACE,
    "isoflop.fitting": FITTING_SURFACE,
    "isoflop.recipes": RECIPES_SURFACE,
}
"""Every name of each public package, and the module that defines it.

A new or removed name is a change for users: it belongs in CHANGELOG.md.
"""
NAMES = [(package, name) for package, names in SURFACES.items() for name in names]


def loaded_packages(code: str) -> set[str]:
    """Return the heavy packages that a new Python has loaded after running `code`."""
    report = f"{code}\nimport sys\nprint(*{HEAVY} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("package", SURFACES)
def test_the_surface(package: str) -> None:
    module = importlib.import_module(package)
    own = {"__version__"} if package == "isoflop" else set[str]()
    assert sorted(module.__all__) == sorted({*SURFACES[package], *own})
    assert set(module.__all__) <= set(dir(module))


def test_dir_lists_the_surface_only() -> None:
    assert dir(isoflop) == sorted(isoflop.__all__)


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_name_comes_from_its_module(package: str, name: str) -> None:
    home = SURFACES[package][name]
    value = getattr(importlib.import_module(package), name)
    assert value is getattr(importlib.import_module(home), name)
    if inspect.isfunction(value) or inspect.isclass(value):
        assert value.__module__ == home


@pytest.mark.parametrize("package", SURFACES)
def test_a_star_import_has_all_names(package: str) -> None:
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)
    assert set(importlib.import_module(package).__all__) <= set(names)


def test_version() -> None:
    assert isoflop.__version__[0].isdecimal()


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'isoflop' has no attribute 'fit_everything'"):
        isoflop.fit_everything  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("code", "may_load"),
    [
        ("import isoflop", set[str]()),
        ("import isoflop; dir(isoflop)", set[str]()),
        ("import isoflop; isoflop.__version__", set[str]()),
        (
            "import isoflop\n"
            "isoflop.ModelShape, isoflop.RunSpec, isoflop.Plan, isoflop.IsoflopError",
            set[str](),
        ),
        ("import isoflop; isoflop.load_weights", set[str]()),
        ("import isoflop; isoflop.plan('soda')", set[str]()),
        ("import isoflop.fitting", set[str]()),
        (
            "import isoflop.fitting; isoflop.fitting.fit_isoflop, isoflop.read_runs",
            HEAVY - {"torch", "lightning", "matplotlib"},
        ),
    ],
)
def test_packages_load_on_first_use(code: str, may_load: set[str]) -> None:
    assert loaded_packages(code) <= may_load
