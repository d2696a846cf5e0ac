"""Arrays of jobs: their runs, order, concurrency, options and script."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.slurm_bed import PROFILE
from support.tiny_studies import tiny_plan

from isoflop.config.profile import Gpu, Node, Profile, load_profile
from isoflop.errors import ConfigError
from isoflop.launching.queue.arrays import (
    ActiveArray,
    Array,
    make_arrays,
    make_job,
    sbatch_options,
    setup_lines,
    share_limits,
    signal_lead_s,
)
from isoflop.launching.queue.submit_array import sbatch_script
from isoflop.planning.job_arrays import Concurrency
from isoflop.planning.queue_simulation import Order
from isoflop.planning.run_spec import RunSpec

H100 = Gpu(type="h100-sxm", per_node=8)
NODE = Node(cpus=96, memory_gb=1900)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return tiny_plan(tmp_path_factory.mktemp("plan")).runs[0]


def profile(options: dict[str, Any] | None = None, **changes: Any) -> Profile:
    return Profile(name="ours", executor="slurm", root="runs", slurm=options or {}, **changes)


def runs_like(run: RunSpec, *sizes: tuple[int, float], nodes: int = 1) -> list[RunSpec]:
    """Return runs by GPUs and hours; budgets grow with the index."""
    return [
        dataclasses.replace(
            run,
            run_id=f"r{index}",
            gpus=gpus,
            nodes=nodes,
            est_hours=hours,
            budget=1e18 * (1 + index),
        )
        for index, (gpus, hours) in enumerate(sizes)
    ]


def ids(arrays: list[Array]) -> list[list[str]]:
    return [[run.run_id for run in array.runs] for array in arrays]


def header(script: str) -> dict[str, str]:
    lines = (
        line.removeprefix("#SBATCH --")
        for line in script.splitlines()
        if line.startswith("#SBATCH")
    )
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


# Arrays


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("longest", [["r1", "r4"], ["r3", "r0", "r2"]]),
        ("budget", [["r0", "r2", "r3"], ["r1", "r4"]]),
    ],
)
def test_one_array_a_size_in_order(run: RunSpec, order: Order, expected: list[list[str]]) -> None:
    runs = runs_like(run, (1, 2.0), (8, 9.0), (1, 1.0), (1, 3.0), (8, 4.0))
    arrays = make_arrays(runs, profile(gpu=H100), 1001, order)
    assert ids(arrays) == expected
    assert {(array.gpus, array.nodes) for array in arrays} == {(1, 1), (8, 1)}
    assert all(array.at_once == len(array.runs) for array in arrays)


def test_small_budgets_of_one_size_do_not_wait_for_large_ones_of_another(run: RunSpec) -> None:
    runs = runs_like(run, (1, 2.0), (8, 9.0), (1, 1.0), (1, 3.0), (8, 4.0))
    arrays = make_arrays(runs, profile(gpu=H100, max_gpus=10), 1001, "budget")
    assert ids(arrays) == [["r0"], ["r1"], ["r2"], ["r3"], ["r4"]]
    assert [array.after for array in arrays] == [(), (), (), (2,), (0, 1, 3)]
    assert ids(make_arrays(runs, profile(gpu=H100, max_gpus=10), 1001)) == [
        ["r1", "r4"],
        ["r3", "r0", "r2"],
    ]


def test_the_same_number_of_gpus_on_other_nodes_is_another_array(run: RunSpec) -> None:
    apart = [*runs_like(run, (8, 1.0)), *runs_like(run, (8, 1.0), nodes=2)]
    assert sorted(
        (array.gpus, array.nodes) for array in make_arrays(apart, profile(gpu=H100), 1001)
    ) == [
        (8, 1),
        (8, 2),
    ]


def test_without_a_bill_the_largest_runs_start_first(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, "budgets=[1.0e8, 4.0e8]")
    (array,) = make_arrays(plan.runs, profile(max_jobs=2), 1001)
    flops = [run.train_flops for run in array.runs]
    assert flops == sorted(flops, reverse=True)
    assert (array.gpus, array.nodes, array.at_once) == (0, 1, 2)


@pytest.mark.parametrize(("most", "lengths"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (1001, [7])])
def test_an_array_is_cut_at_the_clusters_limit(run: RunSpec, most: int, lengths: list[int]) -> None:
    arrays = make_arrays(runs_like(run, *[(1, 9.0 - n) for n in range(7)]), profile(gpu=H100), most)
    assert [len(array.runs) for array in arrays] == lengths
    assert [run_id for group in ids(arrays) for run_id in group] == [f"r{n}" for n in range(7)]


def test_the_larger_share_goes_to_the_array_with_more_work(run: RunSpec) -> None:
    runs = runs_like(run, *[(1, 10.0)] * 30, *[(2, 1.0)] * 30)
    large, small = make_arrays(runs, profile(gpu=H100, max_jobs=8), 1001)
    assert (large.at_once, small.at_once) == (7, 1)
    assert (large.after, small.after) == ((), ())


@pytest.mark.parametrize(
    ("options", "at_once"), [({}, 8), ({"exclusive": "user"}, 8), ({"exclusive": True}, 2)]
)
def test_a_run_that_holds_whole_nodes_counts_with_all_their_gpus(
    run: RunSpec, options: dict[str, Any], at_once: int
) -> None:
    cluster = profile(options, gpu=H100, max_gpus=16)
    (array,) = make_arrays(runs_like(run, *[(2, 1.0)] * 30), cluster, 1001)
    assert (array.gpus, array.at_once) == (2, at_once)
    active = [ActiveArray("1", tuple(map(make_job, array.runs)))]
    assert [limit.max_jobs for limit in share_limits(active, [], cluster)] == [at_once]


sizes = st.lists(
    st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.floats(0.1, 100)), min_size=1, max_size=12
)


@given(sizes, st.integers(1, 5), st.none() | st.integers(16, 64), st.none() | st.integers(1, 12))
def test_every_run_has_its_place(
    run: RunSpec,
    sizes: list[tuple[int, float]],
    most: int,
    max_gpus: int | None,
    max_jobs: int | None,
) -> None:
    runs, limited = runs_like(run, *sizes), profile(gpu=H100, max_gpus=max_gpus, max_jobs=max_jobs)
    arrays = make_arrays(runs, limited, most)
    assert Counter(itertools.chain(*ids(arrays))) == Counter(run.run_id for run in runs)
    assert all(
        len(array.runs) <= most and 1 <= array.at_once <= len(array.runs) for array in arrays
    )
    assert all(index < number for number, array in enumerate(arrays) for index in array.after)
    if max_gpus is None and max_jobs is None:
        assert [array.at_once for array in arrays] == [len(array.runs) for array in arrays]


@given(sizes, sizes, st.none() | st.integers(16, 64), st.none() | st.integers(1, 12))
def test_what_is_queued_later_shares_the_limits_with_what_is_queued(
    run: RunSpec,
    before: list[tuple[int, float]],
    now: list[tuple[int, float]],
    max_gpus: int | None,
    max_jobs: int | None,
) -> None:
    limited = profile(gpu=H100, max_gpus=max_gpus, max_jobs=max_jobs)
    old = make_arrays(runs_like(run, *before), limited, 5)
    active = [
        ActiveArray(str(n), tuple(map(make_job, array.runs)), waits=bool(array.after))
        for n, array in enumerate(old)
    ]
    new = make_arrays(runs_like(run, *now), limited, 5, active=active)
    shares = share_limits(active, [list(map(make_job, array.runs)) for array in new], limited)
    assert [(array.at_once, array.after) for array in new] == [
        (limit.max_jobs, limit.after) for limit in shares[len(active) :]
    ]
    if any(array.waits for array in active):  # the GPUs that they wait for are reserved for them
        assert {limit.max_jobs for limit in shares[: len(active)]} == {0}
        assert all(set(range(len(active))) <= set(array.after) for array in new)
        return
    at_start = [limit for limit in shares if not limit.after]
    weights = [array.jobs[0].gpus for array in active] + [array.gpus for array in new]
    held = sum(
        limit.max_jobs * gpus
        for limit, gpus in zip(shares, weights, strict=True)
        if not limit.after
    )
    assert sum(limit.max_jobs for limit in at_start) <= (max_jobs or 10**6)
    assert held <= (max_gpus or 10**6)


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 9), st.integers(0, 9)),
        min_size=1,
        max_size=4,
    ),
    sizes,
    st.integers(16, 64),
    st.none() | st.integers(4, 12),
)
@settings(max_examples=300)
def test_what_runs_beyond_its_share_is_left_its_room(
    run: RunSpec,
    before: list[tuple[int, int, int]],
    now: list[tuple[int, float]],
    max_gpus: int,
    max_jobs: int | None,
) -> None:
    limited = profile(gpu=H100, max_gpus=max_gpus, max_jobs=max_jobs)
    active = [
        ActiveArray(
            str(n),
            tuple(map(make_job, runs_like(run, *[(gpus, 1.0)] * count))),
            running=min(count, running),
        )
        for n, (gpus, count, running) in enumerate(before)
    ]
    new = make_arrays(runs_like(run, *now), limited, 1001, active=active)
    shares = share_limits(active, [list(map(make_job, array.runs)) for array in new], limited)[
        : len(active)
    ]
    assert all(
        index < len(active) + number for number, array in enumerate(new) for index in array.after
    )
    assert all(limit.max_jobs >= 1 for limit in shares)
    wide = [array.jobs[0].gpus for array in active]
    held = [max(limit.max_jobs, array.running) for limit, array in zip(shares, active, strict=True)]
    fresh = [array for array in new if not array.after]
    jobs = sum(held) + sum(array.at_once for array in fresh)
    gpus = sum(map(operator.mul, held, wide)) + sum(array.at_once * array.gpus for array in fresh)
    least = [max(1, array.running) for array in active]  # each array runs at least one
    assert jobs <= max(max_jobs or 10**6, sum(least))
    assert gpus <= max(max_gpus, sum(map(operator.mul, least, wide)))


@pytest.mark.parametrize("more", [8, 40])
def test_what_waits_for_a_full_array_leaves_it_its_places(run: RunSpec, more: int) -> None:
    """Running arrays keep GPUs that no other could use; the waiting array gets a share later."""
    active = [ActiveArray("1", tuple(map(make_job, runs_like(run, *[(1, 1.0)] * 40))), running=8)]
    line = list(map(make_job, runs_like(run, *[(1, 1.0)] * more)))
    old, new = share_limits(active, [line], profile(gpu=H100, max_gpus=8))
    assert old == Concurrency(8)
    assert new.after == (0,)
    assert new.max_jobs > 1


# Options


@pytest.mark.parametrize(
    ("gpus", "nodes", "cluster", "expected"),
    [
        (0, 1, profile(), {"nodes": 1}),
        (
            0,
            1,
            profile({"partition": "main", "cpus-per-task": 8}),
            {"partition": "main", "cpus_per_task": 8},
        ),
        (4, 1, profile(), {"nodes": 1}),
        (4, 1, profile(gpu=H100), {"nodes": 1, "gpus_per_node": 4}),
        (16, 2, profile(gpu=H100), {"nodes": 2, "gpus_per_node": 8}),
        (
            16,
            2,
            profile(gpu=dataclasses.replace(H100, slurm_name="h100")),
            {"nodes": 2, "gpus_per_node": "h100:8"},
        ),
        (4, 1, profile(preemptible=True), {"requeue": True}),
        (
            4,
            1,
            profile({"no_requeue": True}, preemptible=True),
            {"requeue": None, "no_requeue": True},
        ),
        (4, 1, profile(), {"requeue": None}),
        (4, 1, profile(gpu=H100, node=NODE), {"gpus_per_node": 4, "mem": "905990M"}),
        (
            1,
            1,
            profile(gpu=H100, node=Node(cpus=7, memory_gb=7)),
            {"gpus_per_node": 1, "mem": "834M"},
        ),
        (
            8,
            1,
            profile({"gres": "gpu:h100:8"}, gpu=H100),
            {"gres": "gpu:h100:8", "gpus_per_node": None},
        ),
        (4, 1, profile({"gres": "nvme:1"}, gpu=H100), {"gres": "nvme:1", "gpus_per_node": 4}),
        (4, 1, profile({"tres-per-task": "license/x:1"}, gpu=H100), {"gpus_per_node": 4}),
        (
            8,
            1,
            profile({"cpus_per_gpu": 4}, gpu=H100, node=NODE),
            {"cpus_per_task": None, "mem": "1811981M"},
        ),
        (8, 1, profile({"mem": 0}, gpu=H100, node=NODE), {"mem": 0}),
        (
            8,
            1,
            profile({"mem_per_cpu": "4G"}, gpu=H100, node=NODE),
            {"mem_per_cpu": "4G", "mem": None},
        ),
        (8, 1, profile({"exclusive": True}, gpu=H100, node=NODE), {"cpus_per_task": 12, "mem": 0}),
        (1, 1, profile({"exclusive": True}, gpu=H100, node=NODE), {"cpus_per_task": 96, "mem": 0}),
        (
            16,
            2,
            profile({"exclusive": True, "mem": "9G"}, gpu=H100, node=NODE),
            {"cpus_per_task": 12, "mem": "9G"},
        ),
        (
            1,
            1,
            profile({"exclusive": "user"}, gpu=H100, node=NODE),
            {"cpus_per_task": 12, "mem": "226497M"},
        ),
        (8, 1, profile({"exclusive": True}, gpu=H100), {"cpus_per_task": None, "mem": None}),
        (0, 1, profile({"nodes": 3, "ntasks-per-node": 2}), {"nodes": 3, "ntasks_per_node": 2}),
        (0, 1, profile({"signal": "B:USR2@7"}), {"signal": "B:USR2@7"}),
    ],
)
def test_the_profile_is_sent_as_written_and_a_nodes_share_is_added(
    run: RunSpec, gpus: int, nodes: int, cluster: Profile, expected: dict[str, Any]
) -> None:
    options = sbatch_options(Array((run,), gpus, nodes, 1), cluster)
    assert {name: options.get(name) for name in expected} == expected
    asked = {name.replace("-", "_") for name in cluster.slurm}
    added = {
        "nodes",
        "signal",
        "gpus_per_node",
        "cpus_per_task",
        "mem",
        *({"requeue"} if cluster.preemptible else ()),
    }
    assert asked <= options.keys() <= asked | added
    if not cluster.gpu:
        assert options.keys() - asked <= {"nodes", "signal", "requeue"}


@pytest.mark.parametrize(
    ("gpus", "nodes", "cores"),
    [(1, 1, 12), (2, 1, 24), (4, 1, 48), (8, 1, 96), (16, 2, 96), (64, 8, 96)],
)
def test_a_jobs_tasks_have_its_gpus_share_of_a_nodes_cores_together(
    run: RunSpec, tmp_path: Path, gpus: int, nodes: int, cores: int
) -> None:
    script = sbatch_script(
        Array((run,), gpus, nodes, 1), profile(gpu=H100, node=NODE), tmp_path / "tiny", tmp_path
    )
    asked = header(script)
    assert int(asked["cpus-per-task"]) * int(asked["ntasks-per-node"]) == cores


@pytest.mark.parametrize(
    ("time", "lead"),
    [
        (None, 90),
        ("UNLIMITED", 90),
        ("48:00:00", 90),
        ("15:00", 90),
        ("10:00", 60),
        ("1", 10),
        ("0:30", 10),
    ],
)
def test_a_job_is_told_to_save_in_time(run: RunSpec, time: str | None, lead: int) -> None:
    cluster = profile({} if time is None else {"time": time})
    assert signal_lead_s(Array((run,), 0, 1, 1), cluster) == lead


def test_the_largest_checkpoint_of_an_array_decides_how_early(run: RunSpec) -> None:
    large = dataclasses.replace(
        run, shape=dataclasses.replace(run.shape, width=8192, layers=80, mlp_width=32768)
    )
    seconds = large.shape.checkpoint_bytes / 0.5e9
    assert seconds > 600
    lead = signal_lead_s(Array((run, large), 8, 1, 1), profile({"time": "48:00:00"}))
    assert lead == pytest.approx(60 + seconds, abs=1)


# The script


NASTY = [
    "$(touch touched)",
    "`touch touched`",
    "'; touch touched; '",
    '"; touch touched; "',
    "a && touch touched",
    "a b  c",
    "$HOME\\",
    "# no comment",
    "*",
    "ü",
]


def run_script(script: str, folder: Path) -> list[str]:
    """Run a job's script in a folder, as a node would; return the arguments of srun."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >arguments\n')
    (programs / "srun").chmod(0o755)
    (folder / "job.sh").write_text(script)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-n", "job.sh"], cwd=folder, check=True)
    done = subprocess.run(
        ["bash", "job.sh"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert not [path for path in folder.rglob("*") if path.name.startswith("touched")]
    return (folder / "arguments").read_text().splitlines()


@pytest.mark.parametrize("value", NASTY)
def test_nothing_in_a_profile_is_run(run: RunSpec, tmp_path: Path, value: str) -> None:
    asked = load_profile(
        PROFILE,
        {
            "slurm.comment": value,
            "slurm.account": value,
            "python": "python",
            "root": value,
            "preemptible": False,
        },
    )
    directory, code = (
        tmp_path / value.replace("/", "") / "tiny",
        tmp_path / value.replace("/", "") / "code",
    )
    (folder := tmp_path / "node").mkdir()
    script = sbatch_script(Array((run, run), 0, 1, 2), asked, directory, code)
    arguments = run_script(script, folder)
    assert arguments[-5:-1] == ["python", "-u", "-m", "submitit.core._submit"]
    assert arguments[-1] == str(directory / "submissions" / "NAME")
    body = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert not any("--account" in line or "--comment" in line for line in body)
    assert {"comment", "account"} <= header(script).keys()


@pytest.mark.parametrize(
    ("python", "command"),
    [
        ("/opt/python/bin/python3", ["/opt/python/bin/python3"]),
        (
            "apptainer exec --nv 'my image.sif' python",
            ["apptainer", "exec", "--nv", "my image.sif", "python"],
        ),
        ("python; touch touched", ["python;", "touch", "touched"]),
        ("$(touch touched)", ["$(touch", "touched)"]),
        ("python\ntouch touched", ["python", "touch", "touched"]),
    ],
)
def test_an_interpreter_is_a_program_with_arguments(
    run: RunSpec, tmp_path: Path, python: str, command: list[str]
) -> None:
    script = sbatch_script(
        Array((run,), 0, 1, 1), profile(python=python), tmp_path / "tiny", tmp_path
    )
    (folder := tmp_path / "node").mkdir()
    arguments = run_script(script, folder)
    assert arguments[-4 - len(command) : -4] == command


def test_setup_comes_before_the_worker_and_code_before_what_is_installed(
    run: RunSpec, tmp_path: Path
) -> None:
    cluster = profile(setup=("export FIRST='a b'", "export PYTHONPATH=/theirs"))
    lines = [
        *setup_lines(cluster, tmp_path / "a 'b"),
        'printf "%s|%s|%s" "$FIRST" "$PYTHONPATH" "$SRUN_CPUS_PER_TASK"',
    ]
    for asked in ("", "4"):
        environment = {
            "PATH": os.environ["PATH"],
            **({"SLURM_CPUS_PER_TASK": asked} if asked else {}),
        }
        done = subprocess.run(
            ["bash", "-ec", "\n".join(lines)], env=environment, capture_output=True, text=True
        )
        assert done.stdout == f"a b|{tmp_path}/a 'b:/theirs|{asked}"
    script = sbatch_script(Array((run,), 0, 1, 1), cluster, tmp_path / "tiny", tmp_path)
    assert (
        script.index("export FIRST")
        < script.index("export PYTHONPATH=/theirs")
        < script.index("\nsrun ")
    )


def test_what_a_script_asks_for(run: RunSpec, tmp_path: Path) -> None:
    cluster = profile(
        {"partition": "gpu", "time": "2-00:00:00", "exclusive": True, "mail-type": "FAIL"}, gpu=H100
    )
    script = sbatch_script(Array((run,) * 3, 8, 1, 2), cluster, tmp_path / "tiny", tmp_path)
    logs = f"{tmp_path}/tiny/submissions/NAME/%A_%a_0_log"
    assert {name: value for name, value in header(script).items() if name != "ntasks-per-node"} == {
        "array": "0-2%2",
        "error": f"{logs}.err",
        "exclusive": "",
        "gpus-per-node": "8",
        "job-name": "tiny-NAME",
        "mail-type": "FAIL",
        "nodes": "1",
        "open-mode": "append",
        "output": f"{logs}.out",
        "partition": "gpu",
        "signal": "USR2@90",
        "time": "2-00:00:00",
    }
    alone = sbatch_script(Array((run,), 8, 1, 1), cluster, tmp_path / "tiny", tmp_path)
    assert "array" not in header(alone)
    assert header(alone)["output"].endswith("/%j_0_log.out")
    assert re.search(r"^srun .* --export=ALL --kill-on-bad-exit=1 ", alone, re.MULTILINE)


# Profiles that no script can be made from


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slurm.comment": "a\ntouch touched"}, "slurm.comment: has a line break in it"),
        ({"slurm.comment": "a\n"}, "slurm.comment: has a line break in it"),
        ({"slurm": {"a b": 1}}, "slurm.a b: is not an sbatch option name"),
        (
            {"slurm": {"a\ntouch touched": 1}},
            "slurm.a touch touched: is not an sbatch option name",
        ),
        ({"slurm": {"-p": "main"}}, "slurm.-p: is not an sbatch option name"),
        ({"slurm": {"a=b": "c"}}, "slurm.a=b: is not an sbatch option name"),
        ({"slurm": {"": "c"}}, "slurm: is not an sbatch option name"),
        (
            {"slurm.nodelist": ["n1", "n2"]},
            "slurm.nodelist: expected text, a number or true, got ['n1', 'n2']",
        ),
        ({"slurm.account": None}, "slurm.account: expected text, a number or true, got nothing"),
        ({"slurm.exclusive": False}, "slurm.exclusive: expected text, a number or true, got False"),
        ({"root": "50%"}, "root: has a % in it"),
        ({"root": "a\ntouch touched"}, "root: has a line break in it"),
        ({"setup": ["a\nb"]}, "setup: a line has a line break in it"),
        ({"slurm.time": 600}, "slurm.time: expected text in quotes"),
    ],
)
def test_an_option_that_no_header_can_hold_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        load_profile(PROFILE, {"root": "runs", **changes})
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("name", ["array", "output", "error", "job-name", "job_name"])
def test_what_isoflop_says_to_sbatch_itself_is_not_for_the_profile(name: str) -> None:
    with pytest.raises(ConfigError, match=f"slurm.{name}: "):
        load_profile(PROFILE, {"root": "runs", f"slurm.{name}": "x"})
