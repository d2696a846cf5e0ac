"""Submissions: one array of jobs each, written down before sbatch is called, so that a killed call loses nothing.

The record of a submission is its intent (a name that SLURM knows the array by, and the runs in order) until its job id
is added. An intent without one is looked up by name: either its array was queued, and the id is added, or it was not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

<<<<<<< HEAD
from isoflop.errors import BusyError, ConfigError, RunError
=======
from isoflop.config.profile import Profile
from isoflop.config.sbatch import asking_for_gpus, plain_name
from isoflop.errors import ClusterError, ConfigError
>>>>>>> 95b0c29 (The bill of a submission cuts arrays where the cluster does; a refusal names options as before)
from isoflop.files import replace_file
from isoflop.lease import Lease, holder_of, take_lease

WAIT_S = 30.0
"""How long one call waits for another."""


@dataclass(frozen=True)
class Submission:
    """An array of jobs, or one job.

    Attributes:
        name: of the jobs in SLURM, used once.
        runs: the run of each task, by index.
        gpus: of a run.
        submitted: seconds since 1970.
        job_id: of the array; None until sbatch has answered.
        cancelled: runs whose task was cancelled by isoflop.
        at_once: how many of its tasks SLURM lets run at once; 0 where nobody has said.
        user: number of the user whose jobs they are; None in records of earlier versions.
    """

    name: str
    runs: tuple[str, ...]
    gpus: int
    submitted: float
    job_id: str | None = None
    cancelled: tuple[str, ...] = ()
    at_once: int = 0
    user: int | None = None

    def task(self, run_id: str) -> str | None:
        """SLURM's id of a run's task."""
        if self.job_id is None:
            return None
        return self.job_id if len(self.runs) == 1 else f"{self.job_id}_{self._index[run_id]}"

    @cached_property
    def _index(self) -> dict[str, int]:
        """The index of each run; looked up for every run of a study, of which there may be thousands."""
        return {run_id: index for index, run_id in enumerate(self.runs)}

    def write(self, folder: Path) -> None:
        with replace_file(folder / f"{self.name}.json") as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self)) + "\n")


def submissions_folder(directory: Path) -> Path:
    """Where a sweep's submissions and what submitit writes for them are."""
    return directory / "submissions"


def read_submissions(directory: Path) -> list[Submission]:
    """A sweep's submissions, the oldest first.

    Raises:
        ConfigError: a record that can't be read.
    """
    found = []
    for path in submissions_folder(directory).glob("*.json"):
        try:
            found.append(_record(json.loads(path.read_text())))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path}: damaged; cancel its jobs (squeue -n {path.stem}) and delete it") from None
    return sorted(found, key=lambda submission: submission.submitted)


def _record(values: dict[str, Any]) -> Submission:
    """A submission as its record has it; raises what a record of other keys or types happens to raise."""
    lists = {key: tuple(values[key]) for key in ("runs", "cancelled") if isinstance(values[key], list)}
    made = Submission(**{**values, **lists})
    words = (made.name, *made.runs, *made.cancelled, *([] if made.job_id is None else [made.job_id]))
    if len(lists) < 2 or not all(isinstance(word, str) for word in words) or type(made.gpus) is not int:
        raise TypeError
    return dataclasses.replace(made, submitted=0.0 + made.submitted)


<<<<<<< HEAD
=======
def heal(directory: Path) -> list[Submission]:
    """A sweep's submissions, with those that a killed call left half-made either finished or dropped.

    For who holds the lease on submissions.
    """
    folder, kept = submissions_folder(directory), []
    for submission in read_submissions(directory):
        if submission.job_id is None:
            job_id = slurm.named(submission.name)
            if job_id is None:
                (folder / f"{submission.name}.json").unlink()
                shutil.rmtree(folder / submission.name, ignore_errors=True)
                continue
            submission = _adopt(submission, job_id, directory)
        kept.append(submission)
    return kept


def submit_array(array: Array, profile: Profile, directory: Path, code: Path, after: str | None = None) -> Submission:
    """Queues an array through submitit; tries again where sbatch fails for the moment.

    Where the cluster does not take so many jobs, only the first of the runs are queued: see the result's.

    Args:
        array: its runs.
        profile: the cluster.
        directory: of the sweep.
        code: the folder that jobs import `isoflop` from.
        after: id of an array that must have ended before.

    Raises:
        ConfigError: the cluster refuses what the profile asks for.
        SubmitLimitError: it does not take one run more.
        ClusterError: sbatch kept failing.
    """
    slurm.check("sbatch", "srun")
    while True:
        try:
            return _submit(array, profile, directory, code, after)
        except SubmitLimitError:
            if len(array.runs) == 1:
                raise
            array = dataclasses.replace(array, runs=array.runs[: len(array.runs) // 2])


def _submit(array: Array, profile: Profile, directory: Path, code: Path, after: str | None) -> Submission:
    runs = tuple(run.run_id for run in array.runs)
    name = f"{directory.name}-{uuid.uuid4().hex[:8]}"
    submission = Submission(name, runs, array.gpus, time.time(), at_once=array.at_once)
    folder = submissions_folder(directory)
    submission.write(folder)
    jobs = [RunJob(str(directory / run_id)) for run_id in runs]
    try:
        job_id = _queue(jobs, folder / name, profile, _parameters(array, profile, code, name, after))
    except (ConfigError, SubmitLimitError):
        (folder / f"{name}.json").unlink()
        shutil.rmtree(folder / name, ignore_errors=True)
        raise
    return _adopt(submission, job_id, directory)


def sbatch_script(array: Array, profile: Profile, directory: Path, code: Path) -> str:
    """The script that sbatch would get, without asking SLURM for anything."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder, name = submissions_folder(directory) / "NAME", f"{directory.name}-NAME"
    command = f"{python_command(profile, sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    parameters = _parameters(array, profile, code, name, None)
    if len(array.runs) > 1:
        parameters["map_count"] = len(array.runs)
    return _make_sbatch_string(command=command, folder=folder, **parameters)


def queue_job(
    job: Job, profile: Profile, folder: Path, code: Path, name: str, *, gpus: int = 0, nodes: int = 1, tasks: int = 1
) -> str:
    """Queues one job that is no run, of `tasks` processes on each node, and returns its id.

    Raises:
        ConfigError, ClusterError: as for arrays.
    """
    slurm.check("sbatch", "srun")
    parameters = _parameters(Array((), gpus, nodes, 1), profile, code, name, None)
    return _queue([job], folder, profile, {**parameters, "ntasks_per_node": tasks}, unique=False)


def _parameters(array: Array, profile: Profile, code: Path, name: str, after: str | None) -> dict[str, Any]:
    """What submitit makes the script from; `additional_parameters` replace what it would add by itself."""
    hours = time_limit_hours(profile)
    options = sbatch_options(array, profile)
    if after is not None:
        options["dependency"] = f"afterany:{after}"
    return {
        "job_name": name,
        "time": None if hours == float("inf") else max(1, int(60 * hours)),
        "ntasks_per_node": array.tasks_per_node,
        "wckey": None,  # submitit's own would be refused by some clusters
        "array_parallelism": array.at_once,
        "setup": setup_lines(profile, code),
        "srun_args": ["--export=ALL", "--kill-on-bad-exit=1"],
        "additional_parameters": options,
    }


class _Parameters(dict[str, Any]):
    """What an executor keeps; submitit looks up `time` for its pickles, which need one even if the script has none."""

    def get(self, key: str, default: Any = None) -> Any:
        found = super().get(key, default)
        return DEFAULT_TIME_MIN if key == "time" and found is None else found


def _queue(
    jobs: Sequence[Job], folder: Path, profile: Profile, parameters: dict[str, Any], *, unique: bool = True
) -> str:
    """The id of a job or an array, once sbatch has taken it; `unique`: no other ever had its name."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = submitit.SlurmExecutor(folder, max_num_timeout=NO_LIMIT, python=python_command(profile, sys.executable))
    executor.parameters = _Parameters(executor.parameters)
    executor.update_parameters(**parameters)
    unsure, refusal, passes, may_be_queued = False, "", False, False
    for pause in (*PAUSES_S, 0.0):
        if not unsure:
            try:
                with _plain_environment(), executor.batch():
                    submitted = [executor.submit(job) for job in jobs]
                return submitted[0].job_id.split("_")[0]
            except (FailedJobError, FailedSubmissionError) as problem:
                refusal = _words(problem)
                passes = slurm.may_pass(refusal)
                may_be_queued |= passes or isinstance(problem, FailedSubmissionError)
        for wait in (0.0, pause):  # sbatch may give up on an answer and its array be queued, even some time later
            time.sleep(wait)
            try:
                unsure = False
                if job_id := slurm.named(parameters["job_name"], active=not (unique and may_be_queued)):
                    return job_id
            except ClusterError:
                unsure = True
            if not passes and not (unsure and may_be_queued):
                raise _refused(refusal, profile)
    raise ClusterError(f"sbatch: {_last_words(refusal)}; submit again later: what was queued after all is found then")


def _words(problem: Exception) -> str:
    """What sbatch said, in one line."""
    cause = problem.__cause__
    said = str(problem) or (cause.stdout if isinstance(cause, CalledProcessError) else "")
    code = f" (exit code {cause.returncode})" if isinstance(cause, CalledProcessError) else ""
    return " ".join(said.split()) or f"it said nothing{code}"


def _refused(refusal: str, profile: Profile) -> ConfigError | SubmitLimitError:
    """Why sbatch takes a job neither now nor later as it is."""
    if slurm.is_submit_limit(refusal):
        mend = "submit again when some have ended, or use --supervise"
        return SubmitLimitError(f"the cluster's submit limit lets no more in: {mend} ({_last_words(refusal)})")
    key = slurm.key_to_mend(refusal) or ""
    asked = sorted(map(plain_name, asking_for_gpus(profile.slurm)))
    if key.startswith("gpu") and asked:  # then the profile's section on GPUs is not what sbatch was given
        key = ", ".join([*(f"slurm.{name}" for name in asked), *key.split(", ")[1:]])
    return ConfigError(f"{f'{key}: ' if key else ''}sbatch refuses it: {_last_words(refusal)}")


def _adopt(submission: Submission, job_id: str, directory: Path) -> Submission:
    """The submission with its id, and with a pickle for every task that has none yet."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    adopted = dataclasses.replace(submission, job_id=job_id)
    adopted.write(submissions_folder(directory))
    for run_id in adopted.runs:
        pickle = JobPaths(submissions_folder(directory) / adopted.name, adopted.task(run_id)).submitted_pickle
        if not pickle.exists():
            delayed = DelayedSubmission(RunJob(str(directory / run_id)))
            delayed.set_timeout(DEFAULT_TIME_MIN, NO_LIMIT)
            with replace_file(pickle) as temporary:
                delayed.dump(temporary)
    return adopted


>>>>>>> 95b0c29 (The bill of a submission cuts arrays where the cluster does; a refusal names options as before)
@contextmanager
def lease_submissions(directory: Path) -> Iterator[Lease]:
    """The right to change a sweep's submissions; another call that is at work is waited for a while.

    Raises:
        BusyError: it stays at work.
        RunError: another user has submitted the sweep, whose jobs nobody else can see or cancel.
    """
    path, limit = submissions_folder(directory) / "lease", time.monotonic() + WAIT_S
    others = {item.user for item in read_submissions(directory)} - {None, os.geteuid()}
    if others:
        raise RunError(
            f"{directory}: submitted by {_user_name(others.pop())}, who alone can submit, cancel or retry its runs; "
            "give a study of your own another name (name=...)"
        )
    while True:
        with take_lease(path, settle_s=0.1) as lease:
            if lease:
                yield lease
                return
        if time.monotonic() > limit:
            who = holder_of(path)
            raise BusyError(
                f"{directory}: another isoflop command{f' ({who})' if who else ''} is at work here; wait for it"
            )
        time.sleep(1.0)


def _user_name(number: int | None) -> str:
    try:
        return pwd.getpwuid(number or 0).pw_name
    except KeyError:
        return f"user {number}"
