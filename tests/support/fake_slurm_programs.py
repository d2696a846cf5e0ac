"""The fake SLURM's programs, on a cluster in a file.

Tests start them often, so they import only built-in modules: the cluster is marshalled.
"""

from __future__ import annotations

import marshal
import os
import sys

Cluster = dict  # of any values: `typing` is slow to import

PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")

LIMIT_MESSAGE = (
    "sbatch: error: AssocMaxSubmitJobLimit\n"
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS "
    "policy (job submit limit, user's size and/or time limits)"
)
"""Message of SLURM 22.05 at a user's submit limit."""


def read_cluster(folder: str) -> Cluster:
    with open(f"{folder}/cluster", "rb") as file:
        return marshal.load(file)


def write_cluster(folder: str, cluster: Cluster) -> None:
    """Write the cluster's file, and the files that lines of shell read."""
    queue = [
        f"{task}|{state}|{node}|{reason or 'None'}\n"
        for task, (state, node, reason) in cluster["queue"].items()
    ]
    contents = {"queue": "".join(queue), "config": cluster["config"]}
    for name, content in contents.items():
        with open(f"{folder}/{name}", "w") as file:
            file.write(content)
    flags = {
        "jobs": cluster["jobs"],
        **{f"answers.{name}": cluster["answers"].get(name) for name in PROGRAMS},
    }
    for name, holds in flags.items():
        if holds:
            open(f"{folder}/{name}", "w").close()
        elif os.path.exists(f"{folder}/{name}"):
            os.unlink(f"{folder}/{name}")
    with open(f"{folder}/cluster", "wb") as file:
        marshal.dump(cluster, file)


def main(folder: str, program: str, arguments: list[str]) -> int:
    cluster = read_cluster(folder)
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
        with open(arguments[0]) as file:
            output, refused = sbatch(cluster, file.read(), answer["queues"])
        if refused:
            answer = {"message": LIMIT_MESSAGE, "code": 1}
    elif not answer["code"]:
        output, code = {"squeue": squeue, "sacct": sacct, "scancel": scancel, "scontrol": scontrol}[
            program
        ](cluster, arguments)
        if code:
            answer = {"message": output, "code": code}
    write_cluster(folder, cluster)
    if answer["code"]:
        print(answer["message"], file=sys.stderr)
    else:
        print(output, end="")
    return answer["code"]


def sbatch(cluster: Cluster, script: str, queues: str) -> tuple[str, bool]:
    """Queue a script; return the output, and whether the submit limit was exceeded."""
    options: dict[str, str] = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            options[name] = unquote(value)
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


def unquote(value: str) -> str:
    if "'" not in value:
        return value
    import shlex  # as slow to import as Python to start

    return shlex.split(value)[0]


def squeue(cluster: Cluster, arguments: list[str]) -> tuple[str, int]:
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


def sacct(cluster: Cluster, arguments: list[str]) -> tuple[str, int]:
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


def scancel(cluster: Cluster, arguments: list[str]) -> tuple[str, int]:
    for task in arguments:
        if task in cluster["queue"]:
            cluster["queue"][task] = ["CANCELLED", "", "None"]
    return "", 0


def scontrol(cluster: Cluster, arguments: list[str]) -> tuple[str, int]:
    return cluster["config"], 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
