"""What stands in a file against what is read: changed scalars are refused, and what is kept is read back the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoflop.config.profile import Profile, load_profile
from isoflop.config.sweep_definition import load_sweep, sweep_of, to_mapping, to_yaml
from isoflop.errors import ConfigError

PROFILE = "executor: slurm\nroot: /runs\n"


def read(tmp_path: Path, text: str) -> Profile:
    (file := tmp_path / "ours.yaml").write_text(PROFILE + text, encoding="utf-8")
    return load_profile(file)


@pytest.mark.parametrize("section", ["slurm", "supervisor"])
@pytest.mark.parametrize(
    ("option", "read_as"),
    [
        ("account: 0123", "83"),
        ("account: 1e5", "100000.0"),
        ("account: 1_000", "1000"),
        ("account: 0x10", "16"),
        ("exclude: 007", "7"),
        ("begin: 16:00", "960"),
        ("time: 48:00:00", "172800"),
        ("time_min: 24:00:00", "86400"),
        ("partition: yes", "True"),
        ("partition: no", "False"),
        ("qos: on", "True"),
        ("qos: Off", "False"),
        ("mem: .nan", "nan"),
        ("nice: .inf", "inf"),
        ("mem: 1.50", "1.5"),
    ],
)
def test_what_sbatch_would_get_changed_is_refused(
    tmp_path: Path, section: str, option: str, read_as: str
) -> None:
    name, _, value = option.partition(": ")
    with pytest.raises(ConfigError) as problem:
        read(tmp_path, f"{section}: {{{option}}}\n")
    mend = {"True": "write true, or ", "False": "leave it out, or "}.get(read_as, "")
    assert (
        f"ours.yaml: {section}.{name}: {value} is read as {read_as}; {mend}put it in quotes"
        in str(problem.value)
    )
    assert f'"{value}"' in str(problem.value)
    if name != "time":
        assert getattr(read(tmp_path, f'{section}: {{{name}: "{value}"}}\n'), section) == {
            name: value
        }


@pytest.mark.parametrize(
    "value", ["8", "-1", "1.5", "true", "True", "gpu", "4G", "08", "2-00", "a:b", "h100:8"]
)
def test_what_is_sent_as_written_is_taken(tmp_path: Path, value: str) -> None:
    ((_, taken),) = read(tmp_path, f"slurm: {{mem: {value}}}\n").slurm.items()
    assert str(taken).lower() == value.lower()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_jobs: 1:30\n", "max_jobs: 1:30 is read as 90; put it in quotes"),
        ("max_gpus: 010\n", "max_gpus: 010 is read as 8; put it in quotes"),
        (
            "price_per_gpu_hour: 1:30.5\n",
            "price_per_gpu_hour: 1:30.5 is read as 90.5; put it in quotes",
        ),
        ("gpu: {type: h100-sxm, per_node: 010}\n", "gpu.per_node: 010 is read as 8"),
        ("setup: [1:30]\n", "setup[0]: 1:30 is read as 90"),
    ],
)
def test_numbers_in_other_bases_are_refused_anywhere(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        read(tmp_path, text)
    assert f"ours.yaml: {says}" in str(problem.value)


def test_in_a_sweep_and_its_overrides_too() -> None:
    with pytest.raises(
        ConfigError, match=r"^override 'max_steps=1:30': 1:30 is read as 90; put it in quotes"
    ):
        load_sweep("soda", ["max_steps=1:30"])
    with pytest.raises(ConfigError, match=r"^override 'seeds=\[0, 010\]': 010 is read as 8"):
        load_sweep("soda", ["seeds=[0, 010]"])
    assert load_sweep("soda", ["max_steps=1_000"]).max_steps == 1000


@pytest.mark.parametrize(
    "key", ["setup: ['source ${CONDA_PREFIX}/bin/activate']", "python: ${CONDA_PREFIX}/python"]
)
def test_a_variable_of_the_shell_has_its_mend(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as problem:
        read(tmp_path, key + "\n")
    assert str(problem.value).endswith("write $CONDA_PREFIX, or \\${CONDA_PREFIX}")
    assert "\n" not in str(problem.value)


nasty = st.lists(
    st.sampled_from(
        [
            "\\",
            "$",
            "{",
            "}",
            "${",
            "${a}",
            "\\${",
            "'",
            '"',
            " ",
            "a",
            ":",
            "#",
            "1",
            "0",
            "e5",
            "é",
            "\t",
        ]
    )
).map("".join)
words = (
    nasty
    | st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12)
    | st.sampled_from(
        [
            "1e5",
            "010",
            "1:30",
            "yes",
            "null",
            "~",
            ".inf",
            "2026-01-01",
            "0x1F",
            "1_000",
            "<<",
            "=",
            "- a",
            "true",
        ]
    )
)
options = words.filter(lambda text: text != "???")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)
@given(
    setup=st.lists(options, max_size=3),
    notify=options,
    slurm=st.dictionaries(
        st.sampled_from(["account", "comment", "mem"]),
        options | st.integers() | st.booleans().filter(bool),
    ),
)
def test_a_kept_profile_is_read_back(
    tmp_path: Path, setup: list[str], notify: str, slurm: dict[str, Any]
) -> None:
    kept = Profile(
        name="ours", executor="slurm", root="/runs", setup=tuple(setup), notify=notify, slurm=slurm
    )
    (file := tmp_path / "kept.yaml").write_text(to_yaml(kept), encoding="utf-8")
    assert load_profile(file) == kept


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)
@given(command=options, set_name=st.sampled_from(["1e5", "010", "heldout", "on", "2026-01-01"]))
def test_a_kept_sweep_is_read_back(tmp_path: Path, command: str, set_name: str) -> None:
    soda = load_sweep("soda")
    train = dataclasses.replace(soda.train, trainer=f"command: x{command}")
    kept = dataclasses.replace(
        soda, train=train, metric=dataclasses.replace(soda.metric, set=set_name)
    )
    (file := tmp_path / "kept.yaml").write_text(to_yaml(kept), encoding="utf-8")
    assert load_sweep(file) == kept
    assert sweep_of(to_mapping(kept), "fit.json") == kept
