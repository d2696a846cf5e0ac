"""Replaced files: complete or unchanged, also behind links and on devices."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest

from isoflop.files import replace_file


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "train-0.bin"
    path.write_bytes(b"before")

    def write_on_a_full_disk() -> None:
        with replace_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")  # without a name, like write()

    with pytest.raises(OSError, match="No space left") as problem:
        write_on_a_full_disk()
    assert problem.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def put(path: Path, content: bytes) -> None:
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_file_is_replaced(exists: bool, tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "folder" / "file"
    (tmp_path / "inner").symlink_to("folder/file")
    link.symlink_to("inner")
    if exists:
        put(file, b"before")
    put(link, b"after")
    assert (link.readlink(), file.is_symlink(), file.read_bytes()) == (
        Path("inner"),
        False,
        b"after",
    )
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        put(pipe, b"content")
        assert reader.read() == b"content"
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("minor", [3, 7], ids=["null", "full"])
def test_a_device_is_written_into(minor: int, tmp_path: Path) -> None:
    device = tmp_path / "device"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("making a device is not allowed on this machine")
    full = pytest.raises(OSError, match="No space left") if minor == 7 else contextlib.nullcontext()
    with full as problem:
        put(device, b"content")
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert problem is None or problem.value.filename == str(device)
    assert list(tmp_path.iterdir()) == [device]


def test_a_folder_or_a_cycle_of_links_is_named(tmp_path: Path) -> None:
    (tmp_path / "to_folder").symlink_to(".")
    (tmp_path / "cycle").symlink_to("cycle")
    for path in (Path(), Path("/"), tmp_path, tmp_path / "to_folder", tmp_path / "cycle"):
        with pytest.raises(OSError, match=r"Is a directory|Too many levels") as problem:
            put(path, b"content")
        assert problem.value.filename in (path, str(path))
    assert len(list(tmp_path.iterdir())) == 2
