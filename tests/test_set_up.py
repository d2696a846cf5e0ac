"""Set-up's choice of torch, as a table of machines; and what it says when it stops. No network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import set_up
from set_up import (
    Build,
    SetUpError,
    Way,
    build_of,
    choose,
    constraints,
    digest,
    explain,
    is_recent,
    pinned_torch,
    ways,
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


# Where torch comes from. A place offers a CPU build, a CUDA build or, offline, nothing.


@pytest.mark.parametrize(
    ("gpu", "uv", "offers", "taken"),
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
def test_the_place_taken(
    gpu: bool, uv: tuple[str, ...] | None, offers: dict[str, Build], taken: str
) -> None:
    assert choose(ways(gpu, "torch==2.13.0", PIP, uv), offering(offers), gpu).name == taken


@pytest.mark.parametrize(
    ("gpu", "offers", "says"),
    [
        (
            False,
            {"pip's index": Build.CUDA},
            "only builds of torch for CUDA (several GB) were found, and this machine has no NVIDIA GPU; "
            "to take one all the same: .venv/bin/python -m pip install torch==2.13.0 && make setup",
        ),
        (False, {}, f"no torch==2.13.0 was found: {OFFLINE}"),
        (True, {}, f"no torch==2.13.0 was found: {OFFLINE}"),
    ],
)
def test_it_stops_rather_than_take_another(gpu: bool, offers: dict[str, Build], says: str) -> None:
    with pytest.raises(SetUpError) as problem:
        choose(ways(gpu, "torch==2.13.0", PIP), offering(offers), gpu)
    assert str(problem.value) == says


def offering(offers: dict[str, Build]):
    def look(way: Way) -> Build:
        if way.name not in offers:
            raise SetUpError(OFFLINE)
        return offers[way.name]

    return look


def test_looking_fetches_nothing_and_taking_is_the_same_request() -> None:
    for way in [*ways(False, "torch==2.13.0", PIP), *ways(True, "torch==2.13.0", PIP, UV)]:
        assert "--dry-run" in way.look
        assert "--dry-run" not in way.take
        assert set(way.take) <= set(way.look)
    first = ways(False, "torch==2.13.0", PIP)[0]
    assert " ".join(first.take) == (
        "python -m pip install --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0"
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
def test_what_a_wheel_is_built_for(version: str, requirements: list[str], build: Build) -> None:
    assert build_of(version, requirements) is build


def test_needs_of_linux_do_not_count_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_up.sys, "platform", "darwin")
    assert build_of("2.13.0", FULL) is Build.CPU


@pytest.mark.parametrize(
    ("version", "recent"),
    [(None, False), ("", False), ("2.9.1", False), ("2.10.0+cpu", False), ("2.11.0", True), ("2.13.0+cpu", True),
     ("3.0", True), ("dev", False)],
)  # fmt: skip
def test_a_torch_is_kept_from_2_11(version: str | None, recent: bool) -> None:
    assert is_recent(version, set_up.OLDEST_TORCH) is recent


# What is installed beside it


def test_nothing_replaces_the_torch_that_is_there() -> None:
    pinned = (ROOT / "constraints.txt").read_text()
    held = constraints(pinned, "2.11.0+cu130").splitlines()
    assert [line for line in held if "torch" in line] == ["torch==2.11.0+cu130"]
    assert len(held) == len(pinned.splitlines())
    assert is_recent(pinned_torch(pinned).partition("==")[2], set_up.OLDEST_TORCH)


def test_every_direct_need_is_pinned() -> None:
    project = set_up.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [
        *project["dependencies"],
        *(need for extra in project["optional-dependencies"].values() for need in extra),
    ]
    names = {set_up.re.split(r"[\[<>=~! ]", need)[0] for need in needs}
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all("==" in line for line in pins)
    assert names | {"pip"} == {line.partition("==")[0] for line in pins}


def test_set_up_has_something_to_do_when_needs_pins_python_or_folder_change() -> None:
    project = {"project": {"dependencies": ["torch"]}, "build-system": {}, "tool": {"ruff": {}}}
    same = digest(project, "torch==2.13.0", "/here 3.11")
    assert digest({**project, "tool": {}}, "torch==2.13.0", "/here 3.11") == same
    changed = [
        digest({**project, "project": {}}, "torch==2.13.0", "/here 3.11"),
        digest(project, "torch==2.14.0", "/here 3.11"),
        digest(project, "torch==2.13.0", "/there 3.11"),
    ]
    assert len({same, *changed}) == 4


@pytest.mark.parametrize("way", ["-c", "beside.py"])
def test_a_clone_beside_a_script_is_not_what_it_imports(tmp_path: Path, way: str) -> None:
    (tmp_path / "isoflop" / "isoflop").mkdir(
        parents=True
    )  # as a clone looks from the folder that holds it
    (tmp_path / "beside.py").write_text(asks := "import isoflop; print(isoflop.plan.__module__)")
    words = [set_up.sys.executable, way, *([asks] if way == "-c" else [])]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "isoflop.planning.plan\n", done.stderr


# What it says


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        ("WARNING: Retrying after NewConnectionError('[Errno -2] Name or service not known')\nERROR: x", OFFLINE),
        ("error: Failed to fetch\n  Caused by: dns error: failed to lookup", OFFLINE),
        ("ERROR: Could not install packages: [Errno 28] No space left on device\n", "the disk is full"),
        ("WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution found for torch==9.0\n",
         "ERROR: No matching distribution found for torch==9.0"),
        ("Traceback\nKeyError: 'name'\n", "KeyError: 'name'"),
        ("", "no reason was given"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line(errors: str, says: str) -> None:
    assert explain(errors) == says
