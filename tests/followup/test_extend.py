"""Extensions of a study: selected runs, and the extended sweep file."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from support.followup_studies import at_points, every_second, with_losses

from isoflop.config import load_sweep
from isoflop.config.grid_schema import Replicate
from isoflop.errors import ConfigError, FitError
from isoflop.fitting import fit_parametric
from isoflop.followup.extend import Extension, extend
from isoflop.followup.extended_sweep import sweep_text, write_sweep
from isoflop.planning.plan import Plan, plan

START = every_second(3e19)


@pytest.fixture(scope="module")
def extension() -> Extension:
    return extend(START, with_losses(plan(START)), max_flops=2e20, max_runs=12)


def run_ids(study: Plan) -> set[str]:
    return {run.run_id for run in study.runs}


def test_only_new_runs_are_added(extension: Extension) -> None:
    assert run_ids(extension.before) < run_ids(extension.after)
    assert (
        len(extension.added)
        == sum(pick.runs for pick in extension.picks)
        == len(extension.after.runs) - 20
    )
    assert extension.flops == sum(pick.train_flops for pick in extension.picks) <= 2e20
    assert len(extension.added) <= 12


def test_the_present_interval_is_the_fits(extension: Extension) -> None:
    fit = fit_parametric(with_losses(plan(START)), bootstrap=0)
    row = fit.conf_int().loc["a"]
    assert extension.half_width == pytest.approx((row["high"] - row["low"]) / 2)
    assert extension.expected_half_width < 0.8 * extension.half_width
    document = json.loads(json.dumps(extension.to_dict(), allow_nan=False))
    assert document["half_interval"]["expected"] == pytest.approx(extension.expected_half_width)
    assert [pick["width"] for pick in document["picks"]] == [
        pick.point.width for pick in extension.picks
    ]
    assert [run["run_id"] for run in document["runs"]] == [run.run_id for run in extension.added]


@pytest.mark.slow
def test_expected_intervals_come_true() -> None:
    """Fits of extended studies have the expected interval within the scatter of the noise."""
    ratios = []
    for seed in range(6):
        chosen = extend(START, with_losses(plan(START), seed=seed), max_flops=2e20, max_runs=12)
        row = fit_parametric(with_losses(chosen.after, seed=seed), bootstrap=0).conf_int().loc["a"]
        ratios.append((row["high"] - row["low"]) / 2 / chosen.expected_half_width)
    assert 0.75 < np.median(ratios) < 1.35


def test_for_the_loss_at_a_target() -> None:
    runs = with_losses(plan(START))
    chosen = extend(START, runs, purpose="loss", target=1.3e22, max_flops=2e20, max_runs=12)
    interval = chosen.fit.law_at(1.3e22, 0.95)["loss"]
    assert chosen.quantity.name == "loss"
    assert chosen.half_width == pytest.approx(interval.width / 2)
    other = extend(START, runs, max_flops=2e20, max_runs=12)
    assert {pick.point.key for pick in chosen.picks} != {pick.point.key for pick in other.picks}
    assert "the loss at 1.3e22 FLOPs" in chosen.headline()


def test_profiles_are_repaired_first() -> None:
    """SODA without its five hand-set points has no runs above the optima of its larger budgets."""
    rules = dataclasses.replace(load_sweep("soda"), extra=())
    chosen = extend(rules, with_losses(plan(rules)), max_flops=5e21)
    repairs = [pick for pick in chosen.picks if pick.kind == "repair"]
    assert list(chosen.picks[: len(repairs)]) == repairs
    assert 3e20 in {pick.point.budget for pick in repairs}
    assert all(pick.point.width > 1920 for pick in repairs if pick.point.budget == 3e20)
    extended_twice = extend(chosen.after.sweep, with_losses(chosen.after), max_flops=5e21)
    assert not [pick for pick in extended_twice.picks if pick.kind == "repair"]


def test_repairs_beyond_the_caps_are_reported() -> None:
    rules = dataclasses.replace(load_sweep("soda"), extra=())
    chosen = extend(rules, with_losses(plan(rules)), max_flops=1e20)
    assert any("3e20: " in repair.reason for repair in chosen.unrepaired)
    document = chosen.to_dict()
    assert document["not_mended"] == document["not_repaired"]
    assert [entry["budget"] for entry in document["not_repaired"]] == [
        repair.budget for repair in chosen.unrepaired
    ]


def test_unfinished_runs_count_and_diverged_points_are_excluded() -> None:
    runs = with_losses(plan(START))
    alone = extend(START, runs, max_flops=1e20, max_runs=6)
    first = alone.picks[-1].point.key
    coming = extend(
        alone.after.sweep,
        _pending(with_losses(alone.after), run_ids(alone.before)),
        max_flops=1e20,
        max_runs=6,
    )
    assert coming.half_width == pytest.approx(alone.half_width)
    assert coming.picks[0].previous_half_width == pytest.approx(alone.picks[-1].half_width)
    assert not coming.added or run_ids(coming.after) > run_ids(alone.after)
    states = _pending(with_losses(alone.after), run_ids(alone.before))
    mask = (states["budget"] == first[0]) & (states["width"] == first[1])
    states.loc[mask, ["state", "loss"]] = ["diverged", np.nan]
    avoided = extend(alone.after.sweep, states, max_flops=1e20, max_runs=6)
    assert first not in {pick.point.key for pick in avoided.picks}


def _pending(runs, done):
    later = ~runs["run_id"].isin(done)
    runs.loc[later, ["state", "loss"]] = ["pending", np.nan]
    return runs


def test_enough_is_enough() -> None:
    runs = with_losses(plan(START))
    chosen = extend(START, runs, enough=1.0)
    assert not [pick for pick in chosen.picks if pick.kind != "repair"]
    longer = extend(START, runs, max_flops=5e20, max_runs=60, enough=0.04)
    assert longer.expected_half_width <= 0.04 < longer.picks[-1].previous_half_width * longer.scale


def test_uneven_noise_is_allowed_for() -> None:
    study = plan("soda")
    even, uneven = with_losses(study), with_losses(study)
    clean = with_losses(study, noise=0.0)["loss"]
    grows = np.log(study.to_frame()["budget"].to_numpy() / 3e18) / np.log(100.0)
    uneven["loss"] = clean * (even["loss"] / clean) ** (0.1 + 9.0 * grows**2)
    assert extend(study.sweep, even, max_flops=1e20, max_runs=1).scale == 1.0
    chosen = extend(study.sweep, uneven, max_flops=1e20, max_runs=1)
    assert chosen.scale != 1.0
    previous = chosen.picks[-1].previous_half_width * chosen.scale
    assert previous == pytest.approx(chosen.half_width, rel=5e-3)


def test_runs_that_cannot_be_extended() -> None:
    runs = with_losses(plan(START))
    with pytest.raises(
        ConfigError, match="no column 'width': only a sweep's own runs can be extended"
    ):
        extend(START, runs.drop(columns="width"))
    few = at_points([(3e18, width) for width in (256, 512, 768, 896, 1024)])
    with pytest.raises(FitError, match="5 configurations can't determine a law of 5 parameters"):
        extend(few, with_losses(plan(few)))


# The sweep file


def test_the_file_is_the_extended_sweep_with_reasons(extension: Extension, tmp_path) -> None:
    file = write_sweep(extension, tmp_path / "more.yaml")
    assert load_sweep(file) == extension.after.sweep
    assert run_ids(plan(file)) == run_ids(extension.after)
    lines = file.read_text().splitlines()
    assert lines[0] == f"# {extension.headline()}"
    commented = [line for line in lines[1:] if "#" in line]
    assert len(commented) == len(extension.entries)
    for _, pick in extension.entries:
        assert any(
            extension.comment(pick) in line and f"width: {pick.point.width}" in line
            for line in commented
        )


def test_old_points_and_replicates_stay(tmp_path) -> None:
    replicate = Replicate(budget=3e18, width=256, seeds=(5,))
    sweep = dataclasses.replace(START, replicates=(replicate,), seeds=(0, 3))
    chosen = extend(sweep, with_losses(plan(sweep)), max_flops=2e20, max_runs=12)
    after = load_sweep(write_sweep(chosen, tmp_path / "more.yaml"))
    assert after.extra[: len(sweep.extra)] == sweep.extra
    assert after.replicates[0] == replicate
    assert run_ids(plan(after)) > run_ids(plan(sweep))
    assert len(run_ids(plan(after))) == len(run_ids(plan(sweep))) + sum(
        pick.runs for pick in chosen.picks
    )


def test_an_existing_file_stays(extension: Extension, tmp_path) -> None:
    (tmp_path / "more.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="exists already; replace it with --force"):
        write_sweep(extension, tmp_path / "more.yaml")
    assert (tmp_path / "more.yaml").read_text() == "mine"
    write_sweep(extension, tmp_path / "more.yaml", force=True)
    assert (tmp_path / "more.yaml").read_text() == sweep_text(extension)
    with pytest.raises(ConfigError, match="can't be written"):
        write_sweep(extension, tmp_path / "more.yaml" / "no.yaml")
