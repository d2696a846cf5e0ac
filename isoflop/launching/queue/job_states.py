"""What SLURM says of a sweep's jobs: which are in the queue, and how the others have ended."""

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
from isoflop.launching.slurm.client import Task

HELD = {"SPECIAL_EXIT", "REQUEUE_HOLD"}
"""What SLURM calls jobs that wait since somebody has requeued them to be held."""


@dataclass(frozen=True)
class Seen:
    """What SLURM says.

    Attributes:
        queue: by task; None where it does not answer.
        active: jobs in the queue that are not over, by run, the oldest first.
        words: the last about jobs that have ended, by task.
        unsaid: jobs that have failed, and of which nobody says yet how.
    """

    queue: Mapping[str, Task] | None
    active: Mapping[str, Sequence[str]]
    words: Mapping[str, Task]
    unsaid: Set[str]

    def job(self, task: str | None) -> Task | None:
        """A job as the queue has it."""
        return self.queue.get(task or "") if self.queue is not None else None


def recorded_supervisor(directory: Path) -> tuple[str, str | None] | None:
    """Name and id of the last supervisor's job, the id None while nobody knows it; None where there was none."""
    folder = submissions_folder(directory) / "supervisor"
    try:
        kept = json.loads((folder / "job.json").read_text())
        return str(kept["name"]), kept["job_id"] and str(kept["job_id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def read_queue(submissions: Sequence[Submission]) -> dict[str, Task]:
    """The queue of this user, and of whoever submitted; a job that was requeued and is held waits, whatever SLURM calls
    that.

    Raises:
        ClusterError: it does not answer.
    """
    return {
        task: replace(job, state="PENDING", reason=job.reason or "JobHeldUser")
        if job.state in HELD
        else job
        for task, job in slurm.queue(
            {item.user for item in submissions if item.user is not None}
        ).items()
    }


def see(
    submissions: Sequence[Submission], queue: Mapping[str, Task] | None, tasks: Iterable[str | None]
) -> Seen:
    """What SLURM says of all jobs of a sweep; how they ended, of `tasks` only.

    One call of sacct at most, and one of scontrol for each array of which a job has failed that accounting does not
    know of.
    """
    if queue is None:
        return Seen(None, {}, {}, frozenset())
    active: dict[str, list[str]] = {}
    for submission in submissions:
        for run_id in submission.runs:
            if (job := queue.get(submission.task(run_id) or "")) is not None and job.active:
                active.setdefault(run_id, []).append(job.id)
    ended = [task for task in tasks if task and not (task in queue and queue[task].active)]
    return Seen(queue, active, *_last_words(ended, queue))


def _last_words(
    tasks: Sequence[str], queue: Mapping[str, Task]
) -> tuple[dict[str, Task], set[str]]:
    """How jobs ended, and which of them have failed in a way that is not known yet.

    Their state is from the queue, which is never late; the rest from accounting, or from the controller while
    accounting has nothing yet, or is not kept.
    """
    accounts = True
    try:
        known = slurm.accounting(sorted({_array(task) for task in tasks}))
    except ClusterError:  # there is none, or not now: the runs' directories have to do
        known, accounts = {}, False
    queued = {task: queue[task] for task in tasks if task in queue}
    late = {task for task in queued if task not in known or known[task].active}
    codes = _exit_codes({_array(task) for task in late if queued[task].state == "FAILED"})
    for task, job in queued.items():
        said = replace(job, exit_code=codes.get(task, ""))
        known[task] = said if task in late else replace(known[task], state=job.state)
    unsaid = {
        task
        for task in late
        if accounts and known[task].state == "FAILED" and not known[task].exit_code
    }
    return known, unsaid


def _exit_codes(arrays: Iterable[str]) -> dict[str, str]:
    """Of the tasks of arrays, by task, as far as the controller remembers them."""
    found = {}
    for array in arrays:
        with suppress(ClusterError):
            for line in slurm.call("scontrol", "-o", "show", "job", array).splitlines():
                index, code = (
                    re.search(r" ArrayTaskId=(\d+) ", line),
                    re.search(r" ExitCode=(\d+:\d+)", line),
                )
                if code:
                    found[f"{array}_{index[1]}" if index else array] = code[1]
    return found


def _array(task: str) -> str:
    return task.partition("_")[0]
