"""Code snapshot of a study: copied once, unchanged by edits, renewed on request."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.launching.records import code_snapshot as snapshot
from isoflop.launching.records.code_snapshot import (
    describe_code_difference,
    find_commit,
    snapshot_code,
)

AT_ONCE = """
import sys
from pathlib import Path
from isoflop.launching.records import code_snapshot as snapshot

rename = snapshot.os.rename

def slowly(partial, copy):
    print("copied", flush=True)
    sys.stdin.readline()
    rename(partial, copy)

snapshot.PACKAGE, snapshot.os.rename = Path(sys.argv[1]), slowly
print(*snapshot.snapshot_code(Path(sys.argv[2])))
"""
"""Program that copies, reports it, and continues after a line of input."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace isoflop by a small package with the other files of a checkout."""
    package = tmp_path / "tree" / "isoflop"
    for name, text in (
        ("__init__.py", ""),
        ("answer.py", "print(1)\n"),
        ("shipped/soda.yaml", "a: 1\n"),
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "answer.cpython-39.pyc").write_bytes(b"stale")
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    return package


def says(code: Path) -> str:
    """Return the output of the copy's module, imported as in a job."""
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "isoflop.answer"],
        cwd=code.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_study_keeps_the_code_of_its_first_submission(package: Path, tmp_path: Path) -> None:
    code, differs = snapshot_code(tmp_path / "study")
    assert not differs
    before = content(code)
    files = {"isoflop/__init__.py", "isoflop/answer.py", "isoflop/shipped/soda.yaml"}
    assert before.keys() == {"made", "changes.diff", *files}
    assert snapshot_code(tmp_path / "study") == (code, False)
    (package / "answer.py").write_text("print(2)\n")
    assert snapshot_code(tmp_path / "study") == (code, True)
    assert content(code) == before
    assert says(code) == "1"
    other, differs = snapshot_code(tmp_path / "other")
    assert (says(other), differs) == ("2", False)


@pytest.mark.parametrize(
    "name",
    ["answer.py", "more/new.py", "more/__init__.pyi"],
    ids=["a module that was changed", "a module that was added", "a stub that lists names"],
)
def test_any_change_of_the_code_is_seen(package: Path, tmp_path: Path, name: str) -> None:
    code, _ = snapshot_code(tmp_path)
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text("print(3)\n")
    assert snapshot_code(tmp_path) == (code, True)


def checkout(package: Path, message: str) -> str:
    """Commit the package in its own checkout; return the commit's first seven digits."""
    tree = ["git", "-C", str(package.parent), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", message]):
        subprocess.run([*tree, *arguments], check=True)
    done = subprocess.run([*tree, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout[:7]


def test_other_code_than_the_study_s_is_said_with_both_commits(
    package: Path, tmp_path: Path
) -> None:
    assert describe_code_difference(tmp_path) is None
    first = checkout(package, "first")
    snapshot_code(tmp_path)
    assert describe_code_difference(tmp_path) is None
    (package / "answer.py").write_text("print(2)\n")
    says = (
        "new and queued runs use the study's code, commit {}, not the current code, commit {}; "
        "--new-code selects the current code"
    )
    assert describe_code_difference(tmp_path) == says.format(
        first, f"{first} with changes ({digest()})"
    )
    second = checkout(package, "second")
    assert describe_code_difference(tmp_path) == says.format(first, second)
    assert first != second
    snapshot_code(tmp_path, renew=True)
    assert describe_code_difference(tmp_path) is None
    (package / "answer.py").write_text("print(3)\n")
    snapshot_code(tmp_path, renew=True)
    third = digest()
    (package / "answer.py").write_text("print(4)\n")
    assert describe_code_difference(tmp_path) == says.format(
        f"{second} with changes ({third})", f"{second} with changes ({digest()})"
    )
    assert third != digest()


def digest() -> str:
    return snapshot._digest()[:7]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_module_that_is_not_in_git_is_a_change_too(
    package: Path, tmp_path: Path, ignored: bool
) -> None:
    (package / ".gitignore").write_text("mine.py\n" if ignored else "")
    commit = checkout(package, "first")
    snapshot_code(tmp_path)
    assert (find_commit() or "")[:7] == commit
    (package / "notes.txt").touch()
    assert "-dirty" not in (find_commit() or "")
    (package / "mine.py").touch()
    assert re.fullmatch(rf"{commit}[0-9a-f]{{33}}-dirty", find_commit() or "")
    assert f"commit {commit}, not the current code, commit {commit} with changes ({digest()});" in (
        describe_code_difference(tmp_path) or ""
    )
    code, _ = snapshot_code(tmp_path, renew=True)
    assert (code / "changes.diff").read_text().splitlines()[1:] == ["not in git: isoflop/mine.py"]


def test_the_commit_of_a_study_s_code_is_known_wherever_it_is(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_commit() is None
    checkout(package, "first")
    clean = find_commit()
    code, _ = snapshot_code(tmp_path)
    (package / "answer.py").write_text("print(2)\n")
    assert (find_commit(), find_commit(code)) == (f"{clean}-dirty", clean)
    monkeypatch.setattr(snapshot, "PACKAGE", code / "isoflop")  # as in a job
    assert find_commit() == clean
    assert describe_code_difference(tmp_path) is None


def test_outside_of_a_checkout_code_has_no_commit(package: Path, tmp_path: Path) -> None:
    snapshot_code(tmp_path)
    (package / "answer.py").write_text("print(2)\n")
    version = r"an installed version"
    says = (
        rf".* code, {version} \((\w{{7}})\), not the current code, {version} \((?!\1)\w{{7}}\); .*"
    )
    assert re.fullmatch(says, describe_code_difference(tmp_path) or "")


def test_what_is_not_code_changes_nothing(package: Path, tmp_path: Path) -> None:
    code, _ = snapshot_code(tmp_path)
    (package / "__pycache__" / "other.cpython-39.pyc").write_bytes(b"also stale")
    (package / "answer.py").touch()
    assert snapshot_code(tmp_path) == (code, False)


@pytest.mark.parametrize("name", [".#answer.py", ".#soda.yaml", "shipped/gone"])
def test_a_link_that_leads_nowhere_is_no_code(package: Path, tmp_path: Path, name: str) -> None:
    """Emacs locks an open, unsaved file by such a link."""
    commit = checkout(package, "first")
    (package / "also.yaml").symlink_to("shipped/soda.yaml")
    before = digest()
    (package / name).symlink_to("somebody@login1.4711:1")
    code, _ = snapshot_code(tmp_path / "study")
    assert content(code).keys() >= {"isoflop/answer.py", "isoflop/also.yaml"}
    assert f"isoflop/{name}" not in content(code)
    assert not (code / "isoflop" / name).is_symlink()
    assert (digest(), (find_commit() or "")[:7], "-dirty" in (find_commit() or "")) == (
        before,
        commit,
        False,
    )


def test_it_is_renewed_when_asked_and_then_kept(package: Path, tmp_path: Path) -> None:
    first, _ = snapshot_code(tmp_path)
    (package / "answer.py").write_text("print(2)\n")
    second, differs = snapshot_code(tmp_path, renew=True)
    assert (says(first), says(second), differs) == ("1", "2", False)
    assert snapshot_code(tmp_path) == (second, False)
    (package / "answer.py").write_text("print(1)\n")
    assert snapshot_code(tmp_path) == (second, True)
    assert snapshot_code(tmp_path, renew=True) == (
        first,
        False,
    )  # the old copy is used again
    assert snapshot_code(tmp_path) == (first, False)


@pytest.mark.parametrize("names", [("isoflop/__init__.py",), ("isoflop/__init__.py", "made")])
def test_a_copy_that_was_killed_before_it_had_its_name_does_not_count(
    package: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    whole, _ = snapshot_code(tmp_path / "other")
    half = tmp_path / "study" / "code" / f".{whole.name}.0a1b2c3d.tmp"
    for name in names:
        (half / name).parent.mkdir(parents=True, exist_ok=True)
        (half / name).touch()
    code, differs = snapshot_code(tmp_path / "study")
    assert (code.name, differs) == (whole.name, False)
    assert content(code) == content(whole)


def test_two_at_once_make_one_copy(package: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", AT_ONCE, str(package), str(tmp_path / "study")]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first = [process.stdout.readline() for process in both if process.stdout]
    outputs = {process.communicate("go\n")[0] for process in both}
    assert first == ["copied\n"] * 2
    code, differs = snapshot_code(tmp_path / "study")
    assert (outputs, differs) == ({f"{code} False\n"}, False)
    assert says(code) == "1"
    assert list((tmp_path / "study" / "code").iterdir()) == [code]


def test_on_a_full_disk_there_is_no_copy_and_one_line(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise shutil.Error([("a.py", "b.py", "[Errno 28] No space left on device: 'b.py'")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left on device") as problem:
        snapshot_code(tmp_path / "sweep")
    assert (problem.value.errno, problem.value.filename) == (
        errno.ENOSPC,
        str(tmp_path / "sweep" / "code"),
    )
    assert not list((tmp_path / "sweep").glob("code/.*"))
