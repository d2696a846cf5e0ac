"""Fake SLURM programs with a cluster in a file, for events that a real one can't be forced into."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import fake_slurm_programs
from support.fake_slurm_programs import LIMIT_MESSAGE as LIMIT_MESSAGE
from support.fake_slurm_programs import PROGRAMS, read_cluster, write_cluster

SHELL_SHORTCUTS = {
    "squeue": (
        "[ -e answers.squeue ] || "
        'case "$*" in *-n*) [ -e jobs ] || exit 0;; *) exec /bin/cat queue;; esac'
    ),
    "scontrol": "[ -e answers.scontrol ] || exec /bin/cat config",
}
"""Lines of shell that answer frequent calls without the slow start of Python."""

EMPTY_CLUSTER: dict[str, Any] = {
    "next": 100,
    "jobs": {},
    "queue": {},
    "accounting": {},
    "answers": {},
    "calls": [],
    "config": "",
    "limit": None,
    "born": ["PENDING", "", "Priority"],
}


@dataclass(frozen=True)
class FakeSlurm:
    """Cluster whose programs lie in one folder; tests set PATH to it.

    Its file holds `jobs` (by id, with options), `queue` (task: state, node, reason), `accounting`
    (task: state, node, exit code; None without accounting), `answers` (by program, given before it
    works), `limit` (maximal number of queued tasks) and `born` (first record of a task).
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> FakeSlurm:
        folder.mkdir()
        slurm = cls(folder)
        write_cluster(str(folder), EMPTY_CLUSTER)
        for name in PROGRAMS:
            command = shlex.join(
                [sys.executable, "-IS", fake_slurm_programs.__file__, str(folder), name]
            )
            shortcut = SHELL_SHORTCUTS.get(name, "")
            slurm.program(name, f'cd {shlex.quote(str(folder))}\n{shortcut}\nexec {command} "$@"')
        return slurm

    def program(self, name: str, script: str) -> None:
        """Replace a program by lines of shell."""
        (self.folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / name).chmod(0o755)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    def read(self) -> dict[str, Any]:
        return read_cluster(str(self.folder))

    def change(self, **values: Any) -> None:
        write_cluster(str(self.folder), {**self.read(), **values})

    def answer(
        self, program: str, message: str, times: int = 1, *, queues: str = "", code: int = 1
    ) -> None:
        """Let the next calls of a program fail with a message.

        Args:
            program: its name.
            message: text for stderr.
            times: number of failing calls.
            queues: sbatch nevertheless queues the job `now`, or `later` (after one query that does
                not find it), or leaves the record of a `refused` job.
            code: exit code.
        """
        answers = self.read()["answers"]
        more = [{"message": message, "queues": queues, "code": code}] * times
        self.change(answers={**answers, program: [*answers.get(program, []), *more]})

    def end(
        self, tasks: Iterable[str], state: str, *, node: str = "n1", exit_code: str = "0:0"
    ) -> None:
        """Move jobs from the controller to accounting, with their final state."""
        cluster, tasks = self.read(), set(tasks)
        queue = {task: line for task, line in cluster["queue"].items() if task not in tasks}
        self.change(
            queue=queue,
            accounting=cluster["accounting"] | {task: [state, node, exit_code] for task in tasks},
        )

    def calls(self, program: str) -> list[dict[str, Any]]:
        return [call for call in self.read()["calls"] if call["program"] == program]
