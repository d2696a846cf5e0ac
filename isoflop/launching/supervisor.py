"""A job of one core that looks after a study: it queues what was lost, tells people, and starts itself again."""

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
from isoflop.launching.control import look
from isoflop.launching.notifications import Teller
from isoflop.launching.queue.arrays import ASKS_FOR_MEMORY, Array, sbatch_options
from isoflop.launching.queue.job_states import recorded_supervisor
from isoflop.launching.queue.reconcile import is_hopeless
from isoflop.launching.queue.submit_array import SubmitLimitError, leave_pickle, queue_job
from isoflop.launching.queue.sweep_status import Picture
from isoflop.launching.records.approvals import approved
from isoflop.launching.records.code_snapshot import study_code
from isoflop.launching.records.study_files import kept_profile, lease_study
from isoflop.launching.records.submissions import lease_submissions, submissions_folder
from isoflop.launching.slurm import client as slurm
from isoflop.launching.slurm.signals import Job
from isoflop.launching.submit import submit

LOOK_S = 60.0
AGAIN_S = 5.0
"""Until the look after one that came to nothing; twice as long after each further one, up to `LOOK_S`."""

SOON_S = 0.5
LAST_S = 600.0
"""How long a supervisor that is through goes on trying to tell what it could not."""

ASKS_FOR_MORE = ("gpu", "gres", "tres", "cpus", "mem", "nodes", "ntasks", "exclusive", "array")
"""Options of the runs, by their beginnings, that a supervisor has no use for."""

MEMORY = "1G"
"""What it asks for where runs ask for memory: fitting and drawing 64 runs took 0.3 GB, looking 0.03 GB."""


Look = Literal["over", "goes on", "in vain"]


@dataclass
class Supervisor(Job):
    """What submitit pickles to look after a sweep's directory."""

    def __call__(self) -> str:
        """Looks until nothing is left to do."""
        self.listen()
        directory = Path(self.directory)
        teller = Teller(directory, self.must_stop)
        in_vain = 0
        while (found := supervise(directory, teller)) != "over":
            in_vain = in_vain + 1 if found == "in vain" else 0
            self._pause(pause_s(in_vain))
        limit = time.monotonic() + LAST_S
        while teller.untold and time.monotonic() < limit:
            self._pause(AGAIN_S)
            teller.again()
        return "over"

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.must_stop():
                self.stop()
            time.sleep(SOON_S)


def pause_s(in_vain: int) -> float:
    """Until the next look, after so many in a row that came to nothing."""
    return min(LOOK_S, AGAIN_S * 2 ** (in_vain - 1)) if in_vain else LOOK_S


def supervise(directory: Path, teller: Teller | None = None) -> Look:
    """Looks once: queues what can go on, tells about what happened. What fails may be mended at the next look."""
    teller = teller or Teller(directory)
    teller.begin()
    try:
        return _look(directory, teller)
    except (
        BusyError,
        ClusterError,
    ) as problem:  # the next look may find the cluster again, or nobody at work
        _say(str(problem))
        return "in vain"
    except IsoflopError as problem:
        _say(str(problem))
        _tell_stuck(directory, teller, str(problem))
        return "goes on"
    except Exception as problem:
        _say(traceback.format_exc())
        _tell_stuck(
            directory, teller, f"a look failed, others follow: {type(problem).__name__}: {problem}"
        )
        return "in vain"


def _look(directory: Path, teller: Teller) -> Look:
    with lease_study(directory) as (plan, profile, lease):
        agreed, intent = approved(directory), None
        try:
            intent = submit(plan, profile, runs=agreed, cancelled=False, lease=lease)
        except SubmitLimitError as problem:  # until some have ended
            _say(problem.what)
    if intent is None:  # what did end is told
        tell(teller, profile, look(directory, profile.retries))
        return "goes on"
    agreed &= intent.picture.runs.keys()
    under_way = agreed & set(intent.picture.ids("running", "queued", "requeued"))
    if intent.queued or under_way:
        tell(teller, profile, intent.picture)
        return "goes on"
    conclude(
        teller, profile, directory
    )  # before it is told, so that whoever is told finds the report
    tell(teller, profile, intent.picture)
    if (done := len(agreed & set(intent.picture.ids("done")))) < len(intent.picture.runs):
        teller.tell(profile, "done", _over(intent.picture, agreed, done))
    return "over"


def _over(picture: Picture, agreed: set[str], done: int) -> str:
    """What a study came to whose runs aren't all done."""
    others = Counter(
        picture.runs[run_id].state for run_id in agreed if picture.runs[run_id].state != "done"
    )
    words = [
        f"{done} of {len(agreed)} submitted runs are done",
        *(f"{count} {state}" for state, count in others.items()),
    ]
    never = len(picture.runs) - len(agreed)
    return ", ".join(words) + (f"; {never} more of the sweep were never submitted" if never else "")


def _tell_stuck(directory: Path, teller: Teller, message: str) -> None:
    with suppress(Exception):  # it may be the profile that can't be read
        teller.tell(kept_profile(directory), "stuck", " ".join(message.split()))


def _say(words: str) -> None:
    with suppress(OSError):  # the log may be on the disk that is full
        print(words, file=sys.stderr, flush=True)


def conclude(teller: Teller, profile: Profile, directory: Path) -> None:
    """Fits and reports in a process of its own, so that the supervisor survives what ends it, such as short memory."""
    code = "import sys; from pathlib import Path; from isoflop.launching.prepare_data import conclude_study; "
    command = [sys.executable, "-c", code + "conclude_study(Path(sys.argv[1]))", str(directory)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        mend = (
            "make it with `isoflop report`; if memory was short, see the profile's key `supervisor`"
        )
        _say(done.stderr)
        teller.tell(profile, "stuck", f"no report: ended with {done.returncode}: {why}; {mend}")


def tell(teller: Teller, profile: Profile, picture: Picture) -> None:
    """Tells of what a person should know, each thing once."""
    for run_id in picture.ids("failed", "diverged"):
        where = picture.runs[run_id]
        if not where.again:
            teller.tell(profile, "failed", f"{run_id} {where.state}: {where.reason}")
    for run_id in picture.ids("queued", "requeued"):
        if is_hopeless(picture.runs[run_id].reason):
            teller.tell(profile, "stuck", f"{run_id} waits for ever: {picture.runs[run_id].reason}")
    if len(done := picture.ids("done")) == len(picture.runs):
        teller.tell(profile, "done", f"all {len(done)} runs are done")


def add_supervisor(profile: Profile, directory: Path) -> str | None:
    """Queues the job that looks after a sweep, if none is; its id, or None where there was one.

    Its name, used once, is written down before sbatch is called, as with arrays: a call that was killed in between has
    queued it, or has not.

    Raises:
        BusyError: another process is at work on the submissions.
        ConfigError, ClusterError: as for runs.
    """
    folder, supervisor = submissions_folder(directory) / "supervisor", Supervisor(str(directory))
    with lease_submissions(directory):
        name, job_id = recorded_supervisor(directory) or ("", None)
        before = job_id or (slurm.named(name) if name else None)
        if before and (job := slurm.queue().get(before)) is not None and job.active:
            leave_pickle(supervisor, folder, before)
            return None
        code, _ = study_code(directory)
        name, file = f"{directory.name}-supervisor-{uuid.uuid4().hex[:8]}", folder / "job.json"
        _write(file, name, None)
        try:
            job_id = queue_job(supervisor, light(profile), folder, code, name)
        except (ConfigError, SubmitLimitError):
            file.unlink()
            raise
        _write(file, name, job_id)
    return job_id


def _write(file: Path, name: str, job_id: str | None) -> None:
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps({"name": name, "job_id": job_id}) + "\n")


def light(profile: Profile) -> Profile:
    """The profile with one core and little memory, and with what it says of the supervisor itself."""
    options: dict[str, Any] = {
        name: value
        for name, value in profile.slurm.items()
        if not name.replace("-", "_").startswith(ASKS_FOR_MORE)
    }
    own = {"cpus_per_task": 1, **profile.supervisor}
    run = Array((), gpus=1 if profile.gpu else 0, nodes=1, at_once=1)
    runs_ask = sbatch_options(run, profile).keys() & (ASKS_FOR_MEMORY - {"exclusive"})
    if runs_ask and not {name.replace("-", "_") for name in profile.supervisor} & ASKS_FOR_MEMORY:
        own["mem"] = MEMORY
    return replace(profile, gpu=None, slurm={**options, **own})
