"""What is wrong with a sweep's trainer is found when it is planned; how a command's words are filled in."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from support.studies import tiny_plan

from isoflop.errors import ConfigError
from isoflop.planning.plan import plan
from isoflop.planning.trainers import fill

NO_SHELL = "has no effect: the command is no shell; use bash -c '...'"
NOWHERE = "does not say where the program is to write its losses; give it {losses}, e.g. --losses {losses}"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train {stpes}", "{stpes} is not known; in braces can stand run_id, "),
        ("train {step} {losses}", "(write {{ for a brace)"),
        ("train {budget.real.nothing}", "is not known"),
        ("train {budget[0]}", "can't be read as a command"),
        ("train {}", "can't be read as a command"),
        ("train {steps", "can't be read as a command"),
        ("train {steps!z}", "can't be read as a command"),
        ("train 'steps", "can't be read as a command (No closing quotation)"),
        ("train", NOWHERE),
        ("train --steps {steps} --out {data_dir}", NOWHERE),
        ("train {{losses}}", NOWHERE),
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
def test_a_command_that_no_run_could_use_is_one_line(
    tmp_path: Path, command: str, says: str
) -> None:
    with pytest.raises(ConfigError) as problem:
        tiny_plan(tmp_path, f"train.trainer={{command: {json.dumps(command)}}}")
    assert says in str(problem.value)
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
def test_a_command_that_can_be_used_is_planned(tmp_path: Path, command: str) -> None:
    assert tiny_plan(tmp_path, f"train.trainer={{command: {json.dumps(command)}}}").runs


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["train.trainer={simulated: foo}"],
            "train.trainer: simulated: 'foo' is no law that is known; take chinchilla",
        ),
        (
            ["metric.set=foo"],
            "metric.set: the pocket data have no split 'foo'; set metric.set=heldout",
        ),
    ],
)
def test_a_law_or_a_split_that_is_not_there_is_one_line(
    tmp_path: Path, overrides: list[str], says: str
) -> None:
    with pytest.raises(ConfigError) as problem:
        tiny_plan(tmp_path, *overrides)
    assert str(problem.value).startswith(f"{tmp_path / 'tiny.yaml'}: {says}")


def test_splits_of_other_data_and_trainers_are_their_own(tmp_path: Path) -> None:
    assert plan("soda", ["metric.set=foo"]).runs
    assert tiny_plan(tmp_path, "metric.set=foo", "train.trainer='command: train {losses}'").runs
    assert tiny_plan(tmp_path, "metric.set=foo", "train.trainer='simulated: soda'").runs


@drawn(st.lists(st.text().filter(lambda word: "\0" not in word), min_size=1))
def test_words_stay_words_whatever_is_in_them(words: list[str]) -> None:
    template = shlex.join(word.replace("{", "{{").replace("}", "}}") for word in words)
    assert fill(template, {}) == words
    values = {f"name{number}": word for number, word in enumerate(words)}
    assert fill(" ".join(f"{{{name}}}" for name in values), values) == words
