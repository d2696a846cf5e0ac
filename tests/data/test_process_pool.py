"""Jobs in fresh processes: in order, ended with their parent, with an error for each lost job."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest
from support.pool_jobs import die, fail, number_and_process, threads

from isoflop.data.process_pool import in_fresh_processes
from isoflop.errors import DataError


@pytest.mark.parametrize("processes", [1, 3])
def test_results_are_in_order_and_each_is_from_another_process(processes: int) -> None:
    results = list(in_fresh_processes(number_and_process, range(4), processes))
    assert [number for number, _ in results] == [0, 1, 2, 3]
    assert len({process for _, process in results} | {os.getpid()}) == 5


def test_infinite_jobs_are_started_as_needed() -> None:
    started = []

    def jobs() -> Iterator[int]:
        for number in count():
            started.append(number)
            yield number

    results = in_fresh_processes(number_and_process, jobs(), 1)
    assert [number for number, _ in islice(results, 2)] == [0, 1]
    results.close()
    assert len(started) <= 4


def test_linear_algebra_has_one_thread_in_jobs_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert list(in_fresh_processes(threads, [None], 1)) == ["1"]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    "error",
    [DataError("no voice 'en+x9'"), OSError(errno.ENOSPC, "No space left on device", "/somewhere")],
)
def test_an_error_is_raised_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as problem:
        list(in_fresh_processes(fail, [error], 1))
    assert str(problem.value) == str(error)


def test_a_killed_process_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"died \(exit code -9\): memory ran out or it was killed; prepare again"
    ):
        list(in_fresh_processes(die, [None, None], 2))


def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "written"
    script = tmp_path / "parent.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\n"
        "from isoflop.data.process_pool import in_fresh_processes\n"
        "from support.pool_jobs import sleep_and_write\n"
        "if __name__ == '__main__':\n"
        f"    list(in_fresh_processes(sleep_and_write, [Path({str(path)!r})], 1))\n"
    )
    parent = subprocess.Popen([sys.executable, script])
    deadline = time.monotonic() + 60
    while not path.with_suffix(".started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(1.7)
    assert not path.exists()
