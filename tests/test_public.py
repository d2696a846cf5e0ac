"""The public surface of `import isoflop`, and the packages that each name loads."""

from __future__ import annotations

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
"""Every name, and the module that defines it.

A new or removed name is a change for users: it belongs in CHANGELOG.md.
"""


def loaded_packages(code: str) -> set[str]:
    """Return the heavy packages that a new Python has loaded after running `code`."""
    report = f"{code}\nimport sys\nprint(*{HEAVY} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_surface() -> None:
    assert sorted(isoflop.__all__) == sorted([*SURFACE, "__version__"])
    assert dir(isoflop) == sorted(isoflop.__all__)


@pytest.mark.parametrize("name", SURFACE)
def test_a_name_comes_from_its_module(name: str) -> None:
    assert getattr(isoflop, name).__module__ == SURFACE[name]


def test_a_star_import_has_all_names() -> None:
    names: dict[str, object] = {}
    exec("from isoflop import *", names)
    assert set(isoflop.__all__) <= set(names)


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
