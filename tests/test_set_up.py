"""Set-up's choice of torch, as a table of machines, and its error messages. No network."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import set_up
from set_up import (
    Build,
    SetUpError,
    TorchSource,
    choose_source,
    constraints,
    detect_build,
    digest,
    explain,
    is_recent,
    list_sources,
    pinned_torch,
)

ROOT = Path(__file__).parents[1]
OFFLINE = (
    "no package index could be reached; check the network and pip's settings (pip config list)"
)
PIP, UV = ("python", "-m", "pip"), ("uv",)
FULL = [
    "filelock",
    "jinja2",
    'nvidia-cudnn-cu13==9.26.0.51; platform_system == "Linux"',
    "triton~=3.9.0",
]
LEAN = ["filelock", "jinja2", 'optree>=0.13.0; extra == "optree"', 'nvidia-extra; extra == "more"']


# Sources of torch: each offers a CPU build, a CUDA build or, offline, nothing.


@pytest.mark.parametrize(
    ("gpu", "uv", "offers", "chosen"),
    [
        (False, None, {"PyTorch's index": Build.CPU, "pip's index": Build.CUDA}, "PyTorch's index"),
        (False, None, {"pip's index": Build.CPU}, "pip's index"),
        (False, None, {"PyTorch's index": Build.CUDA, "pip's index": Build.CPU}, "pip's index"),
        (False, UV, {"uv": Build.CUDA, "pip's index": Build.CPU}, "pip's index"),
        (True, UV, {"uv": Build.CUDA, "pip's index": Build.CUDA}, "uv"),
        (True, UV, {"pip's index": Build.CUDA}, "pip's index"),
        (True, None, {"pip's index": Build.CUDA}, "pip's index"),
        (True, None, {"pip's index": Build.CPU}, "pip's index"),
    ],
)
def test_the_chosen_source(
    gpu: bool, uv: tuple[str, ...] | None, offers: dict[str, Build], chosen: str
) -> None:
    sources = list_sources(gpu, "torch==2.13.0", PIP, uv)
    assert choose_source(sources, make_probe(offers), gpu).name == chosen


@pytest.mark.parametrize(
    ("gpu", "offers", "message"),
    [
        (
            False,
            {"pip's index": Build.CUDA},
            "only CUDA builds of torch (several GB) are available, and this machine has no "
            "NVIDIA GPU; to install one anyway: "
            ".venv/bin/python -m pip install torch==2.13.0 && make setup",
        ),
        (False, {}, f"no torch==2.13.0 is available: {OFFLINE}"),
        (True, {}, f"no torch==2.13.0 is available: {OFFLINE}"),
    ],
)
def test_set_up_stops_without_a_suitable_torch(
    gpu: bool, offers: dict[str, Build], message: str
) -> None:
    with pytest.raises(SetUpError) as problem:
        choose_source(list_sources(gpu, "torch==2.13.0", PIP), make_probe(offers), gpu)
    assert str(problem.value) == message


def make_probe(offers: dict[str, Build]) -> Callable[[TorchSource], Build]:
    """Return a probe of simulated sources; one without an offer is offline."""

    def probe(source: TorchSource) -> Build:
        if source.name not in offers:
            raise SetUpError(OFFLINE)
        return offers[source.name]

    return probe


def test_a_probe_is_the_dry_run_of_the_installation() -> None:
    without_gpu = list_sources(False, "torch==2.13.0", PIP)
    for source in [*without_gpu, *list_sources(True, "torch==2.13.0", PIP, UV)]:
        assert "--dry-run" in source.probe
        assert "--dry-run" not in source.install
        assert set(source.install) <= set(source.probe)
    assert " ".join(without_gpu[0].install) == (
        "python -m pip install --no-compile --no-deps "
        "--index-url https://download.pytorch.org/whl/cpu torch==2.13.0"
    )


@pytest.mark.parametrize(
    ("version", "requirements", "build"),
    [
        ("2.13.0+cpu", LEAN, Build.CPU),
        ("2.13.0", LEAN, Build.CPU),
        ("2.13.0", FULL, Build.CUDA),
        ("2.15.0", ['cuda-toolkit[cublas]==13.2.2; platform_system == "Linux"'], Build.CUDA),
        ("2.13.0+cu126", [], Build.CUDA),
        ("2.13.0+rocm7.0", [], Build.CUDA),  # several GB as well
    ],
)
def test_the_build_of_a_wheel(version: str, requirements: list[str], build: Build) -> None:
    assert detect_build(version, requirements) is build


def test_requirements_on_linux_do_not_count_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_up.sys, "platform", "darwin")
    assert detect_build("2.13.0", FULL) is Build.CPU


@pytest.mark.parametrize(
    ("version", "recent"),
    [
        (None, False),
        ("", False),
        ("2.9.1", False),
        ("2.10.0+cpu", False),
        ("2.11.0", True),
        ("2.13.0+cpu", True),
        ("3.0", True),
        ("dev", False),
    ],
)
def test_a_torch_is_kept_from_2_11(version: str | None, recent: bool) -> None:
    assert is_recent(version, set_up.OLDEST_TORCH) is recent


# Packages installed beside it


def test_nothing_replaces_an_installed_torch() -> None:
    pinned = (ROOT / "constraints.txt").read_text()
    held = constraints(pinned, "2.11.0+cu130").splitlines()
    assert [line for line in held if line.startswith("torch=")] == ["torch==2.11.0+cu130"]
    assert len(held) == len(pinned.splitlines())
    assert is_recent(pinned_torch(pinned).partition("==")[2], set_up.OLDEST_TORCH)


def test_every_direct_dependency_is_pinned() -> None:
    project = set_up.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(item for extra in extras for item in extra)]
    names = {set_up.re.split(r"[\[<>=~! ]", item)[0] for item in requirements}
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all("==" in line for line in pins)
    assert names | {"pip"} == {line.partition("==")[0] for line in pins}


def test_set_up_runs_again_after_changes_of_dependencies_pins_python_or_folder() -> None:
    project = {"project": {"dependencies": ["torch"]}, "build-system": {}, "tool": {"ruff": {}}}
    same = digest(project, "torch==2.13.0", "/here 3.11")
    assert digest({**project, "tool": {}}, "torch==2.13.0", "/here 3.11") == same
    changed = [
        digest({**project, "project": {}}, "torch==2.13.0", "/here 3.11"),
        digest(project, "torch==2.14.0", "/here 3.11"),
        digest(project, "torch==2.13.0", "/there 3.11"),
    ]
    assert len({same, *changed}) == 4


@pytest.mark.parametrize("start", ["-c", "beside.py"])
def test_a_clone_beside_a_script_does_not_hide_the_package(tmp_path: Path, start: str) -> None:
    (tmp_path / "isoflop" / "isoflop").mkdir(parents=True)  # like a clone in the script's folder
    program = "import isoflop; print(isoflop.plan.__module__)"
    (tmp_path / "beside.py").write_text(program)
    command = [set_up.sys.executable, start, *([program] if start == "-c" else [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "isoflop.planning.plan\n", done.stderr


# Messages


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        (
            "WARNING: Retrying after NewConnectionError("
            "'[Errno -2] Name or service not known')\nERROR: x",
            OFFLINE,
        ),
        ("error: Failed to fetch\n  Caused by: dns error: failed to lookup", OFFLINE),
        (
            "ERROR: Could not install packages: [Errno 28] No space left on device\n",
            "the disk is full",
        ),
        (
            "WARNING: x\nERROR: Could not find a version\n"
            "ERROR: No matching distribution found for torch==9.0\n",
            "ERROR: No matching distribution found for torch==9.0",
        ),
        ("Traceback\nKeyError: 'name'\n", "KeyError: 'name'"),
        ("", "no reason was given"),
    ],
)
def test_a_failure_is_one_line(errors: str, message: str) -> None:
    assert explain(errors) == message
