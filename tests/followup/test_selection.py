"""The search: gains, prices, caps and the rules that leave room for a wrong law."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.special import stdtrit
from support.followup_studies import NOISE, every_second

from isoflop.fitting.estimators.fisher import Design
from isoflop.followup.candidates import list_candidate_points
from isoflop.followup.selection import Caps, Option, Pick, Search
from isoflop.laws import SURFACES
from isoflop.planning.plan import plan

SODA = SURFACES["soda"]
STUDY = plan(every_second(3e19))
POINTS = list_candidate_points(STUDY.sweep)
NO_CAP = 1e30


def make_design(pairs: list[tuple[int, int]]) -> Design:
    params, tokens = np.array(pairs, dtype=np.float64).T
    return Design.from_counts(SODA, params, tokens, np.ones(len(pairs)), NOISE)


def make_options(design: Design, seeds: int = 1) -> list[Option]:
    known = Counter((run.budget, run.width) for run in STUDY.runs)
    options = []
    for point in POINTS:
        pair = np.array([[point.params("total")], [point.tokens]], dtype=np.float64)
        offset = float(np.log(pair[0, 0] / SODA.optimum(point.budget)[0]))
        if abs(offset) < 1.8:
            options.append(Option(point, design.rows_at(*pair)[0], offset, known[point.key], seeds))
    return options


def search(caps: Caps, seeds: int = 1, loss: bool = False) -> Search:
    design = make_design([(run.params_total, run.tokens) for run in STUDY.runs])
    aim = design.loss(1.3e22) if loss else design.exponent()
    return Search(
        make_options(design, seeds), design.rows.T @ design.rows, len(STUDY.runs), aim, caps, 0.95
    )


def runs_at(picks: list[Pick]) -> Counter[tuple[float, int]]:
    counts = Counter((run.budget, run.width) for run in STUDY.runs)
    for pick in picks:
        counts[pick.point.key] += pick.runs
    return counts


@pytest.mark.parametrize("loss", [False, True])
def test_the_interval_is_that_of_the_whole_design(loss: bool) -> None:
    finished = search(Caps(3e20, 20), loss=loss)
    finished.add_best()
    points, counts = {point.key: point for point in POINTS}, runs_at(finished.picks)
    params = np.array([points[key].params("total") for key in counts], dtype=np.float64)
    tokens = np.array([points[key].tokens for key in counts], dtype=np.float64)
    whole = Design.from_counts(
        SODA, params, tokens, np.array(list(counts.values()), dtype=np.float64), NOISE
    )
    aim = whole.loss(1.3e22) if loss else whole.exponent()
    assert finished.picks[-1].half_width == pytest.approx(
        whole.half_width(aim, 0.95), rel=1e-3
    )  # but for the vague prior
    halves = [finished.picks[0].previous_half_width, *(pick.half_width for pick in finished.picks)]
    assert halves == sorted(halves, reverse=True)
    assert [pick.previous_half_width for pick in finished.picks] == halves[:-1]


@pytest.mark.parametrize("caps", [Caps(1e20, 100), Caps(NO_CAP, 7), Caps(5e20, 24), Caps(4e18, 24)])
def test_caps_hold(caps: Caps) -> None:
    finished = search(caps)
    finished.add_best()
    assert sum(pick.train_flops for pick in finished.picks) == pytest.approx(finished.spent)
    assert finished.spent <= caps.flops
    assert sum(pick.runs for pick in finished.picks) == finished.runs <= caps.runs
    assert finished.picks


def test_the_rules() -> None:
    finished = search(Caps(2e21, 48))
    finished.add_best()
    assert max(runs_at(finished.picks).values()) <= 3
    of_budget = Counter(pick.point.budget for pick in finished.picks)
    assert max(of_budget.values()) <= 16
    opened = {pick.point.budget for pick in finished.picks} - {run.budget for run in STUDY.runs}
    assert opened
    for budget in opened:
        first = [pick for pick in finished.picks if pick.point.budget == budget][:4]
        assert {pick.kind for pick in first} == {"budget"}
        offsets = np.array([pick.offset for pick in first])
        assert np.count_nonzero(offsets < 0) == np.count_nonzero(offsets > 0) == 2
        assert max(offsets[offsets < 0]) >= -np.log(2.0)
        assert min(offsets[offsets > 0]) <= np.log(2.0)
        assert np.diff(np.sort(offsets)).min() >= np.log(1.15)
    assert all(
        pick.kind != "repeat" or runs_at(finished.picks)[pick.point.key] > 1
        for pick in finished.picks
    )


def test_it_stops_at_the_goal() -> None:
    first = search(Caps(2e21, 48)).half_width
    finished = search(Caps(2e21, 48, goal_half_width=0.7 * first))
    finished.add_best()
    assert finished.picks[-1].half_width <= 0.7 * first < finished.picks[-1].previous_half_width


def test_it_is_better_than_the_same_compute_spread_evenly() -> None:
    finished = search(Caps(3e20, 100))
    finished.add_best()
    rng, halves = np.random.default_rng(0), []
    for _ in range(20):
        other, indices = search(Caps(3e20, 100)), []
        for i in rng.permutation(len(other.options)):
            if other.options[i].point.budget <= 3e19 and other._allowed((*indices, i)):
                indices.append(i)
        other._pick(tuple(indices), "size", "")
        halves.append(other.half_width)
    assert finished.half_width < 0.85 * min(halves)


def test_a_first_pick_makes_a_run_for_each_seed_of_the_sweep() -> None:
    finished = search(Caps(3e20, 24), seeds=2)
    finished.add_best()
    assert {pick.runs for pick in finished.picks if pick.kind in ("size", "budget")} == {2}
    assert {pick.runs for pick in finished.picks if pick.kind == "repeat"} <= {1}


def test_t_quantiles_count_configurations() -> None:
    finished = search(Caps(3e20, 24))
    variance = (
        finished.quantity.gradient
        @ np.linalg.inv(finished.information)
        @ finished.quantity.gradient
    )
    assert finished.half_width == pytest.approx(
        stdtrit(len(STUDY.runs) - 5, 0.975) * np.sqrt(variance)
    )
    finished._pick((finished.index[3e18, 256],), "repeat", "")
    variance = (
        finished.quantity.gradient
        @ np.linalg.inv(finished.information)
        @ finished.quantity.gradient
    )
    assert finished.half_width == pytest.approx(
        stdtrit(len(STUDY.runs) - 5, 0.975) * np.sqrt(variance)
    )
