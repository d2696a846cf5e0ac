"""Options of sbatch in a profile: what they say of GPUs and time, and which are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isoflop.config.profile import Gpu, Profile
from isoflop.config.sbatch import (
    FixedGpus,
    fixed_gpus,
    list_gpu_options,
    parse_time_limit,
    takes_whole_nodes,
)
from isoflop.errors import ConfigError
from isoflop.launching.records.sweep_directory import resolve_root

H100 = Gpu(type="h100-sxm", per_node=8)


def profile(slurm: dict[str, Any], **changes: Any) -> Profile:
    return Profile(name="ours", executor="slurm", root="runs", slurm=slurm, **changes)


@pytest.mark.parametrize(
    ("options", "asking", "fixed"),
    [
        ({}, [], None),
        ({"gpus": 8}, ["gpus"], (8, False)),
        ({"gpus": "h100:16"}, ["gpus"], (16, False)),
        ({"gpus-per-node": "h100:4"}, ["gpus-per-node"], (4, True)),
        ({"gres": "gpu"}, ["gres"], (1, True)),
        ({"gres": "gpu:h100"}, ["gres"], (1, True)),
        ({"gres": "gpu:h100:8"}, ["gres"], (8, True)),
        ({"gres": "gpu:1g.10gb:2"}, ["gres"], (2, True)),
        ({"gres": "gres/gpu=2"}, ["gres"], (2, True)),
        ({"gres": "nvme:1,gpu:a100:2(S:0-1)"}, ["gres"], (2, True)),
        ({"gres": "nvme:1"}, [], None),
        ({"gres": "craynetwork:0,gpumem:4"}, [], None),
        ({"tres_per_task": "license/matlab:1"}, [], None),
    ],
)
def test_only_what_names_gpus_asks_for_them(
    options: dict[str, Any], asking: list[str], fixed: tuple[int, bool] | None
) -> None:
    assert list_gpu_options(options) == asking
    assert fixed_gpus(options) == (FixedGpus(asking[0], *fixed) if fixed else None)
    profile(options, gpu=H100)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"nodes": 1},
            "slurm.nodes: with `gpu`, isoflop sets it by each run's size; leave it out",
        ),
        ({"ntasks": 2}, "slurm.ntasks: with `gpu`, isoflop sets it"),
        ({"ntasks-per-node": 4}, "slurm.ntasks-per-node: with `gpu`, isoflop sets it"),
        ({"ntasks_per_gpu": 1}, "slurm.ntasks_per_gpu: with `gpu`, isoflop sets it"),
        ({"tasks_per_node": 1}, "slurm.tasks_per_node: with `gpu`, isoflop sets it"),
        (
            {"gpus_per_task": 2},
            "slurm.gpus_per_task: gives GPUs per task or socket, which a cost estimate can't "
            "count; leave",
        ),
        ({"gpus-per-socket": 2}, "slurm.gpus-per-socket: gives GPUs per task or socket"),
        (
            {"tres_per_task": "cpu=2,gres/gpu:1"},
            "slurm.tres_per_task: gives GPUs per task or socket",
        ),
        (
            {"gpus_per_node": "all"},
            "slurm.gpus_per_node: the number of GPUs in 'all' is unclear; leave it out",
        ),
        ({"gpus": "h100:4,a100:4"}, "slurm.gpus: the number of GPUs in 'h100:4,a100:4' is unclear"),
        ({"gres": "gpu:h100:2,gpu:a100:2"}, "slurm.gres: the number of GPUs in 'gpu:"),
        ({"gres": "gpu:4,gpu:a:b:c"}, "slurm.gres: the number of GPUs in 'gpu:"),
        (
            {"gres": "gpu:4", "gpus": 8},
            "slurm.gres: slurm.gpus sets the GPUs of a job too; leave one of them",
        ),
    ],
)
def test_what_would_change_the_gpus_of_a_run_unseen_is_refused(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as problem:
        profile(options, gpu=H100)
    assert str(problem.value).startswith(says)
    assert profile(options).slurm == options  # on CPUs they change nothing that is counted


@pytest.mark.parametrize("option", ["exclusive", "requeue", "no-requeue", "no_requeue"])
@pytest.mark.parametrize("value", ["yes", "No", "off", "n"])
def test_a_flag_with_a_boolean_of_yaml_1_1_is_refused(option: str, value: str) -> None:
    with pytest.raises(ConfigError) as problem:
        profile({option: value})
    assert str(problem.value) == (
        f"slurm.{option}: {value} is text in YAML 1.2; write true, or leave the option out"
    )


@pytest.mark.parametrize(
    ("value", "whole"),
    [(True, True), ("", True), ("topo", True), ("user", False), ("mcs", False), (None, False)],
)
def test_who_holds_whole_nodes(value: Any, whole: bool) -> None:
    options = {} if value is None else {"exclusive": value}
    assert takes_whole_nodes(options) == whole
    held = [
        profile(options, gpu=H100).held_gpus(gpus, nodes)
        for gpus, nodes in ((1, 1), (8, 1), (16, 2), (0, 1))
    ]
    assert held == ([8, 8, 16, 0] if whole else [1, 8, 16, 0])


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("48:00:00", 48), ("90", 1.5), ("90:30", 91 / 60), ("0:30:00", 0.5), ("2-00", 48),
        ("1-12:30", 36.5), ("1-00:00:36", 24 + 1 / 60), ("UNLIMITED", math.inf),
        ("infinite", math.inf), ("0:10", 1 / 60), ("0:59:59", 1), ("0", math.inf),
        ("00:00:00", math.inf),
    ],
)  # fmt: skip
def test_times_as_sbatch_reads_them(text: str, hours: float) -> None:
    assert parse_time_limit(text) == pytest.approx(hours)


@pytest.mark.parametrize("section", ["slurm", "supervisor"])
@pytest.mark.parametrize("value", ["", "soon", "1:2:3:4", "-5", "1-", "1\n", 172800, 30, True])
def test_what_is_no_time_is_told_when_the_profile_is_read(section: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{section}.time: (expected text in quotes|expected a time|has a line)"
    ):
        profile(**{"slurm": {}, section: {"time": value}})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"gpus-per-node": 8, "gpus_per_node": 4},
            "slurm.gpus_per_node: is the same option as slurm.gpus-per-node",
        ),
        ({"mem": math.nan}, "slurm.mem: expected a number in decimals, or text in quotes, got nan"),
        ({"nice": math.inf}, "slurm.nice: expected a number in decimals"),
        ({"account": 1e20}, "slurm.account: expected a number in decimals"),
        (
            {"exclusiv": True},
            "slurm.exclusiv: abbreviates slurm.exclusive; write the full name",
        ),
        ({"arr": "0-3"}, "slurm.arr: abbreviates slurm.array; write the full name"),
        (
            {"gpus-per-n": 4},
            "slurm.gpus-per-n: abbreviates slurm.gpus_per_node; write the full name",
        ),
    ],
)
def test_options_that_are_not_sent_as_they_are_meant(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        profile(options)
    assert str(problem.value).startswith(says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"python": "a 'b"},
            "python: can't be read as a command (No closing quotation), got \"a 'b\"",
        ),
        ({"python": "  "}, "python: is empty"),
        (
            {"root": "~no-such-user/x"},
            "root: ~no-such-user is no user of this machine; write the full path",
        ),
        ({"root": "a\0b"}, "root: has a NUL character in it"),
    ],
)
def test_paths_and_commands_that_nothing_can_take(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        replace(profile({}), **changes)
    assert str(problem.value).startswith(says)


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(
            ConfigError,
            match=rf"^root: {tmp_path}/file is not a folder; name a folder, which will be created$",
        ):
            resolve_root(replace(profile({}), root=str(root)))
    assert (
        resolve_root(replace(profile({}), root=str(tmp_path / "new" / "runs")))
        == tmp_path / "new" / "runs"
    )
