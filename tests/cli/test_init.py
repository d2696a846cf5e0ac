"""`isoflop init`: its files and its refusals."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import isoflop
from isoflop.cli import main
from isoflop.config import load_profile, shipped_sweeps
from isoflop.errors import ConfigError

SWEEPS = Path(__file__).parents[2] / "sweeps"
PROFILES = Path(__file__).parents[2] / "slurm"
Output = tuple[int, str, str]


@pytest.fixture
def init(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Output]:
    """Run `isoflop init` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def init(*arguments: str) -> Output:
        with pytest.raises(SystemExit) as stop:
            main(["init", *arguments])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return init


@pytest.mark.parametrize("name", shipped_sweeps())
def test_the_files_are_the_shipped_ones_and_plan_the_same(
    init: Callable[..., Output], name: str
) -> None:
    code, out, err = init("--from", name)
    assert (code, out) == (0, "")
    assert err == f"wrote {name}.yaml\nwrote cluster.yaml\nplan it: sweep-plan {name}.yaml\n"
    assert sorted(os.listdir()) == ["cluster.yaml", f"{name}.yaml"]
    assert Path(f"{name}.yaml").read_bytes() == (SWEEPS / f"{name}.yaml").read_bytes()
    assert Path("cluster.yaml").read_bytes() == (PROFILES / "h100.yaml").read_bytes()
    assert isoflop.plan(f"{name}.yaml").rows() == isoflop.plan(name).rows()


def test_the_default_is_soda_and_another_folder_is_made(init: Callable[..., Output]) -> None:
    code, _, err = init("my studies/first")
    assert code == 0
    assert err.endswith("plan it: sweep-plan 'my studies/first/soda.yaml'\n")
    assert sorted(os.listdir("my studies/first")) == ["cluster.yaml", "soda.yaml"]


def test_the_profile_is_complete_but_for_what_only_its_owner_knows(
    init: Callable[..., Output],
) -> None:
    init()
    with pytest.raises(ConfigError, match=r"slurm\.account: has no value yet"):
        load_profile("cluster.yaml", {"root": "/shared"})
    assert (
        load_profile("cluster.yaml", {"slurm.account": "speech", "root": "/shared"}).executor
        == "slurm"
    )


@pytest.mark.parametrize("existing", ["soda.yaml", "cluster.yaml"])
def test_files_that_are_there_stay_unless_forced(
    init: Callable[..., Output], existing: str
) -> None:
    Path(existing).write_text("mine")
    code, out, err = init()
    assert (code, out) == (2, "")
    assert (
        err == f"isoflop: error: {existing}: exists already; replace it with --force, or name "
        f"another folder\n"
    )
    assert os.listdir() == [existing]
    assert Path(existing).read_text() == "mine"
    assert init("--force")[0] == 0
    assert sorted(os.listdir()) == ["cluster.yaml", "soda.yaml"]
    assert Path(existing).read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "sdoa"], "sdoa: no shipped sweep of that name; did you mean soda? shipped: "),
        (["--from", "../soda"], "../soda: no shipped sweep of that name; "),
        (["--from", ""], ": no shipped sweep of that name; shipped: "),
        (["/dev/null/study"], "/dev/null/study: can't be written to (Not a directory)"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(
    init: Callable[..., Output], arguments: list[str], says: str
) -> None:
    code, out, err = init(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"isoflop: error: {says}")
    assert err.count("\n") == 1
    assert os.listdir() == []


def test_both_files_or_neither(
    init: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        if "cluster" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, data)

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = init()
    assert (code, err) == (2, "isoflop: error: .: can't be written to (No space left on device)\n")
    assert os.listdir() == []


def test_the_files_can_be_edited_even_where_the_package_is_read_only(
    init: Callable[..., Output],
) -> None:
    init()
    assert Path("soda.yaml").stat().st_mode & stat.S_IWUSR
    assert not Path("soda.yaml").is_symlink()
