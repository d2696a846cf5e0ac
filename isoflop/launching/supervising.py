"""A job of one core that looks after a study: it queues what was lost, tells people, and starts itself again."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from isoflop.config.profile import Profile
from isoflop.errors import BusyError, ClusterError, IsoflopError
from isoflop.launching import slurm
from isoflop.launching.arrays import ASKS_FOR_MEMORY, Array, sbatch_options
from isoflop.launching.notifying import notify
from isoflop.launching.reconcile import Picture, is_hopeless
from isoflop.launching.signals import Job
from isoflop.launching.snapshot import study_code
from isoflop.launching.submission import queue_job, submissions_folder
from isoflop.launching.submitting import kept_study, submit

LOOK_S = 60.0
AGAIN_S = 5.0
"""Until the look after one that came to nothing; twice as long after each further one, up to `LOOK_S`."""

SOON_S = 0.5
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
        in_vain = 0
        while (look := supervise(directory)) != "over":
            in_vain = in_vain + 1 if look == "in vain" else 0
            until = time.monotonic() + pause_s(in_vain)
            while time.monotonic() < until:
                if self.must_stop():
                    self.stop()
                time.sleep(SOON_S)
        return "over"


def pause_s(in_vain: int) -> float:
    """Until the next look, after so many in a row that came to nothing."""
    return min(LOOK_S, AGAIN_S * 2 ** (in_vain - 1)) if in_vain else LOOK_S


def supervise(directory: Path) -> Look:
    """Looks once: queues what can go on, tells about what happened."""
    plan, profile = kept_study(directory)
    try:
        intent = submit(plan, profile, cancelled=False)
    except (BusyError, ClusterError) as problem:  # the next look may find the cluster again, or nobody at work
        print(problem, flush=True)
        return "in vain"
    except IsoflopError as problem:
        notify(profile, directory, "stuck", str(problem))
        print(problem, flush=True)
        return "goes on"
    over = not intent.queued and not intent.picture.ids("running", "queued", "requeued")
    if over:  # before it is told, so that whoever is told finds the report
        conclude(profile, directory)
    tell(profile, directory, intent.picture)
    return "over" if over else "goes on"


def conclude(profile: Profile, directory: Path) -> None:
    """Fits and reports in a process of its own, so that the supervisor survives what ends it, such as short memory."""
    code = "import sys; from pathlib import Path; from isoflop.launching.study import conclude_study; "
    command = [sys.executable, "-c", code + "conclude_study(Path(sys.argv[1]))", str(directory)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        mend = "make it with `isoflop report`; if memory was short, see the profile's key `supervisor`"
        print(done.stderr, file=sys.stderr)
        notify(profile, directory, "stuck", f"no report: ended with {done.returncode}: {why}; {mend}")


def tell(profile: Profile, directory: Path, picture: Picture) -> None:
    """Tells of what a person should know, each thing once."""
    for run_id in picture.ids("failed", "diverged"):
        where = picture.runs[run_id]
        if not where.again:
            notify(profile, directory, "failed", f"{run_id} {where.state}: {where.reason}")
    for run_id in picture.ids("queued", "requeued"):
        if is_hopeless(picture.runs[run_id].reason):
            notify(profile, directory, "stuck", f"{run_id} waits for ever: {picture.runs[run_id].reason}")
    if len(done := picture.ids("done")) == len(picture.runs):
        notify(profile, directory, "done", f"all {len(done)} runs are done")


def add_supervisor(profile: Profile, directory: Path) -> str | None:
    """Queues the job that looks after a sweep, if none is; its id, or None where there was one.

    Raises:
        ConfigError, ClusterError: as for runs.
    """
    name = f"{directory.name}-supervisor"
    folder = submissions_folder(directory) / "supervisor"
    file = folder / "job_id"
    if file.exists() and (job := slurm.queue().get(file.read_text().strip())) is not None and job.active:
        return None
    code, _ = study_code(directory)
    job_id = queue_job(Supervisor(str(directory)), light(profile), folder, code, name)
    file.write_text(job_id + "\n")
    return job_id


def light(profile: Profile) -> Profile:
    """The profile with one core and little memory, and with what it says of the supervisor itself."""
    options: dict[str, Any] = {
        name: value for name, value in profile.slurm.items() if not name.replace("-", "_").startswith(ASKS_FOR_MORE)
    }
    own = {"cpus_per_task": 1, **profile.supervisor}
    run = Array((), gpus=1 if profile.gpu else 0, nodes=1, at_once=1)
    runs_ask = sbatch_options(run, profile).keys() & (ASKS_FOR_MEMORY - {"exclusive"})
    if runs_ask and not {name.replace("-", "_") for name in profile.supervisor} & ASKS_FOR_MEMORY:
        own["mem"] = MEMORY
    return replace(profile, gpu=None, slurm={**options, **own})
