"""Fake SLURM programs with a cluster in a file, for events that a real one can't be forced into."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")
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

LIMIT_MESSAGE = (
    "sbatch: error: AssocMaxSubmitJobLimit\n"
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS "
    "policy (job submit limit, user's size and/or time limits)"
)
"""Message of SLURM 22.05 at a user's submit limit."""


@dataclass(frozen=True)
class FakeSlurm:
    """Cluster whose programs lie in one folder; tests set PATH to it.

    Its file holds `jobs` (by id, with options), `queue` (task: state, node, reason), `accounting`
    (task: state, node, exit code; null without accounting), `answers` (by program, given before it
    works), `limit` (maximal number of queued tasks) and `born` (first record of a task).
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> FakeSlurm:
        folder.mkdir()
        slurm = cls(folder)
        write(slurm._file, EMPTY_CLUSTER)
        for name in PROGRAMS:
            command = shlex.join([sys.executable, "-IS", __file__, str(slurm._file), name])
            shortcut = SHELL_SHORTCUTS.get(name, "")
            slurm.program(name, f'cd {shlex.quote(str(folder))}\n{shortcut}\nexec {command} "$@"')
        return slurm

    @property
    def _file(self) -> Path:
        return self.folder / "cluster.json"

    def program(self, name: str, script: str) -> None:
        """Replace a program by lines of shell."""
        (self.folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / name).chmod(0o755)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    def read(self) -> dict[str, Any]:
        return json.loads(self._file.read_text())

    def change(self, **values: Any) -> None:
        write(self._file, {**self.read(), **values})

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


def write(file: Path, cluster: dict[str, Any]) -> None:
    """Write the cluster's file, and the files that lines of shell read."""
    file.write_text(json.dumps(cluster))
    queue = [
        f"{task}|{state}|{node}|{reason or 'None'}\n"
        for task, (state, node, reason) in cluster["queue"].items()
    ]
    (file.parent / "queue").write_text("".join(queue))
    (file.parent / "config").write_text(cluster["config"])
    flags = {
        "jobs": cluster["jobs"],
        **{f"answers.{name}": cluster["answers"].get(name) for name in PROGRAMS},
    }
    for name, holds in flags.items():
        if holds:
            (file.parent / name).touch()
        else:
            (file.parent / name).unlink(missing_ok=True)


# The programs


def main(file: Path, program: str, arguments: list[str]) -> int:
    import os

    cluster = json.loads(file.read_text())
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }
    cluster["calls"].append(
        {"program": program, "arguments": arguments, "environment": environment}
    )
    waiting = cluster["answers"].get(program)
    answer = waiting.pop(0) if waiting else {"message": "", "queues": "now", "code": 0}
    output = ""
    if program == "sbatch":
        output, refused = sbatch(cluster, Path(arguments[0]).read_text(), answer["queues"])
        if refused:
            answer = {"message": LIMIT_MESSAGE, "code": 1}
    elif not answer["code"]:
        output, code = {"squeue": squeue, "sacct": sacct, "scancel": scancel, "scontrol": scontrol}[
            program
        ](cluster, arguments)
        if code:
            answer = {"message": output, "code": code}
    write(file, cluster)
    if answer["code"]:
        print(answer["message"], file=sys.stderr)
    else:
        print(output, end="")
    return answer["code"]


def sbatch(cluster: dict[str, Any], script: str, queues: str) -> tuple[str, bool]:
    """Queue a script; return the output, and whether the submit limit was exceeded."""
    options: dict[str, str] = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            name, _, value = shlex.split(line.removeprefix("#SBATCH --"))[0].partition("=")
            options[name] = value
    if not queues:
        return "", False
    last = int(options["array"].partition("%")[0].partition("-")[2]) if "array" in options else None
    queued = sum(line[0] in ("PENDING", "RUNNING") for line in cluster["queue"].values())
    if cluster["limit"] is not None and queued + (last or 0) + 1 > cluster["limit"]:
        return "", True
    job, cluster["next"] = str(cluster["next"]), cluster["next"] + 1
    cluster["jobs"][job] = {
        "name": options["job-name"],
        "hidden": queues == "later",
        "options": options,
    }
    for task in [job] if last is None else [f"{job}_{index}" for index in range(last + 1)]:
        cluster["queue"][task] = (
            ["FAILED", "", "BadConstraints"] if queues == "refused" else cluster["born"]
        )
    return f"Submitted batch job {job}\n", False


def squeue(cluster: dict[str, Any], arguments: list[str]) -> tuple[str, int]:
    if "-n" in arguments:
        name = arguments[arguments.index("-n") + 1]
        jobs = {job: known for job, known in cluster["jobs"].items() if known["name"] == name}
        hidden = {job for job, known in jobs.items() if known["hidden"]}
        for known in jobs.values():
            known["hidden"] = False
        tasks = [
            task for task in cluster["queue"] if task.partition("_")[0] in jobs.keys() - hidden
        ]
    else:
        tasks = list(cluster["queue"])
    return "".join(f"{task}|{'|'.join(cluster['queue'][task])}\n" for task in tasks), 0


def sacct(cluster: dict[str, Any], arguments: list[str]) -> tuple[str, int]:
    known = cluster["accounting"]
    if known is None:
        return "sacct: error: Slurm accounting storage is disabled", 1
    if "--name" in arguments:
        name = arguments[arguments.index("--name") + 1]
        jobs = [job for job, made in cluster["jobs"].items() if made["name"] == name]
    else:
        jobs = arguments[arguments.index("-j") + 1].split(",")
    rows = [[task, *known[task]] for task in known if task.partition("_")[0] in jobs]
    return "".join("|".join(row) + "\n" for row in rows), 0


def scancel(cluster: dict[str, Any], arguments: list[str]) -> tuple[str, int]:
    for task in arguments:
        if task in cluster["queue"]:
            cluster["queue"][task] = ["CANCELLED", "", "None"]
    return "", 0


def scontrol(cluster: dict[str, Any], arguments: list[str]) -> tuple[str, int]:
    return cluster["config"], 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
