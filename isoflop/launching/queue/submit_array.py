"""Submission of arrays to sbatch through submitit, safe if sbatch's answer is lost."""

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
from isoflop.config.sbatch import list_gpu_options, plain_name
from isoflop.errors import ClusterError, ConfigError
from isoflop.files import replace_file
from isoflop.launching.queue.arrays import Array, python_command, sbatch_options, setup_lines
from isoflop.launching.records.submissions import Submission, read_submissions, submissions_folder
from isoflop.launching.slurm import client as slurm
from isoflop.launching.slurm.sbatch_refusals import (
    find_profile_key,
    is_submit_limit,
    is_transient,
)
from isoflop.launching.slurm.signals import Job
from isoflop.launching.worker.slurm_job import RunJob
from isoflop.planning.wall_time import max_job_hours

if TYPE_CHECKING:
    from submitit import SlurmExecutor

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
MAX_REQUEUES = 10**9
DEFAULT_TIME_MIN = 24 * 60
"""Time limit that submitit assumes for a job whose profile has none."""


class SubmitLimitError(ClusterError):
    """Refusal of more jobs of this user until some have finished.

    Attributes:
        reason: the message without the fix, for callers with another fix.
        detail: sbatch's own message, if any.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        fix: str = "run `isoflop submit` again when jobs have finished, or use --supervise",
    ) -> None:
        super().__init__(f"{reason}: {fix}{f' ({detail})' if detail else ''}")
        self.reason, self.detail = reason, detail


def recover_submissions(directory: Path) -> list[Submission]:
    """Return a sweep's submissions; complete or drop those that a killed call left incomplete.

    Requires the submissions lease.
    """
    folder, recovered = submissions_folder(directory), []
    for submission in read_submissions(directory):
        if submission.job_id is None:
            job_id = slurm.find_job_id(submission.name)
            if job_id is None:
                (folder / f"{submission.name}.json").unlink()
                shutil.rmtree(folder / submission.name, ignore_errors=True)
                continue
            submission = _adopt(submission, job_id, directory)
        recovered.append(submission)
    return recovered


def submit_array(
    array: Array, profile: Profile, directory: Path, code: Path, after: str | None = None
) -> Submission:
    """Queue an array through submitit; retry if sbatch fails temporarily.

    If the cluster refuses so many jobs, only the first runs are queued: see `runs` of the result.

    Args:
        array: runs with their resources.
        profile: the cluster.
        directory: the sweep's directory.
        code: folder from which jobs import `isoflop`.
        after: ids of arrays that must end first, joined by colons.

    Raises:
        ConfigError: the cluster rejects the profile's options.
        SubmitLimitError: it accepts not even one more run.
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
    """Return the script that sbatch would get; calls no program of SLURM."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder, name = submissions_folder(directory) / "NAME", f"{directory.name}-NAME"
    python = python_command(profile, sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
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
    """Queue one job that is no run, with `tasks` processes on each node; return its id.

    Raises:
        ConfigError, ClusterError: as `submit_array`.
    """
    slurm.check("sbatch", "srun")
    parameters = _parameters(Array((), gpus, nodes, 1), profile, code, name, None)
    try:
        job_id = _queue(
            [job], folder, profile, {**parameters, "ntasks_per_node": tasks}, unique=False
        )
    except SubmitLimitError as problem:  # a supervisor does not queue this job
        raise SubmitLimitError(
            problem.reason, problem.detail, "try again when some of your jobs have finished"
        ) from None
    write_pickle(job, folder, job_id)
    return job_id


def _parameters(
    array: Array, profile: Profile, code: Path, name: str, after: str | None
) -> dict[str, Any]:
    """Return submitit's parameters; `additional_parameters` replace those it would add."""
    hours = max_job_hours(profile)
    options = sbatch_options(array, profile)
    if after is not None:
        options["dependency"] = f"afterany:{after}"
    return {
        "job_name": name,
        "time": None if hours == float("inf") else max(1, int(60 * hours)),
        "ntasks_per_node": array.tasks_per_node,
        "wckey": None,  # some clusters reject submitit's default
        "array_parallelism": array.at_once,
        "setup": setup_lines(profile, code),
        "srun_args": ["--export=ALL", "--kill-on-bad-exit=1"],
        "additional_parameters": options,
    }


class _Parameters(dict[str, Any]):
    """Parameters of an executor; submitit's pickles need a `time` even if the script has none."""

    def get(self, key: str, default: Any = None) -> Any:
        value = super().get(key, default)
        return DEFAULT_TIME_MIN if key == "time" and value is None else value


def _queue(
    jobs: Sequence[Job],
    folder: Path,
    profile: Profile,
    parameters: dict[str, Any],
    *,
    unique: bool = True,
) -> str:
    """Queue a job or an array; return its id. `unique`: its name was never used before."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = _executor_class()(
        folder, max_num_timeout=MAX_REQUEUES, python=python_command(profile, sys.executable)
    )
    executor.parameters = _Parameters(executor.parameters)
    executor.update_parameters(**parameters)
    unsure, refusal, transient, may_be_queued = False, "", False, False
    for pause in (*PAUSES_S, 0.0):
        if not unsure:
            try:
                with _plain_environment(), executor.batch():
                    submitted = [executor.submit(job) for job in jobs]
                return submitted[0].job_id.split("_")[0]
            except (FailedJobError, FailedSubmissionError) as problem:
                refusal = _error_text(problem)
                transient = is_transient(refusal)
                may_be_queued |= transient or isinstance(problem, FailedSubmissionError)
        # sbatch may give up waiting although its array is queued, even some time later.
        for wait in (0.0, pause):
            time.sleep(wait)
            try:
                unsure = False
                if job_id := slurm.find_job_id(
                    parameters["job_name"], active=not (unique and may_be_queued)
                ):
                    return job_id
            except ClusterError:
                unsure = True
            if not transient and not (unsure and may_be_queued):
                raise _to_error(refusal, profile)
    raise ClusterError(
        f"sbatch: {_sbatch_message(refusal)}; run `isoflop submit` again later: "
        "it finds arrays that were queued after all"
    )


@cache
def _executor_class() -> type[SlurmExecutor]:
    import submitit
    from submitit.core.utils import FailedSubmissionError

    class SlurmExecutor(submitit.SlurmExecutor):  # submitit relies on this name
        """Executor that reads the job id from sbatch's own line.

        Submitit's takes the first "job N", which a site's wrapper may print about another job.
        """

        @staticmethod
        def _get_job_id_from_submission_command(string: bytes | str) -> str:
            text = string if isinstance(string, str) else string.decode(errors="replace")
            job_ids = re.findall(r"Submitted batch job (\d+)", text)
            if not job_ids:  # then the job is looked up by its name
                raise FailedSubmissionError(f"no job id in {' '.join(text.split())!r}")
            return job_ids[-1]

    return SlurmExecutor


def _error_text(problem: Exception) -> str:
    """Return sbatch's output in one line."""
    cause = problem.__cause__
    text = str(problem) or (cause.stdout if isinstance(cause, CalledProcessError) else "")
    code = f" (exit code {cause.returncode})" if isinstance(cause, CalledProcessError) else ""
    return " ".join(text.split()) or f"no error message{code}"


def _to_error(refusal: str, profile: Profile) -> ConfigError | SubmitLimitError:
    """Return the error for a job that sbatch rejects permanently."""
    if is_submit_limit(refusal):
        return SubmitLimitError("job submit limit reached", _sbatch_message(refusal))
    key = find_profile_key(refusal) or ""
    gpu_options = sorted(map(plain_name, list_gpu_options(profile.slurm)))
    if key.startswith("gpu") and gpu_options:  # these replaced the profile's section `gpu`
        key = ", ".join([*(f"slurm.{name}" for name in gpu_options), *key.split(", ")[1:]])
    prefix = f"{key}: " if key else ""
    return ConfigError(f"{prefix}sbatch rejects the job: {_sbatch_message(refusal)}")


def _adopt(submission: Submission, job_id: str, directory: Path) -> Submission:
    """Record a submission's job id and write missing pickles of its tasks; return it."""
    adopted = dataclasses.replace(submission, job_id=job_id)
    adopted.write(submissions_folder(directory))
    folder = submissions_folder(directory) / adopted.name
    for run_id in adopted.runs:
        write_pickle(RunJob(str(directory / run_id)), folder, adopted.task(run_id))
    return adopted


def write_pickle(job: Job, folder: Path, task: str | None) -> None:
    """Write the file from which a task reads its job, unless submitit did.

    Submitit writes none if sbatch did not print the id.
    """
    from submitit.core.utils import DelayedSubmission, JobPaths

    pickle = JobPaths(folder, task).submitted_pickle
    if not pickle.exists():
        delayed = DelayedSubmission(job)
        delayed.set_timeout(DEFAULT_TIME_MIN, MAX_REQUEUES)
        with replace_file(pickle) as temporary:
            delayed.dump(temporary)


@contextmanager
def _plain_environment() -> Iterator[None]:
    """Remove variables that override the script's options or belong to this process's own job."""
    prefixes = ("SBATCH_", "SLURM_", "SRUN_") if "SLURM_JOB_ID" in os.environ else ("SBATCH_",)
    removed = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    removed.pop("SLURM_CONF", None)
    for name in removed:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(removed)


def _sbatch_message(refusal: str) -> str:
    """Return sbatch's own message without submitit's text around it."""
    return "; ".join(refusal.split("sbatch: error: ")[1:]).replace(" ; ", "; ") or refusal[-300:]
