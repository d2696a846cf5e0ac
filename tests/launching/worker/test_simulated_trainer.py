"""Trainer `simulated`: a whole study with a known law, through ordinary run directories."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from support.tiny_studies import find_run, tiny_plan, write_sweep

from isoflop.fitting import fit_isoflop, load_fit, write_fit
from isoflop.launching.prepare_data import prepare_data
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.launching.worker import simulated_trainer
from isoflop.launching.worker.attempt import attempt
from isoflop.laws import SURFACES
from isoflop.planning.plan import Plan, plan
from isoflop.runs.run_directory import RunDirectory
from isoflop.runs.runs_table import read_runs, write_runs

SODA = "train.trainer={simulated: soda}"
QUIET = 1e-4
"""Noise so small that it can't hide a wrong law."""

GRID = (
    "budgets=[1e19, 4e19, 1.6e20]",
    "extra=[]",
    "max_steps=null",
    "min_batch=1",
    "train.evals=1",
    "train.log_points=2",
)

APART = """
import sys
from pathlib import Path
from isoflop.launching.worker.attempt import attempt
from isoflop.launching.records.sweep_directory import make_directory
from isoflop.planning.plan import plan
from isoflop.runs.runs_table import read_runs
from isoflop.runs.run_directory import RunDirectory

study = plan(sys.argv[1], ["train.trainer=simulated: soda"])
directory = make_directory(study, Path(sys.argv[2]))
print(*[attempt(RunDirectory(directory / run.run_id), lambda: False, None) for run in study.runs])
print({"torch", "lightning"} & set(sys.modules))
"""


def simulate(study: Plan, root: Path) -> Path:
    """Return the sweep's directory with every run done."""
    directory = make_directory(study, root)
    for spec in study.runs:
        assert attempt(RunDirectory(directory / spec.run_id), lambda: False, None) == "done"
    return directory


@pytest.mark.parametrize(
    ("law", "widths"),
    [
        ("chinchilla", [384, 512, 768, 1024, 1536, 2048]),
        ("soda", [512, 768, 1024, 1408, 2048, 2816]),
    ],
)
def test_a_study_gives_its_law_back_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, law: str, widths: list[int]
) -> None:
    monkeypatch.setattr(simulated_trainer, "NOISE_SHARE", QUIET)
    directory = simulate(
        plan("soda", [*GRID, f"widths={widths}", f"train.trainer=simulated: {law}"]), tmp_path
    )
    runs = write_runs(directory)
    assert runs["simulated"].tolist() == [True] * 18
    fit = fit_isoflop(directory, bootstrap=0)
    assert fit.lines["params"].slope == pytest.approx(SURFACES[law].a, abs=0.03)
    assert fit.diagnostics[0]["code"] == "simulated"
    assert "All losses are simulated (train.trainer): drawn from a law" in " ".join(
        fit.summary().split()
    )
    write_fit(tmp_path, [fit])
    (note,) = load_fit(tmp_path).notes
    assert note.startswith(
        f"{tmp_path / 'fit.json'}: All losses are simulated (train.trainer): drawn from a law"
    )


def test_a_log_is_that_of_a_run_that_was_trained(tmp_path: Path) -> None:
    study = tiny_plan(tmp_path, SODA)
    directory = simulate(study, tmp_path)
    spec, run = study.runs[0], find_run(tmp_path, study)
    log = run.log()
    assert log["step"].is_monotonic_increasing
    np.testing.assert_array_equal(log["tokens"], log["step"] * spec.batch_size * 32)
    np.testing.assert_allclose(
        log["train_flops"] / spec.train_flops, log["step"] / spec.steps, rtol=1e-12
    )
    assert set(log["lr"]) == {spec.lr}
    heldout, train = log.query("split == 'heldout'"), log.query("split == 'train'")
    assert heldout["step"].tolist() == [36, 71]
    assert set(train["step"]) >= {1, 2, 3, 71}
    assert train["loss"].is_monotonic_decreasing
    table = read_runs(directory)
    assert table["loss"][0] == heldout["loss"].iloc[-1]
    assert table["gpu_hours"].tolist() == [0.0] * 3
    assert run.state()["step"] == run.state()["steps"] == 71


def test_a_run_is_drawn_alike_again_and_its_seeds_differ_by_the_noise(tmp_path: Path) -> None:
    study = tiny_plan(
        tmp_path, SODA, "widths=[12]", f"seeds={list(range(20))}", "train.log_points=2"
    )
    directory = simulate(study, tmp_path)
    run, other = find_run(tmp_path, study), find_run(tmp_path / "again", study)
    make_directory(study, tmp_path / "again")
    simulated_trainer.simulate(other, "soda")
    assert_frame_equal(run.log(), other.log(), check_exact=True)
    log = run.log()
    simulated_trainer.simulate(run, "soda")
    assert_frame_equal(run.log(), log, check_exact=True)
    losses = np.log(read_runs(directory)["loss"])
    law = np.log(SURFACES["soda"].loss(study.runs[0].params_total, study.runs[0].tokens))
    assert 0.5 < np.std(losses) / simulated_trainer.NOISE_SHARE < 1.5
    assert abs(np.mean(losses) - law) < simulated_trainer.NOISE_SHARE


def test_it_needs_no_data_and_no_torch(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    prepare_data(tiny_plan(tmp_path, SODA).sweep, root)
    command = [sys.executable, "-c", APART, str(write_sweep(tmp_path)), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "done done done\nset()\n"
    assert [path.name for path in root.iterdir()] == ["tiny"]
