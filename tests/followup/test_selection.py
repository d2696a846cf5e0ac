"""The search: what it is worth, what it costs, and the rules that keep a wrong law in sight."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.special import stdtrit
from support.followup_studies import NOISE, every_second

from isoflop.fitting.estimators.fisher import Design
from isoflop.followup.candidates import places_of
from isoflop.followup.selection import Caps, Option, Pick, Search
from isoflop.laws import SURFACES
from isoflop.planning.plan import plan

SODA = SURFACES["soda"]
STUDY = plan(every_second(3e19))
PLACES = places_of(STUDY.sweep)
NO_CAP = 1e30


def design_of(pairs: list[tuple[int, int]]) -> Design:
    params, tokens = np.array(pairs, dtype=np.float64).T
    return Design.of(SODA, params, tokens, np.ones(len(pairs)), NOISE)


def options(design: Design, seeds: int = 1) -> list[Option]:
    known = Counter((run.budget, run.width) for run in STUDY.runs)
    found = []
    for place in PLACES:
        pair = np.array([[place.params("total")], [place.tokens]], dtype=np.float64)
        offset = float(np.log(pair[0, 0] / SODA.optimum(place.budget)[0]))
        if abs(offset) < 1.8:
            found.append(Option(place, design.rows_at(*pair)[0], offset, known[place.key], seeds))
    return found


def search(caps: Caps, seeds: int = 1, loss: bool = False) -> Search:
    design = design_of([(run.params_total, run.tokens) for run in STUDY.runs])
    aim = design.loss(1.3e22) if loss else design.exponent()
    return Search(
        options(design, seeds), design.rows.T @ design.rows, len(STUDY.runs), aim, caps, 0.95
    )


def runs_at(picks: list[Pick]) -> Counter[tuple[float, int]]:
    counts = Counter((run.budget, run.width) for run in STUDY.runs)
    for pick in picks:
        counts[pick.place.key] += pick.seeds
    return counts


@pytest.mark.parametrize("loss", [False, True])
def test_the_interval_told_is_that_of_the_whole_design(loss: bool) -> None:
    found = search(Caps(3e20, 20), loss=loss)
    found.spend()
    places, counts = {place.key: place for place in PLACES}, runs_at(found.picks)
    params = np.array([places[key].params("total") for key in counts], dtype=np.float64)
    tokens = np.array([places[key].tokens for key in counts], dtype=np.float64)
    whole = Design.of(
        SODA, params, tokens, np.array(list(counts.values()), dtype=np.float64), NOISE
    )
    aim = whole.loss(1.3e22) if loss else whole.exponent()
    assert found.picks[-1].half == pytest.approx(
        whole.half_width(aim, 0.95), rel=1e-3
    )  # but for the vague prior
    halves = [found.picks[0].before, *(pick.half for pick in found.picks)]
    assert halves == sorted(halves, reverse=True)
    assert [pick.before for pick in found.picks] == halves[:-1]


@pytest.mark.parametrize("caps", [Caps(1e20, 100), Caps(NO_CAP, 7), Caps(5e20, 24), Caps(4e18, 24)])
def test_caps_hold(caps: Caps) -> None:
    found = search(caps)
    found.spend()
    assert sum(pick.train_flops for pick in found.picks) == pytest.approx(found.spent)
    assert found.spent <= caps.flops
    assert sum(pick.seeds for pick in found.picks) == found.runs <= caps.runs
    assert found.picks


def test_the_rules() -> None:
    found = search(Caps(2e21, 48))
    found.spend()
    assert max(runs_at(found.picks).values()) <= 3
    of_budget = Counter(pick.place.budget for pick in found.picks)
    assert max(of_budget.values()) <= 16
    opened = {pick.place.budget for pick in found.picks} - {run.budget for run in STUDY.runs}
    assert opened
    for budget in opened:
        first = [pick for pick in found.picks if pick.place.budget == budget][:4]
        assert {pick.kind for pick in first} == {"budget"}
        offsets = np.array([pick.offset for pick in first])
        assert np.count_nonzero(offsets < 0) == np.count_nonzero(offsets > 0) == 2
        assert max(offsets[offsets < 0]) >= -np.log(2.0)
        assert min(offsets[offsets > 0]) <= np.log(2.0)
        assert np.diff(np.sort(offsets)).min() >= np.log(1.15)
    assert all(
        pick.kind != "repeat" or runs_at(found.picks)[pick.place.key] > 1 for pick in found.picks
    )


def test_it_stops_where_it_is_enough() -> None:
    first = search(Caps(2e21, 48)).half
    found = search(Caps(2e21, 48, enough=0.7 * first))
    found.spend()
    assert found.picks[-1].half <= 0.7 * first < found.picks[-1].before


def test_it_is_better_than_the_same_compute_spread_evenly() -> None:
    found = search(Caps(3e20, 100))
    found.spend()
    rng, halves = np.random.default_rng(0), []
    for _ in range(20):
        other, left = search(Caps(3e20, 100)), []
        for i in rng.permutation(len(other.options)):
            if other.options[i].place.budget <= 3e19 and other._allowed((*left, i)):
                left.append(i)
        other._take(tuple(left), "size", "")
        halves.append(other.half)
    assert found.half < 0.85 * min(halves)


def test_a_first_visit_makes_a_run_for_each_seed_of_the_sweep() -> None:
    found = search(Caps(3e20, 24), seeds=2)
    found.spend()
    assert {pick.seeds for pick in found.picks if pick.kind in ("size", "budget")} == {2}
    assert {pick.seeds for pick in found.picks if pick.kind == "repeat"} <= {1}


def test_t_quantiles_count_configurations() -> None:
    found = search(Caps(3e20, 24))
    variance = found.aim.gradient @ np.linalg.inv(found.information) @ found.aim.gradient
    assert found.half == pytest.approx(stdtrit(len(STUDY.runs) - 5, 0.975) * np.sqrt(variance))
    again = found.index[3e18, 256]
    found._take((again,), "repeat", "")
    variance = found.aim.gradient @ np.linalg.inv(found.information) @ found.aim.gradient
    assert found.half == pytest.approx(stdtrit(len(STUDY.runs) - 5, 0.975) * np.sqrt(variance))
