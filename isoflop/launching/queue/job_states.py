"""Jobs of a sweep in SLURM: queued jobs, and the ends of the others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop.errors import ClusterError
from isoflop.launching.records.submissions import Submission, submissions_folder
from isoflop.launching.slurm import client as slurm
from isoflop.launching.slurm.tasks import Task


@dataclass(frozen=True)
class JobStates:
    """Answers of SLURM about a sweep's jobs.

    Attributes:
        queue: queued jobs by task; None if SLURM does not answer.
        active: unfinished jobs in the queue by run, the oldest first.
        ended: last record of each ended job, by task.
        unexplained: failed jobs whose exit code is not known yet.
    """

    queue: Mapping[str, Task] | None
    active: Mapping[str, Sequence[str]]
    ended: Mapping[str, Task]
    unexplained: Set[str]

    def job(self, task: str | None) -> Task | None:
        """Return a job's record in the queue; None if it has none."""
        return self.queue.get(task or "") if self.queue is not None else None


def recorded_supervisor(directory: Path) -> tuple[str, str | None] | None:
    """Return name and job id of the last supervisor, or None without one.

    The id is None while it is unknown.
    """
    folder = submissions_folder(directory) / "supervisor"
    try:
        record = json.loads((folder / "job.json").read_text())
        return str(record["name"]), record["job_id"] and str(record["job_id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def read_queue(submissions: Sequence[Submission]) -> dict[str, Task]:
    """Return the queue of this user and of every user who submitted.

    Raises:
        ClusterError: SLURM does not answer.
    """
    return slurm.queue({item.user for item in submissions if item.user is not None})


def query_jobs(
    submissions: Sequence[Submission], queue: Mapping[str, Task] | None, tasks: Iterable[str | None]
) -> JobStates:
    """Return the states of all jobs of a sweep; ends only of `tasks`.

    Calls sacct at most once, and scontrol once for each array with a failed job that accounting
    does not list yet.
    """
    if queue is None:
        return JobStates(None, {}, {}, frozenset())
    active: dict[str, list[str]] = {}
    for submission in submissions:
        for run_id in submission.runs:
            if (job := queue.get(submission.task(run_id) or "")) is not None and job.active:
                active.setdefault(run_id, []).append(job.id)
    over = [task for task in tasks if task and not (task in queue and queue[task].active)]
    return JobStates(queue, active, *_query_ended(over, queue))


def _query_ended(
    tasks: Sequence[str], queue: Mapping[str, Task]
) -> tuple[dict[str, Task], set[str]]:
    """Return records of ended jobs, and the failed ones whose exit code is not known yet.

    The state comes from the queue, which is never late. The rest comes from accounting, or from
    the controller while accounting has no record or does not run.
    """
    has_accounting = True
    try:
        known = slurm.accounting(sorted({_array(task) for task in tasks}))
    except ClusterError:  # none, or temporarily down: the runs' directories must do
        known, has_accounting = {}, False
    queued = {task: queue[task] for task in tasks if task in queue}
    late = {task for task in queued if task not in known or known[task].active}
    codes = _exit_codes({_array(task) for task in late if queued[task].state == "FAILED"})
    for task, job in queued.items():
        if task in late:
            known[task] = replace(job, exit_code=codes.get(task, ""))
        else:
            known[task] = replace(known[task], state=job.state)
    unexplained = {
        task
        for task in late
        if has_accounting and known[task].state == "FAILED" and not known[task].exit_code
    }
    return known, unexplained


def _exit_codes(arrays: Iterable[str]) -> dict[str, str]:
    """Return exit codes by task of arrays, as far as the controller remembers them."""
    codes = {}
    for array in arrays:
        with suppress(ClusterError):
            for line in slurm.call("scontrol", "-o", "show", "job", array).splitlines():
                index = re.search(r" ArrayTaskId=(\d+) ", line)
                if code := re.search(r" ExitCode=(\d+:\d+)", line):
                    codes[f"{array}_{index[1]}" if index else array] = code[1]
    return codes


def _array(task: str) -> str:
    return task.partition("_")[0]
