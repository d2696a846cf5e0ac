"""Refusals of a study before anything is made or trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_studies import find_run, tiny_plan, tiny_study, trained, write_corpus

from isoflop.config.identity import data_identity
from isoflop.data.prepare import data_folder, prepare
from isoflop.data.shards import MANIFEST
from isoflop.errors import ConfigError, DataError
from isoflop.launching.prepare_data import prepare_data
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.planning.plan import Plan
from isoflop.studies import train_study

Change = Callable[[Path, Plan], None]


def test_a_metric_without_targets_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    # The first window of the split begins with BOS, a marker and audio: its first targets
    # include no text.
    root, few, many = (
        tmp_path / "runs",
        *(
            tiny_plan(tmp_path, "metric.kind=text", f"metric.tokens={tokens}", "seq_len=4")
            for tokens in (1, 512)
        ),
    )
    write_corpus(root, few)
    with pytest.raises(
        DataError, match=r"no text tokens among the 4 measured tokens of split 'heldout'; raise "
    ):
        prepare_data(few.sweep, root)
    prepare_data(many.sweep, root)


def other_corpus(root: Path, plan: Plan) -> None:
    """Replace the tokens that runs have begun with."""
    folder = data_folder(root, plan.sweep.data)
    shutil.rmtree(folder)
    write_corpus(root, plan, tokens=50_000)


def test_runs_of_one_sweep_have_the_same_data(tmp_path: Path) -> None:
    root, plan, run = trained(tmp_path)
    prepare_data(plan.sweep, root)
    other_corpus(root, plan)
    with pytest.raises(DataError) as problem:
        train_study(plan, root)
    says = (
        f"{run.run_id} of this sweep began with {run.state()['data_checksum'][:12]}; "
        f"restore that data, or give"
    )
    assert says in str(problem.value)
    assert [find_run(root, plan, number).state()["state"] for number in range(3)] == [
        "done",
        "pending",
        "pending",
    ]


def test_a_folder_with_another_corpus_than_its_name_says_is_refused(tmp_path: Path) -> None:
    root, plan = tiny_study(tmp_path)
    folder = prepare(root, plan.sweep.data)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["data"] == data_identity(plan.sweep.data)
    (folder / MANIFEST).write_text(
        json.dumps({**manifest, "data": {**manifest["data"], "seed": 1}})
    )
    with pytest.raises(
        DataError,
        match=r"made from another data section \(different seed\); move it away, and prepare",
    ):
        prepare(root, plan.sweep.data)


def no_tokens(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path, "data.tokens={}")


def no_such_split(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path, "metric.set=dev")


@pytest.mark.parametrize("wrong", [no_tokens, no_such_split])
def test_what_can_not_be_prepared_leaves_no_directory_that_refuses_the_mend(
    tmp_path: Path, wrong: Callable[[Path], Plan]
) -> None:
    root, right = tmp_path / "runs", tiny_plan(tmp_path)
    write_corpus(root, right)
    with pytest.raises((ConfigError, DataError)):
        train_study(wrong(tmp_path), root)
    assert not list(root.glob("tiny/*.*"))
    assert not list(root.glob("tiny/*/config.yaml"))
    directory = make_directory(right, root)
    assert all((directory / run.run_id / "config.yaml").exists() for run in right.runs)
