"""Pool of workers on this machine, and every way to stop it. Processes are real."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import submitit
from pandas.testing import assert_frame_equal
from support.tiny_studies import (
    exact,
    find_run,
    hold_lease,
    kill,
    start,
    tiny_plan,
    tiny_study,
    train_here,
    wait_for,
    write_corpus,
    write_sweep,
)

from isoflop.errors import RunError
from isoflop.launching import local
from isoflop.launching.local import LocalPool, Progress, default_workers
from isoflop.launching.worker.pool_worker import Worker
from isoflop.lease import take_lease
from isoflop.node import visible_gpus
from isoflop.planning.plan import Plan
from isoflop.runs.run_directory import RunDirectory
from isoflop.studies import train_study
from isoflop.training.checkpoint import load_checkpoint

LONG = ("budgets=[3e10]", "widths=[8]", "seeds=[0, 1]")
"""Two runs that take several seconds."""

SHORTER = ("budgets=[4e9]", "widths=[8, 24]")


UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("", []),
        ("0", ["0"]),
        ("2,3", ["2", "3"]),
        ("-1", []),
        ("1, 0,-1,2", ["1", "0"]),
        ("NoDevFiles", []),
        ("GPU-8932f937", ["GPU-8932f937"]),
        (UUIDS, UUIDS.split(",")),
        ("MIG-GPU-8932f937/1/0, none,0", ["MIG-GPU-8932f937/1/0"]),
    ],
)
def test_gpus_are_those_that_the_environment_leaves(
    monkeypatch: pytest.MonkeyPatch, visible: str, gpus: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == gpus
    assert default_workers() == (len(gpus) or len(os.sched_getaffinity(0)))


TELLS = """
import json, os, sys
seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")}
json.dump(seen, open(sys.argv[2] + ".seen", "w"))
loss = {"step": int(sys.argv[1]), "split": "heldout", "loss": 5.0}
print(json.dumps(loss), file=open(sys.argv[2], "w"))
"""


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Set the shell's variables of GPUs and of Python's path to these alone."""
    for name in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "visible"),
    [
        ({}, [None, None]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["", None]),
        ({"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": "/mine"}, ["-1", "/mine"]),
        ({"CUDA_VISIBLE_DEVICES": UUIDS}, [UUIDS.split(",")[0], None]),
        ({"CUDA_VISIBLE_DEVICES": "3,5"}, ["3", None]),
    ],
)
def test_a_worker_is_given_the_variables_of_the_shell_and_one_of_its_gpus(
    study: tuple[Path, Plan],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    visible: list[str | None],
) -> None:
    set_variables(monkeypatch, variables)
    workers: list[Worker] = []
    monkeypatch.setattr(submitit.LocalExecutor, "submit", lambda _, worker: workers.append(worker))
    LocalPool(study[0] / "tiny", study[1], 1)._start(1)
    assert [list(worker.environment.values()) for worker in workers] == [visible]


@pytest.mark.slow
def test_a_run_has_the_variables_of_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, {"CUDA_VISIBLE_DEVICES": "3,5"})
    (tmp_path / "tells.py").write_text(TELLS)
    command = f"{sys.executable} -I {tmp_path / 'tells.py'} {{steps}} {{losses}}"
    plan, root = (
        tiny_plan(tmp_path, "widths=[8]", f"train.trainer=command: {command}"),
        tmp_path / "runs",
    )
    before = dict(os.environ)
    assert find_run(train_study(plan, root, workers=1).parent, plan).state()["state"] == "done"
    seen = json.loads((find_run(root, plan).path / "losses.jsonl.seen").read_text())
    assert seen == {"CUDA_VISIBLE_DEVICES": "3", "PYTHONPATH": None}
    assert dict(os.environ) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "init", [None, "raise SystemExit('this is another isoflop')"], ids=["a clone", "a package"]
)
def test_a_folder_of_the_same_name_beside_the_user_is_not_what_workers_import(
    tmp_path: Path, init: str | None
) -> None:
    (tmp_path / "isoflop" / "isoflop").mkdir(parents=True)
    if init:
        (tmp_path / "isoflop" / "__init__.py").write_text(init)
    write_sweep(tmp_path)
    program = [sys.executable, "-P", "-c", "from isoflop.cli import main; main()"]
    arguments = [
        "run",
        "tiny.yaml",
        "widths=[8]",
        "train.trainer=simulated: soda",
        "--workers",
        "1",
    ]
    environment = {**os.environ, "ISOFLOP_ROOT": "runs"}
    done = subprocess.run(
        [*program, *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert re.search(r"^loss \d+\.\d+\n1 of 1 runs done in ", done.stdout, re.MULTILINE), (
        done.stdout
    )
    assert done.returncode == 0


@pytest.mark.slow
def test_a_run_that_somebody_trains_is_waited_for_and_then_refused(
    study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, plan = study
    held = find_run(root, plan, 1)
    holder = start(hold_lease, held)
    wait_for((held.path / "held").exists)
    monkeypatch.setattr(local, "STRAY_TIMEOUT_S", 0.1)
    with pytest.raises(
        RunError, match=f"{held.run_id} is being trained by another process; wait, or stop it"
    ):
        next(LocalPool(root / "tiny", plan, 1).run())
    kill(holder)


def test_two_at_once_are_refused(study: tuple[Path, Plan]) -> None:
    root, plan = study
    with take_lease(root / "tiny" / "workers" / "lease") as lease:
        assert lease
        with pytest.raises(
            RunError, match="another `isoflop run` is active here; wait for it, or stop it"
        ):
            train_study(plan, root)


def test_where_nothing_is_left_nothing_is_started_or_prepared(study: tuple[Path, Plan]) -> None:
    root, plan = study
    for number in range(3):
        find_run(root, plan, number).set_state("diverged", "the loss was not finite", attempt=1)
    shutil.rmtree(root / "data")
    history: list[Progress] = []
    train_study(plan, root, on_progress=history.append)
    assert [(progress.share, progress.seconds_left) for progress in history] == [(1.0, None)]
    assert not (root / "tiny" / "workers" / "submitit").exists()
    assert not (root / "data").exists()


@pytest.mark.slow
def test_all_runs_end_once_and_a_failing_one_stops_no_other(tmp_path: Path) -> None:
    root, plan = tiny_study(tmp_path, "seeds=[0, 1]", "widths=[12, 16]")
    failing = find_run(root, plan, 1)
    loss_file = failing.path / "loss" / "000000000-000000005.parquet"
    loss_file.parent.mkdir()
    loss_file.write_bytes(b"damaged")
    find_run(root, plan, 2).set_state("diverged", "the loss was not finite", attempt=1)

    progresses = list(LocalPool(root / "tiny", plan, 2).run())
    ends = [
        (s["state"], s["attempt"])
        for s in (find_run(root, plan, number).state() for number in range(4))
    ]
    assert ends == [("done", 1), ("failed", 1), ("diverged", 1), ("done", 1)]
    assert all(before.share <= after.share for before, after in itertools.pairwise(progresses))
    assert (progresses[-1].share, progresses[-1].count("done")) == (1.0, 2)
    assert not (root / "tiny" / "workers" / "submitit").exists()

    shutil.rmtree(loss_file.parent)  # its mend; what diverged would diverge again
    list(LocalPool(root / "tiny", plan, 2).run())
    ends = [
        (s["state"], s["attempt"])
        for s in (find_run(root, plan, number).state() for number in range(4))
    ]
    assert ends == [("done", 1), ("done", 2), ("diverged", 1), ("done", 1)]


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [1, 2])
def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, deaths: int) -> None:
    root, plan = tiny_study(tmp_path, *SHORTER, "train.checkpoint_minutes=0.002")
    run, other, killed = find_run(root, plan, 0), find_run(root, plan, 1), 0
    for progress in LocalPool(root / "tiny", plan, 2).run():
        state = progress.states[run.run_id]
        if (
            killed < deaths
            and state["state"] == "running"
            and state["attempt"] == killed + 1
            and state.get("loss")
        ):
            worker = int((run.path / "lease").read_text().split()[1])
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                killed += 1
            time.sleep(0.5)
    assert killed == deaths
    assert other.state()["state"] == "done"
    assert other.state()["attempt"] == 1
    assert run.state()["attempt"] == 2
    if deaths == 2:
        assert run.state()["state"] == "failed"
        assert run.state()["reason"].startswith("its worker died (killed, or out of memory; see ")
        return
    assert run.state()["state"] == "done"
    elsewhere, _ = tiny_study(tmp_path / "undisturbed", *SHORTER)
    undisturbed = find_run(elsewhere, plan)
    start(train_here, undisturbed, elsewhere).join()
    assert_frame_equal(exact(run), exact(undisturbed), check_exact=True)


@pytest.mark.slow
def test_workers_that_can_not_even_start_are_given_up(
    study: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, plan = study
    monkeypatch.setattr(local, "write_order", lambda *_: None)
    with pytest.raises(RunError, match="workers end before they train anything; see ") as refusal:
        list(LocalPool(root / "tiny", plan, 1).run())
    output = Path(str(refusal.value).split(" see ")[1])
    assert "FileNotFoundError" in output.read_text()
    assert {find_run(root, plan, number).state()["state"] for number in range(3)} == {"pending"}


# The whole program, stopped


DEAF = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write(f"{os.getpid()} {os.getppid()}")
while True:
    time.sleep(0.1)
"""


@pytest.mark.slow
def test_a_second_interruption_does_not_wait_for_a_program_that_does_not_stop(
    tmp_path: Path,
) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    write_sweep(tmp_path)
    trainer = f"train.trainer=command: {sys.executable} -I {tmp_path / 'deaf.py'} {{losses}}.said"
    program = [sys.executable, "-c", "from isoflop.cli import main; main()"]
    process = subprocess.Popen(
        [*program, "run", "tiny.yaml", "widths=[8]", "--workers", "1", trainer],
        cwd=tmp_path,
        env={**os.environ, "ISOFLOP_ROOT": "runs"},
        stderr=subprocess.PIPE,
        text=True,
        # A shell ignores SIGINT for background processes, and may run the tests as one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    plan = tiny_plan(tmp_path, "widths=[8]", trainer)
    run, output = (
        find_run(tmp_path / "runs", plan),
        find_run(tmp_path / "runs", plan).path / "losses.jsonl.said",
    )
    wait_for(lambda: output.exists() and len(output.read_text().split()) == 2, 60)
    process.send_signal(signal.SIGINT)
    lines = iter(process.stderr.readline, "")
    assert "stopping: runs have up to 60 s to save; interrupt again to stop at once\n" in lines
    assert run.is_leased()
    process.send_signal(signal.SIGINT)
    assert "from which the same command resumes" in process.communicate(timeout=30)[1]
    assert process.returncode == 130
    wait_for(
        lambda: not any(Path("/proc", number).exists() for number in output.read_text().split()), 10
    )
    assert not run.is_leased()


class Terminal:
    """`isoflop run` in its own terminal, as a user starts it."""

    def __init__(self, sweep: Path, root: Path) -> None:
        self.master, slave = pty.openpty()
        program = [sys.executable, "-c", "from isoflop.cli import main; main()"]
        self.process = subprocess.Popen(
            [*program, "run", str(sweep), *LONG, "--workers", "2"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "ISOFLOP_ROOT": str(root), "TERM": "xterm", "COLUMNS": "120"},
            preexec_fn=lambda: (
                os.setsid(),
                os.close(os.open(os.ttyname(0), os.O_RDWR)),
            ),  # its controlling terminal
        )
        os.close(slave)
        self.output = b""

    def read(self) -> None:
        """Read the output so far, so that the program never blocks."""
        import select

        while select.select([self.master], [], [], 0)[0]:
            try:
                chunk = os.read(self.master, 65536)
            except OSError:  # its last process has gone
                return
            if not chunk:
                return
            self.output += chunk

    def wait(self, happened: Callable[[], bool]) -> None:
        def read_and_check() -> bool:
            if self.master >= 0:
                self.read()
            return happened()

        wait_for(read_and_check, 120)

    def press_ctrl_c(self) -> None:
        os.write(self.master, b"\x03")

    def terminate(self) -> None:
        self.process.terminate()

    def close(self) -> None:
        os.close(self.master)
        self.master = -1

    def kill(self) -> None:
        self.process.kill()


@pytest.mark.slow
def test_whatever_stops_a_study_it_goes_on(tmp_path: Path) -> None:
    plan, root = tiny_plan(tmp_path, *LONG), tmp_path / "runs"
    write_corpus(root, plan)
    runs = [RunDirectory(root / "tiny" / spec.run_id) for spec in plan.runs]
    ways = [
        (Terminal.press_ctrl_c, 130),
        (Terminal.terminate, 130),
        (Terminal.close, None),
        (Terminal.kill, -signal.SIGKILL),
    ]
    for stop, code in ways:
        before = [run.state().get("step", 0) for run in runs]
        terminal = Terminal(tmp_path / "tiny.yaml", root)
        terminal.wait(
            lambda before=before: all(
                run.done or run.state().get("step", 0) > step
                for run, step in zip(runs, before, strict=True)
            )
        )
        if stop is Terminal.press_ctrl_c:
            with pytest.raises(RunError, match="another `isoflop run` is active here"):
                train_study(plan, root)
        stop(terminal)
        terminal.wait(lambda terminal=terminal: terminal.process.poll() is not None)
        wait_for(lambda: not any(run.is_leased() for run in runs))
        ended = terminal.process.returncode
        by_itself = ended == 2 and all(
            run.done for run in runs
        )  # on a fast machine; one budget is no law
        assert by_itself or code is None or ended == code
        assert b"Traceback" not in terminal.output
        if ended == 130 and code == 130:
            terminal.read()
            assert b"from which the same command resumes" in terminal.output
        for run in [run for run in runs if not run.done]:  # a fast machine ends them early
            state, saved = run.state(), load_checkpoint(run.checkpoints)
            assert saved is not None
            assert (state["state"], state["step"]) == ("pending", saved["step"]), stop

    terminal = Terminal(tmp_path / "tiny.yaml", root)
    terminal.wait(lambda: terminal.process.poll() is not None)
    terminal.read()
    assert b"2 of 2 runs done" in terminal.output
    assert terminal.process.returncode == 2  # one budget is no law
    elsewhere, _ = tiny_study(tmp_path / "undisturbed", *LONG)
    undisturbed = [find_run(elsewhere, plan, number) for number in range(2)]
    for process in [start(train_here, run, elsewhere) for run in undisturbed]:
        process.join()
    for run, other in zip(runs, undisturbed, strict=True):
        assert 2 <= run.state()["attempt"] <= len(ways) + 1
        assert_frame_equal(exact(run), exact(other), check_exact=True)
