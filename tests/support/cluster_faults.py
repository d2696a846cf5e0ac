"""Faults for a study on the test bed: each disturbs the cluster or a run, and returns whether it
could."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.errors import ClusterError
from isoflop.launching.slurm import client as slurm
from support.slurm_bed import Submitted

NODES = ("n1", "n2", "n3", "n4")
FAILING = """\
#!/bin/bash
[ -e "{flag}" ] && {{ echo "{name}: error: Socket timed out on send/recv operation" >&2; exit 1; }}
exec {real} "$@"
"""


def break_programs(folder: Path) -> Path:
    """Put sbatch, squeue and sacct on the PATH that fail while the returned file exists."""
    flag = folder / "failing"
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct"):
        if real := shutil.which(name):
            (folder / name).write_text(FAILING.format(flag=flag, name=name, real=real))
            (folder / name).chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    return flag


@dataclass
class Faults:
    """Injection of every kind of fault, `rounds` times, in an order from a seed, with counts."""

    study: Submitted
    flag: Path
    seed: int
    rounds: int
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.kinds: dict[str, Callable[[], bool]] = {
            "preempted with a signal": self.preempt,
            "preempted or requeued at once": self.requeue,
            "out of time": self.time_out,
            "worker killed": self.kill_worker,
            "worker killed while it saved": self.kill_while_saving,
            "node lost": self.lose_node,
            "controller killed": self.kill_controller,
            "controller forgot the newest jobs": self.forget,
            "sbatch, squeue and sacct failed": self.fail_programs,
            "newest checkpoint damaged": self.damage,
            "isoflop killed in submit": lambda: self.kill_isoflop("submit"),
            "isoflop killed in status": lambda: self.kill_isoflop("status"),
            "isoflop killed in cancel": lambda: self.kill_isoflop("cancel"),
            "isoflop killed in retry": lambda: self.kill_isoflop("retry"),
        }

    def inject(self) -> str | None:
        """Inject a fault that is due and return its name, or None if none is possible now."""
        due = self.due
        for name in self.random.sample(due, len(due)):
            if self.kinds[name]():
                self.counts[name] += 1
                return name
        return None

    @property
    def due(self) -> list[str]:
        """Kinds of faults that were injected fewer than `rounds` times."""
        return [name for name in self.kinds if self.counts[name] < self.rounds]

    def table(self) -> str:
        """Return the counts of injected faults, a line each."""
        return "\n".join(f"{self.counts[name]:4d}  {name}" for name in self.kinds)

    def end(self) -> None:
        """Cancel this class's queued jobs, such as those for a node that SLURM has drained."""
        self.study.bed.run("scancel", "--name", "fault")

    # Jobs

    def preempt(self) -> bool:
        return self._preempt_node()

    def requeue(self) -> bool:
        return self._change("requeue", "{}")

    def time_out(self) -> bool:
        return self._change("update", "jobid={}", "timelimit=1")

    def _change(self, *arguments: str) -> bool:
        """Call scontrol on a running task; return False if there is none or it has ended."""
        tasks = self._running()
        if not tasks:
            return False
        task = self.random.choice(tasks)
        try:
            self.study.bed.run("scontrol", *(argument.format(task) for argument in arguments))
        except subprocess.CalledProcessError as problem:
            if task in self._running():
                raise AssertionError(
                    f"{problem}: {problem.stderr} {slurm.queue().get(task)}"
                ) from problem
            return False
        return True

    def kill_worker(self) -> bool:
        workers = self._workers()
        if workers:
            os.kill(self.random.choice(workers), signal.SIGKILL)
        return bool(workers)

    def kill_while_saving(self) -> bool:
        limit = time.monotonic() + 2
        while time.monotonic() < limit:
            for run in self.study.runs:
                for file in run.checkpoints.glob(".step-*.tmp"):
                    process = int(file.name.split(".")[-2])
                    node = run.state().get("node")
                    if (worker := self._find_worker(process, node)) is not None:
                        os.kill(worker, signal.SIGKILL)
                        return True
        return False

    # The cluster

    def lose_node(self) -> bool:
        node = self.random.choice(NODES)
        self.study.bed("node-kill", node)
        time.sleep(self.random.uniform(1, 20))
        self.study.bed("node-start", node)
        return True

    def kill_controller(self) -> bool:
        self.study.bed("ctld-kill")
        time.sleep(self.random.uniform(1, 5))
        self.study.bed("ctld-start")
        return True

    def forget(self) -> bool:
        self.study.bed("ctld-mark")
        try:
            self.study.submit()
        except ClusterError:
            return False
        finally:
            self.study.bed("ctld-forget")
        return True

    def fail_programs(self) -> bool:
        self.flag.touch()
        try:
            status = self.study.query()
            assert not status.queue_answered
            active = [run for run in status.runs.values() if run.state in ("queued", "running")]
            assert not any(run.retry for run in active)
        finally:
            self.flag.unlink()
        return True

    # Files and isoflop

    def damage(self) -> bool:
        """Truncate the newer checkpoint of a run, as soon as one has two: some end soon after."""
        limit = time.monotonic() + 5
        while time.monotonic() < limit:
            files = [
                sorted(run.checkpoints.glob("step-*.pt")) for run in self.study.runs if not run.done
            ]
            pairs = [checkpoints for checkpoints in files if len(checkpoints) > 1]
            if pairs:
                newest = self.random.choice(pairs)[-1]
                with suppress(FileNotFoundError):  # the run has removed it in between
                    os.truncate(newest, newest.stat().st_size // 2)
                    return True
            time.sleep(0.05)
        return False

    def kill_isoflop(self, command: str) -> bool:
        directory = str(self.study.directory)
        run_id = self.random.choice(self.study.plan.runs).run_id
        sweep, profile = f"{directory}/sweep.yaml", f"{directory}/cluster.yaml"
        arguments = {
            "submit": [sweep, "--cluster", profile, "--yes"],
            "status": [directory],
            "cancel": [directory, run_id],
            "retry": [directory],
        }[command]
        code = "from isoflop.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, command, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self.study.bed.environment},
        )
        time.sleep(self.random.uniform(0.3, 2.5))
        process.kill()
        process.wait()
        return True

    # Helpers

    def _preempt_node(self) -> bool:
        """Submit an exclusive job to a node that runs a task of the study."""
        jobs = slurm.queue()
        running = [jobs[task] for task in self._running_tasks() & jobs.keys()]
        nodes = {job.node for job in running if job.state == "RUNNING" and job.node}
        if not nodes:
            return False
        node = self.random.choice(sorted(nodes))
        options = f"--no-requeue -J fault -p main -w {node} --exclusive -t 1 -o /dev/null --wrap"
        self.study.bed.run("sbatch", *options.split(), "sleep 1")
        return True

    def _running_tasks(self) -> set[str]:
        runs = self.study.query().runs.values()
        return {run.task for run in runs if run.state == "running" and run.task}

    def _running(self) -> list[str]:
        """Return the tasks that SLURM runs now.

        The queue is read again: a task may have been requeued since the status was made.
        """
        tasks = self._running_tasks()
        return sorted(
            task for task, job in slurm.queue().items() if task in tasks and job.state == "RUNNING"
        )

    def _workers(self) -> list[int]:
        """Return the ids of the processes that train, on this machine."""
        folder = str(self.study.directory).encode()
        workers = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                b"submitit.core._submit" in command
                and any(argument.startswith(folder) for argument in command)
                and b"srun" not in command[0]
            ):
                workers.append(int(path.name))
        return sorted(workers)

    def _find_worker(self, process: int, node: str | None) -> int | None:
        """Return the id on this machine of the process with the id `process` on a node."""
        for worker in self._workers():
            try:
                lines = Path(f"/proc/{worker}/status").read_text().splitlines()
                environment = Path(f"/proc/{worker}/environ").read_bytes()
            except OSError:
                continue
            inside = next(line.split()[-1] for line in lines if line.startswith("NSpid:"))
            if int(inside) == process and f"SLURMD_NODENAME={node}".encode() in environment:
                return worker
        return None
