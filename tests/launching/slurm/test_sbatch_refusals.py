"""Refusals, as sbatch prints them: the profile's key to mend, and whether to try again."""

from __future__ import annotations

import pytest
from support.fake_slurm import LIMIT_MESSAGE

from isoflop.launching.slurm.sbatch_refusals import (
    find_profile_key,
    is_submit_limit,
    is_transient,
)


@pytest.mark.parametrize(
    ("refusal", "key"),
    [
        ("Batch job submission failed: Invalid partition name specified", "slurm.partition"),
        ("invalid partition specified: gpux", "slurm.partition"),
        (
            "Batch job submission failed: "
            "Invalid account or account/partition combination specified",
            "slurm.account",
        ),
        ("Batch job submission failed: Invalid qos specification", "slurm.qos"),
        ("Batch job submission failed: Invalid feature specification", "slurm.constraint"),
        (
            "Batch job submission failed: Invalid node name specified",
            "slurm.nodelist or slurm.exclude",
        ),
        ("Batch job submission failed: Invalid wckey specification", "slurm.wckey"),
        (
            "Memory specification can not be satisfied Batch job submission failed: "
            "Requested node configuration is not available",
            "slurm.mem or node.memory_gb",
        ),
        (
            "Batch job submission failed: Requested node configuration is not available",
            "gpu.per_node, node or slurm.constraint",
        ),
        ("Batch job submission failed: Invalid generic resource (gres) specification", "gpu"),
        (
            "Batch job submission failed: "
            "Requested time limit is invalid (missing or exceeds some limit)",
            "slurm.time",
        ),
        ('"a" is not a valid node count', "slurm.nodes"),
        ("Batch job submission failed: Requested reservation is invalid", "slurm.reservation"),
        ("Batch job submission failed: Invalid license specification", "slurm.licenses"),
        ("unrecognized option '--foo=1' Try \"sbatch --help\" for more information", "slurm"),
        ("Batch job submission failed: Access/permission denied", None),
    ],
)
def test_a_refusal_names_the_key_to_mend(refusal: str, key: str | None) -> None:
    assert find_profile_key(f"sbatch: error: {refusal}") == key
    assert not is_transient(refusal)


@pytest.mark.parametrize(
    ("refusal", "key"),
    [
        ("sbatch: error: Invalid --time specification", "slurm.time"),
        ("sbatch: error: Invalid --mem specification", "slurm.mem"),
        ("sbatch: error: Invalid --exclusive specification", "slurm.exclusive"),
        ('sbatch: error: Invalid numeric value "x" for --cpus-per-task.', "slurm.cpus_per_task"),
    ],
)
def test_a_refused_option_is_named_as_the_profile_names_it(refusal: str, key: str) -> None:
    """Messages of SLURM 22.05."""
    assert (find_profile_key(refusal) or "").replace("-", "_") == key
    assert not is_transient(refusal)


@pytest.mark.parametrize(
    "refusal",
    [
        "Batch job submission failed: Socket timed out on send/recv operation",
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "Batch job submission failed: Zero Bytes were transmitted or received",
        "Batch job submission failed: "
        "Slurm temporarily unable to accept job, sleeping and retrying",
        "Batch job submission failed: Connection refused",
        "Batch job submission failed: Slurm backup controller in standby mode",
    ],
)
def test_what_may_pass(refusal: str) -> None:
    assert is_transient(f"sbatch: error: {refusal}")
    assert not is_submit_limit(refusal)


@pytest.mark.parametrize(
    ("first", "fewer_may", "key"),
    [
        ("", True, None),
        ("AssocMaxSubmitJobLimit", True, None),
        ("QOSMaxSubmitJobPerUserLimit", True, None),
        ("QOSMaxWallDurationPerJobLimit", False, "slurm.time"),
        ("QOSMaxGRESPerJob", False, None),
        ("QOSMaxCpuPerUserLimit", False, "slurm.qos, slurm.account or the resources of a run"),
        ("AssocMaxNodePerJobLimit", False, "slurm.qos, slurm.account or the resources of a run"),
    ],
)
def test_a_limit_on_jobs_is_told_from_others_by_its_first_line(
    first: str, fewer_may: bool, key: str | None
) -> None:
    refusal = (
        f"sbatch: error: {first} {LIMIT_MESSAGE.rpartition(chr(10))[2]}"
        if first
        else LIMIT_MESSAGE.rpartition("\n")[2]
    )
    assert (is_submit_limit(refusal), is_transient(refusal)) == (fewer_may, False)
    assert key is None or find_profile_key(refusal) == key
