"""Queueing: an array goes to sbatch through submitit, and is found again where nobody knows whether sbatch took it."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

from isoflop.config.profile import Profile
from isoflop.config.sbatch import asking_for_gpus, plain_name
from isoflop.errors import ClusterError, ConfigError
from isoflop.files import replace_file
from isoflop.launching.queue.arrays import Array, python_command, sbatch_options, setup_lines
from isoflop.launching.records.submissions import Submission, read_submissions, submissions_folder
from isoflop.launching.slurm import client as slurm
from isoflop.launching.slurm.signals import Job
from isoflop.launching.worker.slurm_job import RunJob
from isoflop.planning.wall_time import time_limit_hours

if TYPE_CHECKING:
    from submitit import SlurmExecutor

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
NO_LIMIT = 10**9
DEFAULT_TIME_MIN = 24 * 60
"""What submitit takes for the limit of a job whose profile has none."""


class SubmitLimitError(ClusterError):
    """The cluster takes no more jobs of this user until some have ended.

    Attributes:
        what: what it did not take, for who has another mend.
        said: sbatch's own words, if any.
    """

    def __init__(
        self,
        what: str,
        said: str = "",
        mend: str = "submit again when some have ended, or use --supervise",
    ) -> None:
        super().__init__(f"{what}: {mend}{f' ({said})' if said else ''}")
        self.what, self.said = what, said


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


def submit_array(
    array: Array, profile: Profile, directory: Path, code: Path, after: str | None = None
) -> Submission:
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


def _submit(
    array: Array, profile: Profile, directory: Path, code: Path, after: str | None
) -> Submission:
    runs = tuple(run.run_id for run in array.runs)
    name = f"{directory.name}-{uuid.uuid4().hex[:8]}"
    submission = Submission(
        name, runs, array.gpus, time.time(), at_once=array.at_once, user=os.geteuid()
    )
    folder = submissions_folder(directory)
    submission.write(folder)
    jobs = [RunJob(str(directory / run_id)) for run_id in runs]
    try:
        job_id = _queue(
            jobs, folder / name, profile, _parameters(array, profile, code, name, after)
        )
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
    job: Job,
    profile: Profile,
    folder: Path,
    code: Path,
    name: str,
    *,
    gpus: int = 0,
    nodes: int = 1,
    tasks: int = 1,
) -> str:
    """Queues one job that is no run, of `tasks` processes on each node, and returns its id.

    Raises:
        ConfigError, ClusterError: as for arrays.
    """
    slurm.check("sbatch", "srun")
    parameters = _parameters(Array((), gpus, nodes, 1), profile, code, name, None)
    try:
        job_id = _queue(
            [job], folder, profile, {**parameters, "ntasks_per_node": tasks}, unique=False
        )
    except SubmitLimitError as problem:  # of a job that no supervisor queues
        raise SubmitLimitError(
            problem.what, problem.said, "try again when some of your jobs have ended"
        ) from None
    leave_pickle(job, folder, job_id)
    return job_id


def _parameters(
    array: Array, profile: Profile, code: Path, name: str, after: str | None
) -> dict[str, Any]:
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
    jobs: Sequence[Job],
    folder: Path,
    profile: Profile,
    parameters: dict[str, Any],
    *,
    unique: bool = True,
) -> str:
    """The id of a job or an array, once sbatch has taken it; `unique`: no other ever had its name."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = _executor_class()(
        folder, max_num_timeout=NO_LIMIT, python=python_command(profile, sys.executable)
    )
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
        for wait in (
            0.0,
            pause,
        ):  # sbatch may give up on an answer and its array be queued, even some time later
            time.sleep(wait)
            try:
                unsure = False
                if job_id := slurm.named(
                    parameters["job_name"], active=not (unique and may_be_queued)
                ):
                    return job_id
            except ClusterError:
                unsure = True
            if not passes and not (unsure and may_be_queued):
                raise _refused(refusal, profile)
    raise ClusterError(
        f"sbatch: {_last_words(refusal)}; submit again later: what was queued after all is found then"
    )


@cache
def _executor_class() -> type[SlurmExecutor]:
    import submitit
    from submitit.core.utils import FailedSubmissionError

    class SlurmExecutor(submitit.SlurmExecutor):  # submitit goes by this name
        """Submitit's own takes the first "job N" of what sbatch prints, which a site's wrapper may say of another."""

        @staticmethod
        def _get_job_id_from_submission_command(string: bytes | str) -> str:
            text = string if isinstance(string, str) else string.decode(errors="replace")
            found = re.findall(r"Submitted batch job (\d+)", text)
            if not found:  # it is looked up by its name then
                raise FailedSubmissionError(f"no id of a job in {' '.join(text.split())!r}")
            return found[-1]

    return SlurmExecutor


def _words(problem: Exception) -> str:
    """What sbatch said, in one line."""
    cause = problem.__cause__
    said = str(problem) or (cause.stdout if isinstance(cause, CalledProcessError) else "")
    code = f" (exit code {cause.returncode})" if isinstance(cause, CalledProcessError) else ""
    return " ".join(said.split()) or f"it said nothing{code}"


def _refused(refusal: str, profile: Profile) -> ConfigError | SubmitLimitError:
    """Why sbatch takes a job neither now nor later as it is."""
    if slurm.is_submit_limit(refusal):
        return SubmitLimitError("the cluster's submit limit lets no more in", _last_words(refusal))
    key = slurm.key_to_mend(refusal) or ""
    asked = sorted(map(plain_name, asking_for_gpus(profile.slurm)))
    if (
        key.startswith("gpu") and asked
    ):  # then the profile's section on GPUs is not what sbatch was given
        key = ", ".join([*(f"slurm.{name}" for name in asked), *key.split(", ")[1:]])
    return ConfigError(f"{f'{key}: ' if key else ''}sbatch refuses it: {_last_words(refusal)}")


def _adopt(submission: Submission, job_id: str, directory: Path) -> Submission:
    """The submission with its id, and with a pickle for every task that has none yet."""
    adopted = dataclasses.replace(submission, job_id=job_id)
    adopted.write(submissions_folder(directory))
    folder = submissions_folder(directory) / adopted.name
    for run_id in adopted.runs:
        leave_pickle(RunJob(str(directory / run_id)), folder, adopted.task(run_id))
    return adopted


def leave_pickle(job: Job, folder: Path, task: str | None) -> None:
    """Leaves what a task is to do where it looks for it; submitit has, unless sbatch did not say the task's id."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    pickle = JobPaths(folder, task).submitted_pickle
    if not pickle.exists():
        delayed = DelayedSubmission(job)
        delayed.set_timeout(DEFAULT_TIME_MIN, NO_LIMIT)
        with replace_file(pickle) as temporary:
            delayed.dump(temporary)


@contextmanager
def _plain_environment() -> Iterator[None]:
    """The environment without what sbatch would put before the script, or pass on of a job that this process is in."""
    begin = ("SBATCH_", "SLURM_", "SRUN_") if "SLURM_JOB_ID" in os.environ else ("SBATCH_",)
    ours = {name: value for name, value in os.environ.items() if name.startswith(begin)}
    ours.pop("SLURM_CONF", None)
    for name in ours:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(ours)


def _last_words(refusal: str) -> str:
    """What sbatch said, without submitit's words around it."""
    return "; ".join(refusal.split("sbatch: error: ")[1:]).replace(" ; ", "; ") or refusal[-300:]
