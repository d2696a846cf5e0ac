"""A sweep's directory: made from a plan, and reserved for one study."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support.tiny_studies import find_run, tiny_plan

from isoflop.config import load_sweep
from isoflop.config.identity import RUN_HASH_DIGITS, canonical_hash, data_hash
from isoflop.errors import ConfigError
from isoflop.launching.records.code_snapshot import find_commit
from isoflop.launching.records.sweep_directory import make_directory, runs_root
from isoflop.planning.plan import Plan
from isoflop.recipes import POCKET, RECIPES
from isoflop.runs.runs_table import read_runs


def test_what_is_in_it(study: tuple[Path, Plan]) -> None:
    root, plan = study
    directory = root / "tiny"
    assert load_sweep(directory / "sweep.yaml") == plan.sweep
    assert pd.read_parquet(directory / "plan.parquet")["run_id"].tolist() == [
        spec.run_id for spec in plan.runs
    ]
    for number, spec in enumerate(plan.runs):
        run = find_run(root, plan, number)
        assert run.state()["state"] == "pending"
        assert run.state()["steps"] == spec.steps
        provenance = json.loads((run.path / "provenance.json").read_text())
        assert provenance.keys() == {"python", "platform", "host", "command", "versions", "commit"}
        assert provenance["versions"].keys() == {
            "isoflop",
            "torch",
            "lightning",
            "pytorch-lightning",
            "numpy",
        }


def test_provenance_names_the_commit_of_the_code_that_jobs_run(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "changes.diff").write_text("commit 0a1b\n")
    plan = tiny_plan(tmp_path)
    for code, commit in ((tmp_path / "code", "0a1b"), (None, find_commit())):
        directory = make_directory(plan, tmp_path / str(commit), code)
        files = sorted(directory.glob("*/provenance.json"))
        assert [json.loads(file.read_text())["commit"] for file in files] == [commit] * len(
            plan.runs
        )


def test_a_configuration_holds_everything_that_its_name_hashes(study: tuple[Path, Plan]) -> None:
    root, plan = study
    for number, spec in enumerate(plan.runs):
        config = yaml.safe_load((find_run(root, plan, number).path / "config.yaml").read_text())
        assert spec.run_id.endswith("-" + canonical_hash(config["identity"])[:RUN_HASH_DIGITS])
        assert config["identity"]["shape"] == dataclasses.asdict(spec.shape)
        assert config["data"] == data_hash(plan.sweep.data)
        for key in ("lr", "beta2", "batch_size", "steps", "seed"):
            assert config["run"][key] == config["identity"][key] == getattr(spec, key)


def test_made_again_it_stays_as_it_is(study: tuple[Path, Plan]) -> None:
    root, plan = study
    run = find_run(root, plan)
    run.set_state("failed", "no luck", attempt=2)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    make_directory(plan, root)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_files_that_an_interruption_kept_from_being_written_are_written(
    study: tuple[Path, Plan],
) -> None:
    root, plan = study
    run = find_run(root, plan)
    for name in ("state.json", "provenance.json"):
        (run.path / name).unlink()
    make_directory(plan, root)
    assert run.state()["steps"] == plan.runs[0].steps
    assert (run.path / "provenance.json").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["widths=[8, 12, 16, 24]", "budgets=[1e8, 4e8]"],
        ["widths=[12]"],
        ["seeds=[0, 1]"],
        ["min_batch=1", "max_steps=60"],
        ["train.evals=7", "train.log_points=5", "train.checkpoint_minutes=3", "data.max_epochs=1"],
        ["train.loggers=[wandb, tensorboard]"],
    ],
)
def test_runs_may_be_added_and_removed(
    study: tuple[Path, Plan], tmp_path: Path, overrides: list[str]
) -> None:
    root, plan = study
    other = tiny_plan(tmp_path, *overrides)
    make_directory(other, root)
    assert read_runs(root / "tiny")["run_id"].tolist() == [spec.run_id for spec in other.runs]
    assert all(find_run(root, plan, number).config() for number in range(3))


def test_how_a_run_is_made_holds_for_the_next_start_of_what_is_not_done(
    study: tuple[Path, Plan], tmp_path: Path
) -> None:
    root, plan = study
    find_run(root, plan, 1).mark_done()
    before = [find_run(root, plan, number).config() for number in range(3)]
    for loggers, minutes, deterministic in (
        (["tensorboard"], 3.0, False),
        (["wandb"], 2.0, True),
        ([], 20.0, False),
    ):
        how = {"loggers": loggers, "checkpoint_minutes": minutes, "deterministic": deterministic}
        make_directory(
            tiny_plan(tmp_path, *(f"train.{key}={value}" for key, value in how.items())), root
        )
        for number, config in enumerate(before):
            assert find_run(root, plan, number).config() == {
                **config,
                **(how if number != 1 else {}),
            }


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        (["recipe=soda", "budgets=[1e14]", "widths=[256]"], "recipe was pocket, is soda"),
        (["data.tokens.pocket=5e4"], "data.tokens.pocket was 40000.0, is 50000.0"),
        (["data.composition=s+a"], r"data.composition was s\+a\+t, is s\+a"),
        (
            ["data.seed=1", "seq_len=64", "budgets=[4e8]"],
            "data.seed was 0, is 1; seq_len was 32, is 64",
        ),
        (["metric.kind=text"], "metric.kind was all, is text"),
        (["metric.tokens=1024"], "metric.tokens was 512, is 1024"),
        (["train.optimizer.weight_decay=0"], "train.optimizer.weight_decay was 0.1, is 0.0"),
        (["train.lr_scale=2"], "train.lr_scale was 1.0, is 2.0"),
        (["train.z_loss=0.1"], "train.z_loss was 0.0, is 0.1"),
        (["train.schedule.decay=0.5"], "train.schedule.decay was 0.2, is 0.5"),
    ],
)
def test_another_study_is_refused_with_the_difference(
    study: tuple[Path, Plan], tmp_path: Path, overrides: list[str], difference: str
) -> None:
    root, _ = study
    before = {path: path.stat().st_mtime_ns for path in (root / "tiny").rglob("*")}
    with pytest.raises(
        ConfigError, match=f"tiny: made by another study: {difference}; give this one another name"
    ):
        make_directory(tiny_plan(tmp_path, *overrides), root)
    assert {path: path.stat().st_mtime_ns for path in (root / "tiny").rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"version": 99}, "1e8-w8-s0: recipe.version was 4, is 99"),
        ({"mlp_ratio": 2}, "1e8-w8-s0: .*shape.mlp_width was 32, is 16"),
    ],
)
def test_a_recipe_whose_rules_have_changed_is_another(
    study: tuple[Path, Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, int],
    difference: str,
) -> None:
    root, _ = study
    recipe = dataclasses.replace(POCKET, **change)  # type: ignore[arg-type]
    monkeypatch.setitem(RECIPES, "pocket", recipe)
    changed = tiny_plan(tmp_path, "widths=[8]", "budgets=[1e8]", "train.evals=3")
    with pytest.raises(ConfigError, match=f"tiny: made by another study: {difference}"):
        make_directory(changed, root)


def test_a_sweep_is_not_called_as_the_folder_of_data(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"name: .*data holds the data of all sweeps; give the sweep another name"
    ):
        make_directory(tiny_plan(tmp_path, "name=data"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_damaged_definition_is_named(study: tuple[Path, Plan]) -> None:
    root, plan = study
    (root / "tiny" / "sweep.yaml").write_text("budgets: [")
    with pytest.raises(ConfigError, match=r"tiny/sweep\.yaml"):
        make_directory(plan, root)


@pytest.mark.parametrize(
    ("value", "folder"),
    [(None, "runs"), ("", "runs"), ("else/where", "else/where"), ("~/x", "home/x")],
)
def test_the_root_of_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ISOFLOP_ROOT", raising=False)
    if value is not None:
        monkeypatch.setenv("ISOFLOP_ROOT", value)
    assert runs_root() == tmp_path / folder
