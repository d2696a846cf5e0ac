"""Faults for a study on the test bed: each does one thing to the cluster or to a run, and says whether it could."""

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
from support.clusters import Submitted

NODES = ("n1", "n2", "n3", "n4")
FAILING = """\
#!/bin/bash
[ -e "{flag}" ] && {{ echo "{name}: error: Socket timed out on send/recv operation" >&2; exit 1; }}
exec {real} "$@"
"""


def break_programs(folder: Path) -> Path:
    """Puts sbatch, squeue and sacct on the PATH that fail while the file that is returned exists."""
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
    """Injects faults in an order that a seed decides, and counts them."""

    study: Submitted
    flag: Path
    seed: int
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
        self.left: list[str] = []

    def inject(self) -> str | None:
        """One fault, every kind in turn in a random order; its name. What can't be done now is tried again first."""
        if not self.left:
            self.left = self.random.sample(list(self.kinds), len(self.kinds))
        for name in reversed(self.left):
            if self.kinds[name]():
                self.left.remove(name)
                self.counts[name] += 1
                return name
        others = [name for name in self.kinds if name not in self.left]
        self.left = [*self.random.sample(others, len(others)), *self.left]
        return None

    def table(self) -> str:
        """What was injected, a line each."""
        return "\n".join(f"{self.counts[name]:4d}  {name}" for name in self.kinds)

    def end(self) -> None:
        """Takes back jobs of its own that still wait, such as for a node that SLURM has drained since."""
        self.study.bed.run("scancel", "--name", "fault")

    # Of jobs

    def preempt(self) -> bool:
        return self._take_a_node("preempt")

    def requeue(self) -> bool:
        return self._change("requeue", "{}")

    def time_out(self) -> bool:
        return self._change("update", "jobid={}", "timelimit=1")

    def _change(self, *words: str) -> bool:
        """scontrol on a running task; whether there was one, and it had not ended meanwhile."""
        tasks = self._running()
        if not tasks:
            return False
        task = self.random.choice(tasks)
        try:
            self.study.bed.run("scontrol", *(word.format(task) for word in words))
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
                for part in run.checkpoints.glob(".step-*.tmp"):
                    process = int(part.name.split(".")[-2])
                    node = run.state().get("node")
                    if (found := self._outside(process, node)) is not None:
                        os.kill(found, signal.SIGKILL)
                        return True
        return False

    # Of the cluster

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
            picture = self.study.look()
            assert not picture.queue_answered
            assert not any(
                where.retry
                for where in picture.runs.values()
                if where.state in ("queued", "running")
            )
        finally:
            self.flag.unlink()
        return True

    # Of files and of isoflop

    def damage(self) -> bool:
        """Cuts the newer of a run's two checkpoints, as soon as one has two: some are done soon after."""
        limit = time.monotonic() + 5
        while time.monotonic() < limit:
            found = [
                sorted(run.checkpoints.glob("step-*.pt")) for run in self.study.runs if not run.done
            ]
            found = [checkpoints for checkpoints in found if len(checkpoints) > 1]
            if found:
                newest = self.random.choice(found)[-1]
                with suppress(FileNotFoundError):  # the run has removed it in between
                    os.truncate(newest, newest.stat().st_size // 2)
                    return True
            time.sleep(0.05)
        return False

    def kill_isoflop(self, command: str) -> bool:
        directory = str(self.study.directory)
        some = [self.random.choice(self.study.plan.runs).run_id]
        arguments = {
            "submit": [
                directory + "/sweep.yaml",
                "--cluster",
                directory + "/cluster.yaml",
                "--yes",
            ],
            "status": [directory],
            "cancel": [directory, *some],
            "retry": [directory],
        }[command]
        code = "from isoflop.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, command, *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **self.study.bed.environment},
        )  # fmt: skip
        time.sleep(self.random.uniform(0.3, 2.5))
        process.kill()
        process.wait()
        return True

    # Help

    def _take_a_node(self, partition: str) -> bool:
        tasks = {
            task: job for task, job in slurm.queue().items() if job.state == "RUNNING" and job.node
        }
        mine = {where.task for where in self.study.look().runs.values() if where.state == "running"}
        nodes = sorted({job.node for task, job in tasks.items() if task in mine})
        if not nodes:
            return False
        node = self.random.choice(nodes)
        words = (
            f"--no-requeue -J fault -p main -w {node} --exclusive -t 1 -o /dev/null --wrap".split()
        )
        self.study.bed.run("sbatch", *words, "sleep 1")
        return True

    def _running(self) -> list[str]:
        """Tasks that SLURM runs now; the look at them may have heard of a requeue that came in between."""
        looked = {
            where.task for where in self.study.look().runs.values() if where.state == "running"
        }
        return sorted(
            task for task, job in slurm.queue().items() if task in looked and job.state == "RUNNING"
        )

    def _workers(self) -> list[int]:
        """Processes that train, as this machine numbers them."""
        folder = str(self.study.directory).encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                b"submitit.core._submit" in words
                and any(word.startswith(folder) for word in words)
                and b"srun" not in words[0]
            ):
                found.append(int(path.name))
        return sorted(found)

    def _outside(self, process: int, node: str | None) -> int | None:
        """This machine's number of a process that a node numbers `process`."""
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
