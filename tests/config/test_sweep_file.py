"""Sweep files and cluster profiles: values read, messages, and the identity of a run."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from isoflop.config import (
    Sweep,
    data_hash,
    load_profile,
    load_sweep,
    run_id,
    run_identity,
    shipped_sweeps,
)
from isoflop.config.identity import budget_label, canonical_hash
from isoflop.config.sweep_file import to_yaml
from isoflop.errors import ConfigError
from isoflop.recipes import SODA, Candidate

SMALL = """\
recipe: pocket
seq_len: 256
budgets: [1.0e11, 3e11]
widths: [16, 24]
data:
  codec: pocket
  text_tokenizer: bytes
  mixture: {pocket: 1.0}
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return path

    return write


def message(problem: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(problem.value)
    assert "\n" not in text
    return text


# Reading


def test_defaults(sweep_file: Callable[[str], Path]) -> None:
    sweep = load_sweep(sweep_file(SMALL))
    assert sweep.name == "small"
    assert sweep.budgets == (1e11, 3e11)
    assert sweep.widths_at(1e11) == (16, 24)
    assert (sweep.schema, sweep.kind, sweep.seeds, sweep.min_batch, sweep.max_steps) == (
        1,
        "isoflop",
        (0,),
        1,
        None,
    )
    assert (sweep.train.optimizer.beta1, sweep.train.optimizer.eps) == (0.95, 1e-15)
    assert (sweep.train.schedule.warmup, sweep.train.schedule.decay) == (0.1, 0.2)
    assert (sweep.train.trainer, sweep.train.evals, sweep.train.log_points) == ("builtin", 4, 200)
    assert (sweep.metric.set, sweep.metric.kind) == ("heldout", "all")
    assert sweep.data.composition == "s+a+t"


def test_shipped_sweeps_are_found_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "soda" in shipped_sweeps()
    assert load_sweep("soda").name == "soda"
    (tmp_path / "soda").mkdir()  # a folder of runs
    assert load_sweep("soda").name == "soda"
    (tmp_path / "soda").rmdir()
    (tmp_path / "soda").write_text(SMALL)  # a file goes before a shipped name
    assert load_sweep("soda").recipe == "pocket"


@pytest.mark.parametrize("name", shipped_sweeps())
def test_a_sweep_written_out_is_read_back_the_same(name: str, tmp_path: Path) -> None:
    sweep = load_sweep(name)
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(sweep))
    assert load_sweep(path) == sweep


def test_widths_of_soda() -> None:
    sweep = load_sweep("soda")
    narrow, wide = tuple(range(128, 2049, 128)), tuple(range(128, 2049, 256))
    assert sweep.widths_at(2.7e19) == narrow
    assert sweep.widths_at(2.8e19) == wide


def test_overrides_replace_the_value_at_a_key(sweep_file: Callable[[str], Path]) -> None:
    path = sweep_file(SMALL)
    given = [
        "seq_len=128",
        "data.mixture={a: 0.5, b: 0.5}",
        "train.optimizer.weight_decay=0",
        "widths=[8,16]",
        "budgets[1]=5e11",
        "replicates=[{budget: 1e11, width: 8, seeds: [1]}]",
        "metric.set=other",
    ]
    sweep = load_sweep(path, given)
    assert sweep.seq_len == 128
    assert sweep.data.mixture == {"a": 0.5, "b": 0.5}
    assert sweep.train.optimizer.weight_decay == 0.0
    assert sweep.train.optimizer.beta1 == 0.95
    assert sweep.widths_at(1e11) == (8, 16)
    assert sweep.budgets == (1e11, 5e11)
    assert sweep.replicates[0].seeds == (1,)
    assert sweep.metric.set == "other"
    assert load_sweep(path, {"seq_len": 128, "budgets.1": 5e11}).budgets == (1e11, 5e11)


def test_interpolations_are_resolved(
    sweep_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDY", "night")
    sweep = load_sweep(sweep_file(SMALL + "name: ${oc.env:STUDY}-${seq_len}\n"), ["seq_len=64"])
    assert sweep.name == "night-64"


# Refusing: text of the file, overrides, and what the message must say after the file's name

BAD_FILES = [
    ("", "the file is empty"),
    ("# only a comment\n", "expected a mapping of keys to values"),
    ("- 1\n- 2\n", "expected a mapping"),
    ("3", "expected a mapping of keys to values, got 3"),
    (SMALL + "---\nrecipe: soda\n", ", line 9: a second document begins here; keep one"),
    (SMALL + "name: !mine x\n", ", line 9: the tag !mine is not supported; leave it out"),
    (SMALL.replace("256", "'010'"), "seq_len: expected a whole number, got '010'; write 10"),
    (SMALL.replace("256", "1_024"), "seq_len: expected a whole number, got '1_024'; write 1024"),
    (SMALL.replace("256", "4:16"), "seq_len: expected a whole number, got '4:16'"),
    (SMALL.replace("3e11", "1e400"), "budgets[1]: expected a finite number, got inf"),
    (SMALL + "recipe_check: yes\n", "recipe_check: expected true or false, got 'yes'"),
    ("seq_len: [1\nbudgets: 2\n", ", line 2: "),
    ("a: b: c\n", ", line 1: mapping values are not allowed"),
    (SMALL + "seq_len: 512\n", ", line 9: found duplicate key seq_len"),
    ("\tseq_len: 1\n", ", line 1: "),
    (SMALL.replace("seq_len", "seqlen"), "seqlen: unknown key; did you mean seq_len?"),
    (
        SMALL.replace("mixture", "mixtures"),
        "data.mixtures: unknown key; did you mean data.mixture?",
    ),
    (SMALL + "mixture: {a: 1.0}\n", "mixture: unknown key; did you mean data.mixture?"),
    (SMALL + "trainer: builtin\n", "trainer: unknown key; did you mean train.trainer?"),
    (
        SMALL + "train: {optimizer: {beta: 1}}\n",
        "train.optimizer.beta: unknown key; did you mean train.optimizer.beta1?",
    ),
    (SMALL + "1: 2\n", "1: unknown key"),
    (SMALL.replace("seq_len: 256\n", ""), "seq_len: missing; it has no default"),
    (SMALL.replace("  codec: pocket\n", ""), "data.codec: missing; it has no default"),
    (SMALL.replace("256", "many"), "seq_len: expected a whole number, got 'many'"),
    (SMALL.replace("256", "25.6"), "seq_len: expected a whole number, got 25.6"),
    (SMALL.replace("256", "'256'"), "seq_len: expected a whole number, got '256'"),
    (SMALL.replace("256", "true"), "seq_len: expected a whole number, got True"),
    (SMALL.replace("256", "???"), "seq_len: has no value yet (???); put yours in its place"),
    (SMALL.replace("256", "${nowhere}"), "seq_len: Interpolation key 'nowhere' not found"),
    (SMALL.replace("[1.0e11, 3e11]", "1e11"), "budgets: expected a list, got 100000000000.0"),
    (SMALL.replace("3e11", "x"), "budgets[1]: expected a number, got 'x'"),
    (SMALL.replace("3e11", ".nan"), "budgets[1]: expected a finite number, got nan"),
    (
        SMALL.replace("3e11", "-1"),
        "budgets[1]: expected training FLOPs above 0 and up to 1e40, got -1",
    ),
    (SMALL.replace("3e11", "100000000000"), "budgets: 1e11 is given twice; leave one out"),
    (SMALL.replace("[1.0e11, 3e11]", "[]"), "budgets: an empty list"),
    (
        SMALL.replace("[16, 24]", "[16, 24.5]"),
        "widths[1]: expected a whole number (or rules only), got 24.5",
    ),
    (SMALL.replace("[16, 24]", "[16, 16]"), "widths[0].values: 16 is given twice"),
    (
        SMALL.replace("[16, 24]", "[16, {start: 1}]"),
        "widths[0]: expected a mapping with keys such as until",
    ),
    (
        SMALL.replace("[16, 24]", "[{start: 16, stop: 32}]"),
        "widths[0].step: missing; a rule has start, stop and step",
    ),
    (
        SMALL.replace("[16, 24]", "[{start: 1, values: [2]}]"),
        "widths[0].start: give either values or start",
    ),
    (
        SMALL.replace("[16, 24]", "[{start: 9, stop: 8, step: 1}]"),
        "widths[0].stop: expected 9 (start) or more, got 8",
    ),
    (
        SMALL.replace("[16, 24]", "[{start: 9, stop: 8, step: 0}]"),
        "widths[0].step: expected 1 to 1,000,000, got 0",
    ),
    (SMALL.replace("[16, 24]", "[{values: [8]}, {values: [9]}]"), "widths[1]: never used"),
    (
        SMALL.replace("[16, 24]", "[{until: 2e11, values: [8]}]"),
        "widths: no rule for budget 3e11; leave until out of the last rule",
    ),
    (
        SMALL.replace("[16, 24]", "[{start: 1, stop: 1000000, step: 1}]"),
        "widths: 2,000,000 candidates, more than",
    ),
    (SMALL + "kind: ablation\naxes: {a: [1]}\n", "kind: expected isoflop, got 'ablation'"),
    (SMALL + "schema: 2\n", "schema: expected 1, got 2"),
    (SMALL + "name: a/b\n", "name: expected a name of letters, digits, '.', '_' and '-'"),
    (SMALL + "name: ..\n", "name: expected a name of letters"),
    (SMALL + "seeds: [0, -1]\n", "seeds[1]: expected 0 to 4,294,967,295, got -1"),
    (SMALL + "seeds: [0, 0]\n", "seeds: 0 is given twice"),
    (SMALL + "seeds: 3\n", "seeds: expected a list, got 3"),
    (SMALL + "extra: [{budget: 1e11}]\n", "extra[0].width: missing"),
    (
        SMALL + "replicates: [{budget: 1e11, width: 16, seeds: []}]\n",
        "replicates[0].seeds: an empty list",
    ),
    (SMALL + "max_steps: 0\n", "max_steps: expected 2 or more, got 0"),
    (
        SMALL + "metric: heldout\n",
        "metric: expected a mapping with keys such as set, kind, tokens, got 'heldout'",
    ),
    (
        SMALL + "metric: {set: train}\n",
        "metric.set: a loss on training batches can't be fitted; name a held-out set",
    ),
    (
        SMALL.replace("codec:", "composition: s\n  codec:") + "metric: {kind: text}\n",
        "metric.kind: data.composition s has no text tokens; take all or semantic",
    ),
    (
        SMALL.replace("codec:", "composition: text\n  codec:") + "metric: {kind: acoustic}\n",
        "metric.kind: data.composition text has no acoustic tokens; take all or text",
    ),
    (
        SMALL + "metric: {kind: words}\n",
        "metric.kind: expected one of all, text, semantic, acoustic, got 'words'",
    ),
    (SMALL.replace("1.0}", "0.9}"), "data.mixture: the shares add up to 0.9, not 1"),
    (SMALL.replace("1.0}", "half}"), "data.mixture.pocket: expected a number, got 'half'"),
    (
        SMALL.replace("{pocket: 1.0}", "{a: 1.5, b: -0.5}"),
        "data.mixture.a: expected a share above 0 and up to 1, got 1.5",
    ),
    (
        SMALL.replace("{pocket: 1.0}", "[pocket]"),
        "data.mixture: expected a mapping of names to values",
    ),
    (SMALL.replace("{pocket: 1.0}", "{}"), "data.mixture: empty; give at least one source"),
    (
        SMALL.replace("{pocket: 1.0}", "{1: 1.0}"),
        "data.mixture: expected names as keys, got 1; put it in quotes",
    ),
    (SMALL + "  tokens: {poket: 5}\n", "data.tokens.poket: no source of data.mixture (pocket)"),
    (
        SMALL + "  heldout_share: 0.5\n",
        "data.heldout_share: expected a share above 0 and under 0.5, got 0.5",
    ),
    (
        SMALL + "  composition: s+t\n",
        "data.composition: expected one of s, s+a, s+a+t, text, got 's+t'",
    ),
    (SMALL + "train: {trainer: simulated}\n", "train.trainer: expected builtin, "),
    (
        SMALL + "train: {batch_scale: 3}\n",
        "train.batch_scale: expected a power of two such as 0.5 or 2, got 3",
    ),
    (
        SMALL + "train: {lr_scale: 0}\n",
        "train.lr_scale: expected a factor above 0 and up to 1e6, got 0",
    ),
    (SMALL + "train: {evals: 0}\n", "train.evals: expected 1 or more, got 0"),
    (
        SMALL + "train: {loggers: [mlflow]}\n",
        "train.loggers[0]: expected one of tensorboard, wandb, got 'mlflow'",
    ),
    (
        SMALL + "train: {loggers: [wandb, wandb]}\n",
        "train.loggers: one is given twice; leave one out",
    ),
    (
        SMALL + "train: {trainer: 'command: x', loggers: [wandb]}\n",
        "train.loggers: an external program does its own logging; leave it out",
    ),
    (
        SMALL + "train: {optimizer: {beta1: 1}}\n",
        "train.optimizer.beta1: expected 0 or more and under 1, got 1",
    ),
    (
        SMALL + "train: {schedule: {warmup: 0.9}}\n",
        "train.schedule.decay: warmup and decay add up to 1.1",
    ),
    (
        SMALL + "train: {optimizer: }\n",
        "train.optimizer: expected a mapping with keys such as name",
    ),
]


@pytest.mark.parametrize(("text", "says"), BAD_FILES, ids=[says[:50] for _, says in BAD_FILES])
def test_a_bad_file_is_refused_in_one_line(
    text: str, says: str, sweep_file: Callable[[str], Path]
) -> None:
    path = sweep_file(text)
    with pytest.raises(ConfigError) as problem:
        load_sweep(path)
    assert message(problem).startswith(
        f"{path}{says}" if says.startswith(",") else f"{path}: {says}"
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seq_len", "override 'seq_len': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("a..b=3", "override 'a..b=3': expected key=value"),
        ("data.mixture={a: [", "override 'data.mixture={a: [': the value is not valid YAML"),
        ("seq_len.x=3", "override seq_len.x: seq_len holds a single value, so it has no x"),
        (
            "budgets[7]=3",
            "override budgets[7]: index 7 is out of range; the list has 2 items (0 to 1)",
        ),
        (
            "budgets.x=3",
            "override budgets.x: index x is out of range; the list has 2 items (0 to 1)",
        ),
        (
            "seq_len=many",
            "FILE, override seq_len='many': seq_len: expected a whole number, got 'many'",
        ),
        (
            "data.mixture.b=1.0",
            "FILE, override data.mixture.b=1.0: data.mixture: the shares add up to 2, not 1",
        ),
        (
            "data.codecs=mimi",
            "FILE, override data.codecs='mimi': data.codecs: unknown key; did you mean data.codec?",
        ),
        ("kind=suite", "FILE, override kind='suite': kind: expected isoflop, got 'suite'"),
    ],
)
def test_a_bad_override_is_named(
    override: str, says: str, sweep_file: Callable[[str], Path]
) -> None:
    path = sweep_file(SMALL)
    with pytest.raises(ConfigError) as problem:
        load_sweep(path, [override])
    assert message(problem).startswith(says.replace("FILE", str(path)))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"": 1}, "override '': expected a key, e.g. seq_len or data.seed"),
        ({3: 4}, "override 3: expected a key"),
        ({None: 4}, "override nothing: expected a key"),
        ({"a b": 4}, "override 'a b': expected a key"),
        ({"data..seed": 4}, "override 'data..seed': expected a key"),
        ([3], "override 3: expected key=value"),
    ],
)
def test_an_override_without_a_key_is_named(overrides: Any, says: str) -> None:
    with pytest.raises(ConfigError) as problem:
        load_sweep("soda", overrides)
    assert message(problem).startswith(says)


def test_a_pipe_is_read_like_a_file() -> None:
    receiver, sender = os.pipe()  # as of sweep-plan <(...)
    with os.fdopen(sender, "w") as file:
        file.write(SMALL)
    try:
        sweep = load_sweep(f"/dev/fd/{receiver}")
    finally:
        os.close(receiver)
    assert (sweep.name, sweep.budgets) == (str(receiver), (1e11, 3e11))


def test_a_missing_file_names_what_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"sodaa.yaml: no such file; did you mean soda, of the shipped ones: .*soda",
    ):
        load_sweep("sodaa.yaml")
    with pytest.raises(
        ConfigError, match=r"is a folder; give a YAML file, or a shipped name: .*soda"
    ):
        load_sweep(tmp_path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        load_sweep(path)


# Whatever is given, the answer is a sweep or one ConfigError

KEYS = [
    "name", "recipe", "seq_len", "budgets", "budgets[0]", "widths", "widths[0]", "widths[0].step",
    "extra", "seeds", "replicates", "min_batch", "max_steps", "data", "data.mixture", "data.tokens",
    "data.heldout_share", "data.seed", "train", "train.optimizer", "train.optimizer.eps",
    "train.batch_scale", "metric", "metric.set", "schema", "kind",
]  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["???", "${seq_len}", "${oops", "${oc.env:HOME}", "soda", 10**400])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
QUICK = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def sweep_or_error(source: str | Path, overrides: Any = ()) -> None:
    outcome: object
    try:
        outcome = load_sweep(source, overrides)
    except ConfigError as problem:
        outcome = str(problem)
    assert isinstance(outcome, Sweep) or (isinstance(outcome, str) and "\n" not in outcome)


@QUICK
@given(st.sampled_from(KEYS), VALUES)
@example("seq_len", 10**5000)
def test_any_value_at_any_key(key: str, value: Any) -> None:
    sweep_or_error("soda", {key: value})


@QUICK
@given(
    st.text(max_size=40) | st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=20))
)
def test_any_override(override: str) -> None:
    sweep_or_error("soda", [override])


@QUICK
@given(
    st.text(alphabet="ab:-[]{}&*!|>'\"%@#,? \n\t0.9e$\\\x00é", max_size=60) | st.text(max_size=40)
)
@example("'a\n\nb': 1\n'a\n\nb': 2")
@example('"a\\nb": 1')
@example("&a [*a]")
@example("a: !!python/object:os.system x")
@example("a: !!set {b}")
@example("a: 2001-99-99")
@example("? [a]\n: b")
@example("[" * 3000)
def test_any_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    sweep_or_error(path)


@QUICK
@given(st.integers(0, 350), st.text(alphabet=":-[]{}0e, \n'", max_size=3))
def test_any_slip_of_the_keyboard(tmp_path: Path, place: int, slip: str) -> None:
    path = tmp_path / "slip.yaml"
    path.write_text(SMALL[:place] + slip + SMALL[place + 1 :])
    sweep_or_error(path)


# Identity


def identity_hash(sweep: Sweep, **changes: Any) -> str:
    candidate = Candidate(SODA.shape(768, 1000, sweep.seq_len), 32, 48_244, 0.00243, 0.995)
    return canonical_hash(
        run_identity(sweep, SODA, dataclasses.replace(candidate, **changes), seed=0)
    )


@pytest.mark.parametrize(
    "override",
    [
        "seq_len=2048",
        "data.codec=pocket",
        "data.text_tokenizer=bytes",
        "data.composition=s+a",
        "data.mixture={yodas2-en: 1.0}",
        "data.tokens={}",
        "data.seed=1",
        "data.heldout_share=0.05",
        "train.optimizer.weight_decay=0.2",
        "train.schedule.decay=0.3",
        "train.z_loss=0.0001",
        "train.precision=fp32",
    ],
)
def test_what_changes_the_result_changes_the_identity(override: str) -> None:
    overrides = [override, *(["data.tokens={}"] if "mixture" in override else [])]
    before, after = load_sweep("soda"), load_sweep("soda", overrides)
    assert identity_hash(before) != identity_hash(after)
    assert (data_hash(before.data) != data_hash(after.data)) == override.startswith("data.")


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "budgets=[9e18]",
        "widths=[768]",
        "min_batch=1",
        "data.max_epochs=1",
        "metric.kind=text",
        "train.evals=8",
        "train.log_points=10",
        "train.checkpoint_minutes=1",
        "train.loggers=[tensorboard, wandb]",
        "seeds=[0, 1]",
        "data.mixture={emilia-en: 0.14585, emilia-yodas-en: 0.28776, nemotron-cc-hq: 0.05,"
        " yodas2-en: 0.51639}",
    ],
)
def test_what_changes_no_result_keeps_the_identity(override: str) -> None:
    before, after = load_sweep("soda"), load_sweep("soda", [override])
    assert identity_hash(before) == identity_hash(after)
    assert data_hash(before.data) == data_hash(after.data)


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.00244}, {"beta2": 0.996}, {"batch_size": 16}, {"steps": 48_243}],
    ids=lambda change: next(iter(change)),
)
def test_each_setting_of_the_recipe_is_in_the_identity(change: dict[str, Any]) -> None:
    assert identity_hash(load_sweep("soda")) != identity_hash(load_sweep("soda"), **change)


def test_the_recipes_version_is_in_the_identity() -> None:
    sweep, candidate = (
        load_sweep("soda"),
        Candidate(SODA.shape(768, 1000, 4096), 32, 48_244, 0.00243, 0.995),
    )
    newer = dataclasses.replace(SODA, version=SODA.version + 1)
    assert run_identity(sweep, SODA, candidate, 0) != run_identity(sweep, newer, candidate, 0)


@QUICK
@given(st.integers(1, 10**12))
def test_a_number_has_one_identity_however_it_is_written(number: int) -> None:
    as_float, as_int = (
        load_sweep("soda", [f"data.tokens={{emilia-en: {text}}}"])
        for text in (float(number), number)
    )
    assert data_hash(as_float.data) == data_hash(as_int.data)


@given(st.floats(1e-300, 1e300))
def test_the_last_bits_of_a_float_are_not_in_the_identity(number: float) -> None:
    assert canonical_hash({"lr": number}) == canonical_hash({"lr": float(f"{number:.12g}")})
    assert canonical_hash([number]) != canonical_hash([number * (1 + 1e-10)])


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        max_size=5,
    )
)
def test_the_order_of_keys_is_not_in_the_identity(values: dict[str, float]) -> None:
    assert canonical_hash(values) == canonical_hash(dict(reversed(values.items())))


@given(st.floats(1, 1e40))
def test_budget_labels_are_names_of_files(budget: float) -> None:
    label = budget_label(budget)
    assert set(label) <= set("0123456789.e")
    assert math.isclose(float(label), budget, rel_tol=1e-6)


def test_the_run_id_of_a_check_says_how_it_differs() -> None:
    plain, check = (run_id(9e18, 768, 0, {"lr": 0.001}, text) for text in ("", "lr x 0.5"))
    assert plain == run_id(9e18, 768, 0, {"lr": 0.001})
    assert check.startswith("9e18-w768-lr0.5-s0-")
    assert check.rpartition("-")[2] == plain.rpartition("-")[2]


@pytest.mark.parametrize(
    ("budget", "label"), [(9e18, "9e18"), (1.8e19, "1.8e19"), (1e11, "1e11"), (123456, "1.23456e5")]
)
def test_run_ids_can_be_read(budget: float, label: str) -> None:
    name = run_id(budget, 768, 3, {"lr": 0.1})
    assert name.startswith(f"{label}-w768-s3-")
    assert len(name.rpartition("-")[2]) == 8


# Cluster profiles

PROFILE = """\
executor: slurm
gpu: {type: h100-sxm, per_node: 8}
slurm: {partition: gpu, time: "48:00:00", gres: "gpu:8"}
root: /shared/runs
"""


def test_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(PROFILE)
    profile = load_profile(path, ["max_gpus=16"])
    assert (profile.name, profile.executor, profile.max_gpus, profile.root) == (
        "ours",
        "slurm",
        16,
        "/shared/runs",
    )
    assert profile.gpu is not None
    assert (profile.gpu.type, profile.gpu.per_node) == ("h100-sxm", 8)
    assert profile.slurm["gres"] == "gpu:8"


def test_shipped_profiles() -> None:
    assert load_profile("local").executor == "local"
    filled = load_profile("h100", ["slurm.account=audio", "root=/shared/runs"])
    assert filled.slurm == {"partition": "gpu", "account": "audio", "time": "48:00:00"}


def test_a_profile_that_is_not_filled_in_yet_serves_for_planning() -> None:
    with pytest.raises(ConfigError, match=r"has no value yet \(\?\?\?\)"):
        load_profile("h100")
    planned = load_profile("h100", to_plan=True)
    assert planned.slurm == {"partition": "gpu", "time": "48:00:00"}
    with pytest.raises(ConfigError, match=r"max_gpus: has no value yet"):
        load_profile("h100", ["max_gpus='???'"], to_plan=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PROFILE.replace("root: /shared/runs\n", ""), "root: missing; a cluster needs a folder"),
        (PROFILE.replace("slurm:", "slrum:"), "slrum: unknown key; did you mean slurm?"),
        (
            PROFILE.replace("executor: slurm", "executor: pbs"),
            "executor: expected one of slurm, local, got 'pbs'",
        ),
        (
            PROFILE.replace("executor: slurm", "executor: local"),
            "slurm: these options need executor: slurm",
        ),
        (
            PROFILE.replace('"48:00:00"', "172800"),
            'slurm.time: expected text in quotes such as "48:00:00", got 172800',
        ),
        (
            PROFILE.replace("partition: gpu", "partition: '???'"),
            "slurm.partition: has no value yet (???)",
        ),
        (PROFILE.replace("per_node: 8", "per_node: 0"), "gpu.per_node: expected 1 to 1024, got 0"),
        (
            PROFILE.replace("per_node: 8", "per_node: 8, memory_gb: 0"),
            "gpu.memory_gb: expected a number above 0, got",
        ),
        (PROFILE + "disk_gb: -1\n", "disk_gb: expected a number above 0, got -1"),
        (PROFILE + "price_per_gpu_hour: -1\n", "price_per_gpu_hour: expected 0 or more, got -1"),
        (PROFILE + "setup: module load cuda\n", "setup: expected a list, got 'module load cuda'"),
        (PROFILE + "node: {cpus: 8}\n", "node.memory_gb: missing"),
    ],
)
def test_a_bad_profile_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as problem:
        load_profile(path)
    assert message(problem).startswith(f"{path}: {says}")
