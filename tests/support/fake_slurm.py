"""Stand-ins for SLURM's programs, which keep a cluster in a file: for what a true one can't be made to do at will."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")
SHORT = {
    "squeue": """[ -e answers.squeue ] || case "$*" in *-n*) [ -e jobs ] || exit 0;; *) exec /bin/cat queue;; esac""",
    "scontrol": "[ -e answers.scontrol ] || exec /bin/cat config",
}
"""What needs no Python, which takes longer to start than all else."""

EMPTY: dict[str, Any] = {
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

LIMIT = (
    "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS "
    "policy (job submit limit, user's size and/or time limits)"
)
"""What SLURM 22.05 says where a user may have no more jobs."""


@dataclass(frozen=True)
class FakeSlurm:
    """A cluster whose programs lie in a folder that is to be the whole PATH.

    Its file holds `jobs` (by id, with their options), `queue` (task: state, node, reason), `accounting` (task: state,
    node, exit code; null where there is none), the answers that programs will give before they work, how many tasks
    may be queued (`limit`) and what a task is once it is `born`.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> FakeSlurm:
        folder.mkdir()
        slurm = cls(folder)
        write(slurm._file, EMPTY)
        for name in PROGRAMS:
            command = shlex.join([sys.executable, "-IS", __file__, str(slurm._file), name])
            slurm.program(
                name, f'cd {shlex.quote(str(folder))}\n{SHORT.get(name, "")}\nexec {command} "$@"'
            )
        return slurm

    @property
    def _file(self) -> Path:
        return self.folder / "cluster.json"

    def program(self, name: str, script: str) -> None:
        """Replaces a program by lines of shell."""
        (self.folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / name).chmod(0o755)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    def read(self) -> dict[str, Any]:
        return json.loads(self._file.read_text())

    def change(self, **parts: Any) -> None:
        write(self._file, {**self.read(), **parts})

    def answer(
        self, program: str, words: str, times: int = 1, *, queues: str = "", code: int = 1
    ) -> None:
        """The next calls of a program fail with these words; `queues`: sbatch does its work all `now`, or `later`,
        once it has been looked for in vain, or leaves the record that SLURM keeps of a job which it has `refused`."""
        answers = self.read()["answers"]
        more = [{"words": words, "queues": queues, "code": code}] * times
        self.change(answers={**answers, program: [*answers.get(program, []), *more]})

    def end(
        self, tasks: Iterable[str], state: str, *, node: str = "n1", exit_code: str = "0:0"
    ) -> None:
        """Jobs that the controller has forgotten, and accounting has not."""
        cluster, tasks = self.read(), set(tasks)
        queue = {task: line for task, line in cluster["queue"].items() if task not in tasks}
        self.change(
            queue=queue,
            accounting=cluster["accounting"] | {task: [state, node, exit_code] for task in tasks},
        )

    def calls(self, program: str) -> list[dict[str, Any]]:
        return [call for call in self.read()["calls"] if call["program"] == program]


def write(file: Path, cluster: dict[str, Any]) -> None:
    """Writes the cluster, and what shells read of it."""
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
    ours = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }
    cluster["calls"].append({"program": program, "arguments": arguments, "environment": ours})
    waiting = cluster["answers"].get(program)
    answer = waiting.pop(0) if waiting else {"words": "", "queues": "now", "code": 0}
    output = ""
    if program == "sbatch":
        output, refused = sbatch(cluster, Path(arguments[0]).read_text(), answer["queues"])
        if refused:
            answer = {"words": LIMIT, "code": 1}
    elif not answer["code"]:
        output, code = {"squeue": squeue, "sacct": sacct, "scancel": scancel, "scontrol": scontrol}[
            program
        ](cluster, arguments)
        if code:
            answer = {"words": output, "code": code}
    write(file, cluster)
    if answer["code"]:
        print(answer["words"], file=sys.stderr)
    else:
        print(output, end="")
    return answer["code"]


def sbatch(cluster: dict[str, Any], script: str, queues: str) -> tuple[str, bool]:
    """What it prints, and whether there would be too many jobs."""
    options: dict[str, str] = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            name, _, value = shlex.split(line.removeprefix("#SBATCH --"))[0].partition("=")
            options[name] = value
    if not queues:
        return "", False
    last = int(options["array"].partition("%")[0].partition("-")[2]) if "array" in options else None
    there = sum(line[0] in ("PENDING", "RUNNING") for line in cluster["queue"].values())
    if cluster["limit"] is not None and there + (last or 0) + 1 > cluster["limit"]:
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
    found = [[task, *known[task]] for task in known if task.partition("_")[0] in jobs]
    return "".join("|".join(line) + "\n" for line in found), 0


def scancel(cluster: dict[str, Any], arguments: list[str]) -> tuple[str, int]:
    for task in arguments:
        if task in cluster["queue"]:
            cluster["queue"][task] = ["CANCELLED", "", "None"]
    return "", 0


def scontrol(cluster: dict[str, Any], arguments: list[str]) -> tuple[str, int]:
    return cluster["config"], 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
