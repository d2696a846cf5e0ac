"""Faults of a sweep's trainer found by planning, and the template of a command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_studies import tiny_plan

from isoflop.errors import ConfigError
from isoflop.planning.plan import plan
from isoflop.planning.trainers import fill_template

NO_SHELL = "has no effect: no shell runs the command; use bash -c '...'"
NO_LOSSES = (
    "does not name the file for the program's losses; give it {losses}, e.g. --losses {losses}"
)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train {stpes}", "{stpes} is not known; names in braces are run_id, "),
        ("train {step} {losses}", "(write {{ for a brace)"),
        ("train {budget.real.nothing}", "is not known"),
        ("train {budget[0]}", "can't be read as a command"),
        ("train {}", "can't be read as a command"),
        ("train {steps", "can't be read as a command"),
        ("train {steps!z}", "can't be read as a command"),
        ("train 'steps", "can't be read as a command (No closing quotation)"),
        ("train", NO_LOSSES),
        ("train --steps {steps} --out {data_dir}", NO_LOSSES),
        ("train {{losses}}", NO_LOSSES),
        ("train {losses} > log.txt", f"'>' {NO_SHELL}"),
        ("train {losses} 2>&1", f"'2>&1' {NO_SHELL}"),
        ("train {losses} >>{run_dir}/log", f"'>>{{run_dir}}/log' {NO_SHELL}"),
        ("train {losses} < input", f"'<' {NO_SHELL}"),
        ("train {losses} | tee log", f"'|' {NO_SHELL}"),
        ("cd there && train {losses}", f"'&&' {NO_SHELL}"),
        ("train {losses} ; true", f"';' {NO_SHELL}"),
        ("train {losses} &", f"'&' {NO_SHELL}"),
        ("FOO=1 train {losses}", f"'FOO=1' {NO_SHELL}"),
        (
            "train {losses} {budget:d}",
            "can't be read as a command (Unknown format code 'd' for object of type 'float')",
        ),
        (
            "train {losses} {steps:s}",
            "can't be read as a command (Unknown format code 's' for object of type 'int')",
        ),
    ],
)
def test_an_unusable_command_is_refused_in_one_line(
    tmp_path: Path, command: str, message: str
) -> None:
    with pytest.raises(ConfigError) as problem:
        tiny_plan(tmp_path, f"train.trainer={{command: {json.dumps(command)}}}")
    assert message in str(problem.value)
    assert str(problem.value).startswith(f"{tmp_path / 'tiny.yaml'}: train.trainer: ")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "command",
    [
        "train {losses}",
        "train --out={run_dir}/here {lr:.3f}",
        "bash -c 'cd there && FOO=1 train \"$0\" > log 2>&1' {losses}",
        "bash -c 'train --losses $ISOFLOP_RUN_DIR/losses.jsonl'",
        "env FOO=1 train --set optimizer.lr={lr} {losses}",
        "train {losses} $HOME '<tag>' 'a > b' a|b",
        "train {losses} {run_id:.12s} {steps:06d} {budget:.1e} {main_address:>9} {nodes:d}",
    ],
)
def test_a_usable_command_is_planned(tmp_path: Path, command: str) -> None:
    assert tiny_plan(tmp_path, f"train.trainer={{command: {json.dumps(command)}}}").runs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.trainer={simulated: foo}"],
            "train.trainer: simulated: 'foo' is no known law; use chinchilla",
        ),
        (
            ["metric.set=foo"],
            "metric.set: the pocket data have no split 'foo'; set metric.set=heldout",
        ),
    ],
)
def test_an_unknown_law_or_split_is_refused_in_one_line(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as problem:
        tiny_plan(tmp_path, *overrides)
    assert str(problem.value).startswith(f"{tmp_path / 'tiny.yaml'}: {message}")


def test_splits_of_other_data_and_trainers_are_not_checked(tmp_path: Path) -> None:
    assert plan("soda", ["metric.set=foo"]).runs
    assert tiny_plan(tmp_path, "metric.set=foo", "train.trainer='command: train {losses}'").runs
    assert tiny_plan(tmp_path, "metric.set=foo", "train.trainer='simulated: soda'").runs


@given(st.lists(st.text().filter(lambda text: "\0" not in text), min_size=1))
def test_any_text_stays_one_argument(arguments: list[str]) -> None:
    template = shlex.join(text.replace("{", "{{").replace("}", "}}") for text in arguments)
    assert fill_template(template, {}) == arguments
    values = {f"name{number}": text for number, text in enumerate(arguments)}
    assert fill_template(" ".join(f"{{{name}}}" for name in values), values) == arguments
