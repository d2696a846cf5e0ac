"""Supervisor of a study: a one-core job that requeues lost runs, notifies, and restarts itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from isoflop.config.profile import Profile
from isoflop.errors import BusyError, ClusterError, ConfigError, IsoflopError
from isoflop.files import replace_file
from isoflop.launching.control import query_status
from isoflop.launching.notifications import Notifier
from isoflop.launching.queue.arrays import MEMORY_OPTIONS, Array, sbatch_options
from isoflop.launching.queue.job_states import recorded_supervisor
from isoflop.launching.queue.reconcile import never_starts
from isoflop.launching.queue.submit_array import SubmitLimitError, queue_job, write_pickle
from isoflop.launching.queue.sweep_status import SweepStatus
from isoflop.launching.records.approvals import read_approved
from isoflop.launching.records.code_snapshot import snapshot_code
from isoflop.launching.records.study_files import lease_study, read_study_profile
from isoflop.launching.records.submissions import lease_submissions, submissions_folder
from isoflop.launching.slurm import client as slurm
from isoflop.launching.slurm.signals import Job
from isoflop.launching.submit import submit

CYCLE_S = 60.0
FIRST_CYCLE_RETRY_S = 5.0
"""Pause after a failed cycle: doubled after each further failure, up to `CYCLE_S`."""

SIGNAL_POLL_S = 0.5
LAST_NOTIFICATIONS_S = 600.0
"""Longest time that a finished supervisor spends on pending notifications."""

RUN_RESOURCE_PREFIXES = (
    "gpu",
    "gres",
    "tres",
    "cpus",
    "mem",
    "nodes",
    "ntasks",
    "exclusive",
    "array",
)
"""Prefixes of sbatch options that a supervisor drops from those of the runs."""

SUPERVISOR_MEMORY = "1G"
"""Memory to request if runs request memory: fitting and drawing 64 runs took 0.3 GB, a cycle
0.03 GB."""


Outcome = Literal["finished", "pending", "failed"]
"""Result of a cycle: study finished, work remains, or the cycle failed."""


@dataclass
class Supervisor(Job):
    """Job that submitit pickles to supervise a sweep's directory."""

    def __call__(self) -> str:
        """Run cycles until no work remains."""
        self.listen()
        directory = Path(self.directory)
        notifier = Notifier(directory, self.must_stop)
        failures = 0
        while (outcome := supervise(directory, notifier)) != "finished":
            failures = failures + 1 if outcome == "failed" else 0
            self._pause(pause_seconds(failures))
        limit = time.monotonic() + LAST_NOTIFICATIONS_S
        while notifier.pending and time.monotonic() < limit:
            self._pause(FIRST_CYCLE_RETRY_S)
            notifier.retry()
        return "finished"

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.must_stop():
                self.stop()
            time.sleep(SIGNAL_POLL_S)


Supervisor.__module__ = "isoflop.launching.supervising"
"""Module named in pickles: jobs import a study's code copy, which may have an older layout."""


def pause_seconds(failures: int) -> float:
    """Return the seconds until the next cycle, after a number of consecutive failed cycles."""
    return min(CYCLE_S, FIRST_CYCLE_RETRY_S * 2 ** (failures - 1)) if failures else CYCLE_S


def supervise(directory: Path, notifier: Notifier | None = None) -> Outcome:
    """Run one cycle: queue resumable runs and send notifications.

    Errors are logged, not raised: the next cycle may succeed.
    """
    notifier = notifier or Notifier(directory)
    notifier.begin()
    try:
        return _run_cycle(directory, notifier)
    except (BusyError, ClusterError) as problem:  # transient: cluster down, or submissions leased
        _log(str(problem))
        return "failed"
    except IsoflopError as problem:
        _log(str(problem))
        _send_stuck(directory, notifier, str(problem))
        return "pending"
    except Exception as problem:
        _log(traceback.format_exc())
        message = f"a cycle failed and will be repeated: {type(problem).__name__}: {problem}"
        _send_stuck(directory, notifier, message)
        return "failed"


def _run_cycle(directory: Path, notifier: Notifier) -> Outcome:
    with lease_study(directory) as (plan, profile, lease):
        agreed, submission = read_approved(directory), None
        try:
            submission = submit(plan, profile, runs=agreed, cancelled=False, lease=lease)
        except SubmitLimitError as problem:
            _log(problem.reason)
    if submission is None:  # nothing was queued, but runs may have ended
        notify_events(notifier, profile, query_status(directory, profile.retries))
        return "pending"
    agreed &= submission.status.runs.keys()
    under_way = agreed & set(submission.status.ids("running", "queued", "requeued"))
    if submission.queued or under_way:
        notify_events(notifier, profile, submission.status)
        return "pending"
    write_report(notifier, profile, directory)  # first, so that the report exists when they read
    notify_events(notifier, profile, submission.status)
    if (done := len(agreed & set(submission.status.ids("done")))) < len(submission.status.runs):
        notifier.send(profile, "done", _describe_end(submission.status, agreed, done))
    return "finished"


def _describe_end(status: SweepStatus, agreed: set[str], done: int) -> str:
    """Return the final counts of a study with unfinished runs."""
    others = Counter(
        status.runs[run_id].state for run_id in agreed if status.runs[run_id].state != "done"
    )
    counts = [
        f"{done} of {len(agreed)} submitted runs are done",
        *(f"{count} {state}" for state, count in others.items()),
    ]
    never = len(status.runs) - len(agreed)
    rest = f"; {never} more of the sweep were never submitted" if never else ""
    return ", ".join(counts) + rest


def _send_stuck(directory: Path, notifier: Notifier, message: str) -> None:
    with suppress(Exception):  # the profile itself may be unreadable
        notifier.send(read_study_profile(directory), "stuck", " ".join(message.split()))


def _log(text: str) -> None:
    with suppress(OSError):  # the log may be on the full disk
        print(text, file=sys.stderr, flush=True)


def write_report(notifier: Notifier, profile: Profile, directory: Path) -> None:
    """Fit and report in a separate process: short memory there does not end the supervisor."""
    command = [sys.executable, "-m", "isoflop", "report", str(directory)]
    process = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    # `isoflop report` prints the report's path even if it refuses to fit a law.
    if process.returncode and not process.stdout:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        fix = (
            "make it with `isoflop report`; if memory was short, see the profile's key `supervisor`"
        )
        _log(process.stderr)
        message = f"no report: ended with {process.returncode}: {reason}; {fix}"
        notifier.send(profile, "stuck", message)


def notify_events(notifier: Notifier, profile: Profile, status: SweepStatus) -> None:
    """Send the events of a sweep's status, each once."""
    for run_id in status.ids("failed", "diverged"):
        run = status.runs[run_id]
        if not run.retry:
            notifier.send(profile, "failed", f"{run_id} {run.state}: {run.reason}")
    for run_id in status.ids("queued", "requeued"):
        reason = status.runs[run_id].reason
        if never_starts(reason):
            notifier.send(profile, "stuck", f"{run_id} can never start: {reason}")
    if len(done := status.ids("done")) == len(status.runs):
        notifier.send(profile, "done", f"all {len(done)} runs are done")


def add_supervisor(profile: Profile, directory: Path) -> str | None:
    """Queue a sweep's supervisor unless one is queued; return its job id, or None if one was.

    Its unique name is recorded before sbatch is called, as for arrays. After a call killed in
    between, the name shows whether the job was queued.

    Raises:
        BusyError: another process holds the lease on the submissions.
        ConfigError, ClusterError: as for runs.
    """
    folder, supervisor = submissions_folder(directory) / "supervisor", Supervisor(str(directory))
    with lease_submissions(directory):
        name, job_id = recorded_supervisor(directory) or ("", None)
        before = job_id or (slurm.find_job_id(name) if name else None)
        if before and (job := slurm.queue().get(before)) is not None and job.active:
            write_pickle(supervisor, folder, before)
            return None
        code, _ = snapshot_code(directory)
        name, file = f"{directory.name}-supervisor-{uuid.uuid4().hex[:8]}", folder / "job.json"
        _write(file, name, None)
        try:
            job_id = queue_job(supervisor, minimal_profile(profile), folder, code, name)
        except (ConfigError, SubmitLimitError):
            file.unlink()
            raise
        _write(file, name, job_id)
    return job_id


def _write(file: Path, name: str, job_id: str | None) -> None:
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps({"name": name, "job_id": job_id}) + "\n")


def minimal_profile(profile: Profile) -> Profile:
    """Return the profile with one core, little memory, and its options for the supervisor."""
    options: dict[str, Any] = {
        name: value
        for name, value in profile.slurm.items()
        if not name.replace("-", "_").startswith(RUN_RESOURCE_PREFIXES)
    }
    options |= {"cpus_per_task": 1, **profile.supervisor}
    run = Array((), gpus=1 if profile.gpu else 0, nodes=1, at_once=1)
    runs_ask = sbatch_options(run, profile).keys() & (MEMORY_OPTIONS - {"exclusive"})
    if runs_ask and not {name.replace("-", "_") for name in profile.supervisor} & MEMORY_OPTIONS:
        options["mem"] = SUPERVISOR_MEMORY
    return replace(profile, gpu=None, slurm=options)
