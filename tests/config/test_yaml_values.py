"""YAML by the rules of version 1.2: values read, texts refused, and files written."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from isoflop.config.config_file import _needs_omegaconf
from isoflop.config.profile import Profile, load_profile
from isoflop.config.sweep_file import load_sweep, sweep_from_mapping, to_mapping, to_yaml
from isoflop.config.yaml_values import MAX_YAML_VALUES, YamlError, dump_yaml, parse_yaml
from isoflop.errors import ConfigError

PROFILE = "executor: slurm\nroot: /runs\n"


def read(tmp_path: Path, text: str) -> Profile:
    (file := tmp_path / "ours.yaml").write_text(PROFILE + text, encoding="utf-8")
    return load_profile(file)


# Plain scalars


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8", 8), ("+12", 12), ("-0", 0), ("0x1F", 31), ("010", 10), ("-010", -10), ("08", 8),
        ("+00", 0), ("0o17", 15), ("-.5", -0.5), ("+.5", 0.5), (".5e3", 500.0), (".5e+3", 500.0),
        ("-.5E-3", -0.0005), ("1.e5", 1e5), ("+.Inf", float("inf")),
        ("1.5", 1.5), ("1.", 1.0), (".5", 0.5), (".5e-3", 0.0005), ("-0.5", -0.5), ("01.5", 1.5),
        ("1e5", 1e5), ("1e+5", 1e5), ("+1e-3", 1e-3), ("12e03", 12e3), ("1e400", float("inf")),
        (".inf", float("inf")), ("-.INF", float("-inf")),
        ("true", True), ("True", True), ("FALSE", False),
        ("~", None), ("null", None), ("NULL", None), ("", None),
        ("!!str 010", "010"), ("!!int 8", 8), ("'8'", "8"), ("'010'", "010"), ("!!float 1", 1.0),
        ('!!int "010"', 10), ("!!int 0o17", 15), ('!!float "-.5"', -0.5),
    ],
)  # fmt: skip
def test_a_scalar_of_yaml_1_2(written: str, value: Any) -> None:
    read = parse_yaml(f"k: {written}")["k"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    "written",
    [
        "48:00:00", "1:30", "1:30.5", "16:00", "yes", "no", "on", "Off", "y", "N", "0o8", "-0o17",
        "0O17", "0o", "1_000", "1_0.5", "0b11", "+0x1f", "0X1F", "2001-01-01", "2001-99-99",
        "2026-01-01T10:00:00Z", "=", "<<", "nan", "1e", "0x", ".", "+.", ".e5", "1.5e", "+.nan",
        "1,000", "a:b", "4G", "2-00", "nULL", "tRUE",
    ],
)  # fmt: skip
def test_a_text_of_yaml_1_2(written: str) -> None:
    assert parse_yaml(f"k: {written}") == {"k": written}


@given(st.from_regex(r"[-+0-9.eE]{1,8}", fullmatch=True).filter(lambda text: text != "-"))
def test_decimal_numbers_are_those_of_python(written: str) -> None:
    """On these characters Python's int and float accept what the core schema accepts."""
    expected: Any = written
    for number in (float, int):
        with contextlib.suppress(ValueError):
            expected = number(written)
    read = parse_yaml(f"k: {written}")["k"]
    assert (read, type(read)) == (expected, type(expected))
    assert parse_yaml(f"[{written}]") == [expected]


@given(st.integers(0, 2**70), st.sampled_from(["", "0", "000"]))
def test_octal_and_hexadecimal_numbers(number: int, zeros: str) -> None:
    for digits in (f"0o{zeros}{number:o}", f"0x{zeros}{number:x}", f"0x{zeros}{number:X}"):
        assert parse_yaml(digits) == number
        assert parse_yaml(f"!!int '{digits}'") == number
        assert parse_yaml(digits, as_written=True) == digits


@given(st.from_regex(r"[-+]?(0[ox])?[0-9.]{1,6}([eE][-+]?[0-9]{1,2})?", fullmatch=True))
def test_a_number_as_it_is_written(written: str) -> None:
    assert str(parse_yaml(f"k: {written}", as_written=True)["k"]) == written
    document = f"a: {{b: {{c: {written}}}, d: [{written}]}}\nb: {written}"
    read = parse_yaml(document, as_written=("a.b", "a.d"))
    assert (str(read["a"]["b"]["c"]), str(read["a"]["d"][0])) == (written, written)
    assert read["b"] == parse_yaml(written)


def test_not_a_number() -> None:
    assert str(parse_yaml(".nan")) == "nan"


# Whole texts


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        ("a: &x {p: 1}\nb: {<<: [*x, {p: 2, r: 3}]}", {"a": {"p": 1}, "b": {"p": 1, "r": 3}}),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("\ufeffk: 1", {"k": 1}),
        ("k:\t1", {"k": 1}),
        ("%YAML 1.2\n---\nk: yes\n...\n", {"k": "yes"}),
        ('{"k":1}', {"k": 1}),
        ("# c", None),
        ("3", 3),
    ],
)
def test_a_text(text: str, values: Any) -> None:
    assert parse_yaml(text) == values


def test_an_alias_is_a_copy() -> None:
    values = parse_yaml("a: &x {p: [1]}\nb: *x\nc: {<<: *x}")
    values["b"]["p"].append(2)
    values["c"]["q"] = 3
    assert values["a"] == {"p": [1]}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\na: 2", 2, "found duplicate key a; keep one"),
        ("b:\n  - {c: 1, 'c': 2}", 2, "found duplicate key c; keep one"),
        ("1: 2\n1: 3", 2, "found duplicate key 1; keep one"),
        ("a: {<<: {p: 1}, <<: {q: 2}}", 1, "found duplicate key <<; keep one"),
        ("b: &b [1]\na: {<<: *b}", 1, "`<<` needs the alias of a mapping"),
        ("? [a]\n: b", 1, "a key is a list or a mapping; write text"),
        ("k: 1\n---\nk: 2", 2, "a second document begins here; keep one"),
        ("\tk: 1", 1, "found character"),
        ("a:\n  b: 1\n\tc: 2", 3, "found"),
        ("k: !!python/object:os.system x", 1, "the tag !!python/object:os.system is not supported"),
        ("k: !!timestamp 2001-01-01", 1, "the tag !!timestamp is not supported"),
        ("k: !!set {b}", 1, "the tag !!set is not supported"),
        ("k: !!int 1_0", 1, "'1_0' is not of type int"),
        ("k: !!int 1.0", 1, "'1.0' is not of type int"),
        ("k: !!float 0x10", 1, "'0x10' is not of type float"),
        ("k: !!bool yes", 1, "'yes' is not of type bool"),
        ("k: " + "9" * 5000, 1, "a number with more digits than Python reads"),
        ("k: *x", 1, "found undefined alias"),
        ("a: &x [*x]", 1, "nested deeper than 50 levels"),
        ("a: &x {<<: *x}", 1, "nested deeper than 50 levels"),
        ("- " * 900 + "a", 1, "nested deeper than 50 levels"),
        ("%YAML 2.0\n---\nk: 1", 1, "found incompatible YAML document"),
        ("k: a\0b", None, "unacceptable character #x0000"),
        ("k: \ud800", None, "not Unicode text"),
    ],
)
def test_a_text_that_is_refused(text: str, line: int | None, message: str) -> None:
    with pytest.raises(YamlError) as problem:
        parse_yaml(text)
    assert problem.value.line == line
    assert problem.value.message.startswith(message)


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000])
def test_any_depth_is_refused(text: str) -> None:
    with pytest.raises(YamlError, match="nest"):
        parse_yaml(text)


def test_aliases_of_aliases_are_refused_at_once() -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    with pytest.raises(YamlError, match=f"more than {MAX_YAML_VALUES:,} values"):
        parse_yaml("a0: &a0 [1, 1]\n" + levels)


# Options of sbatch


@pytest.mark.parametrize("section", ["slurm", "supervisor"])
@pytest.mark.parametrize(
    "value",
    [
        "0123", "1e5", "1_000", "0x10", "007", "16:00", "24:00:00", "yes", "no", "on", "Off",
        ".nan", ".inf", "1.50", "+1", "08", "0o17", "-.5", ".5e3", "2-00", "gpu", "4G",
        "a:b", "h100:8", "2026-01-01",
    ],
)  # fmt: skip
def test_options_of_sbatch_arrive_as_written(tmp_path: Path, section: str, value: str) -> None:
    expected = {"comment": value}
    assert getattr(read(tmp_path, f"{section}: {{comment: {value}}}\n"), section) == expected
    assert getattr(read(tmp_path, f'{section}: {{comment: "{value}"}}\n'), section) == expected
    for override in (f"{section}.comment={value}", f"{section}={{comment: {value}}}"):
        (file := tmp_path / "ours.yaml").write_text(PROFILE)
        assert getattr(load_profile(file, [override]), section) == expected


@pytest.mark.parametrize(("value", "option"), [("8", 8), ("-1", -1), ("1.5", 1.5), ("True", True)])
def test_numbers_and_flags_of_sbatch(tmp_path: Path, value: str, option: Any) -> None:
    assert read(tmp_path, f"slurm: {{mem: {value}}}\n").slurm == {"mem": option}


def test_merged_options_of_sbatch_arrive_as_written(tmp_path: Path) -> None:
    profile = read(tmp_path, "<<: {slurm: &x {mem: 1e5}}\nsupervisor: {<<: *x, qos: 0x10}\n")
    assert (profile.slurm, profile.supervisor) == ({"mem": "1e5"}, {"mem": "1e5", "qos": "0x10"})


def test_a_bare_time_limit_is_text(tmp_path: Path) -> None:
    assert read(tmp_path, "slurm: {time: 48:00:00}\n").slurm == {"time": "48:00:00"}


@pytest.mark.parametrize("value", ["false", "~", "null"])
def test_an_option_of_sbatch_without_a_value(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.qos: expected text, a number or true, got"):
        read(tmp_path, f"slurm: {{qos: {value}}}\n")


# Values that YAML 1.1 reads in another way


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_jobs: 1:30\n", "max_jobs: expected a whole number, got '1:30'"),
        ("max_gpus: '010'\n", "max_gpus: expected a whole number, got '010'; write 10"),
        ("max_gpus: 1_000\n", "max_gpus: expected a whole number, got '1_000'; write 1000"),
        ("max_gpus: '8'\n", "max_gpus: expected a whole number, got '8'; write 8"),
        ("price_per_gpu_hour: 1:30.5\n", "price_per_gpu_hour: expected a number, got '1:30.5'"),
        (
            "gpu: {type: h100-sxm, per_node: '0o10'}\n",
            "gpu.per_node: expected a whole number, got '0o10'; write 8",
        ),
        ("preemptible: yes\n", "preemptible: expected true or false, got 'yes'"),
        ("preemptible: off\n", "preemptible: expected true or false, got 'off'"),
    ],
)
def test_other_readings_of_yaml_1_1_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        read(tmp_path, text)
    assert f"ours.yaml: {says}" in str(problem.value)


def test_numbers_of_a_profile(tmp_path: Path) -> None:
    profile = read(
        tmp_path,
        "max_gpus: 010\nmax_jobs: 0o17\nprice_per_gpu_hour: +.5\n"
        "gpu: {type: h100-sxm, per_node: 08, slurm_name: 1e5}\n",
    )
    assert (profile.max_gpus, profile.max_jobs, profile.price_per_gpu_hour) == (10, 15, 0.5)
    assert profile.gpu is not None
    assert (profile.gpu.per_node, profile.gpu.slurm_name) == (8, "1e5")


def test_a_text_stays_as_it_is_written(tmp_path: Path) -> None:
    profile = read(
        tmp_path,
        "name: 08\npython: 3.10\nnotify: 1e5\nsetup: [1:30, on, 2026-01-01, 0o17, -.5, 010]\n"
        "slurm: {account: 0123, time: 48:00:00}\n",
    )
    assert (profile.name, profile.python, profile.notify) == ("08", "3.10", "1e5")
    assert profile.setup == ("1:30", "on", "2026-01-01", "0o17", "-.5", "010")
    assert profile.slurm == {"account": "0123", "time": "48:00:00"}


@pytest.mark.parametrize("spelling", ["010", "0o17", "1e5", "1.50", ".5e3"])
def test_a_text_of_an_override_stays_as_it_is_written(tmp_path: Path, spelling: str) -> None:
    (file := tmp_path / "ours.yaml").write_text(PROFILE)
    assert load_profile(file, [f"setup=[{spelling}]"]).setup == (spelling,)
    gpu = load_profile(file, [f"gpu={{type: {spelling}, per_node: 010}}"]).gpu
    assert (gpu is not None and gpu.type, gpu is not None and gpu.per_node) == (spelling, 10)
    sweep = load_sweep(
        "soda", [f"data.text_tokenizer={spelling}", f"train.trainer={{command: {spelling}}}"]
    )
    assert sweep.data.text_tokenizer == spelling
    assert sweep.train.program == ("command", spelling)


def test_in_a_sweep_and_its_overrides_too() -> None:
    with pytest.raises(ConfigError, match=r"max_steps: expected a whole number, got '1:30'"):
        load_sweep("soda", ["max_steps=1:30"])
    with pytest.raises(ConfigError, match=r"max_steps: .*got '1_000'; write 1000$"):
        load_sweep("soda", ["max_steps=1_000"])
    with pytest.raises(ConfigError, match=r"max_steps: .*got '0o1750'; write 1000$"):
        load_sweep("soda", ["max_steps='0o1750'"])
    with pytest.raises(
        ConfigError, match=r"z_loss: expected a number, got '\+\.5e3'; write \+0\.5e3$"
    ):
        load_sweep("soda", ["train.z_loss='+.5e3'"])
    sweep = load_sweep("soda", ["max_steps=0o1750", "seeds=[0, 010]", "train.z_loss=+.5e3"])
    assert (sweep.max_steps, sweep.seeds, sweep.train.z_loss) == (1000, (0, 10), 500.0)


# Interpolations


@pytest.mark.parametrize(
    "key", ["setup: ['source ${CONDA_PREFIX}/bin/activate']", "python: ${CONDA_PREFIX}/python"]
)
def test_a_variable_of_the_shell_has_its_mend(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as problem:
        read(tmp_path, key + "\n")
    assert str(problem.value).endswith("write $CONDA_PREFIX, or \\${CONDA_PREFIX}")
    assert "\n" not in str(problem.value)


def test_numbers_beside_an_interpolation(tmp_path: Path) -> None:
    profile = read(tmp_path, "max_gpus: 010\nmax_jobs: ${max_gpus}\nname: 08\npython: ${name}\n")
    assert (profile.max_gpus, profile.max_jobs) == (10, 10)
    assert (profile.name, profile.python) == ("08", "08")


nasty = st.lists(
    st.sampled_from(
        ["\\", "$", "{", "}", "${", "${a}", "\\${", "'", '"', " ", "a", ":", "#", "1", "0", "e5",
        "é", "\t"]
    )
).map("".join)  # fmt: skip
words = (
    nasty
    | st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12)
    | st.from_regex(r"[-+]?[0-9._:eExob]{1,6}", fullmatch=True)
    | st.sampled_from(
        [
            "1e5", "010", "08", "0o17", "+.5", ".5e3", "1:30", "yes", "null", "~", ".inf",
            "2026-01-01", "0x1F", "1_000", "<<", "=", "- a", "true", "y", "N", "on",
        ]
    )
)  # fmt: skip
options = words.filter(lambda text: text != "???")
QUICK = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | nasty,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    )
)
def test_omegaconf_leaves_alone_all_that_it_is_not_given(value: Any) -> None:
    if not _needs_omegaconf({"k": value}):
        assert OmegaConf.to_container(OmegaConf.create({"k": value}), resolve=True) == {"k": value}


# Files that isoflop writes


@given(
    st.dictionaries(
        words, words | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()
    )
)
def test_a_dump_reads_the_same_by_yaml_1_1_and_1_2(values: dict[str, Any]) -> None:
    text = dump_yaml(values)
    assert parse_yaml(text) == values
    assert yaml.safe_load(text) == values
    assert parse_yaml(text, as_written=True).keys() == values.keys()


@QUICK
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


@QUICK
@given(command=options, set_name=st.sampled_from(["1e5", "010", "heldout", "on", "2026-01-01"]))
def test_a_kept_sweep_is_read_back(tmp_path: Path, command: str, set_name: str) -> None:
    soda = load_sweep("soda")
    train = dataclasses.replace(soda.train, trainer=f"command: x{command}")
    kept = dataclasses.replace(
        soda, train=train, metric=dataclasses.replace(soda.metric, set=set_name)
    )
    (file := tmp_path / "kept.yaml").write_text(to_yaml(kept), encoding="utf-8")
    assert load_sweep(file) == kept
    assert sweep_from_mapping(to_mapping(kept), "fit.json") == kept
