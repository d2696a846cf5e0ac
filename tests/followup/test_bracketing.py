"""Which profiles need runs to place their optimum, and which runs those are."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.config import load_sweep
from isoflop.fitting.estimators.parabola import Profile, status_at
from isoflop.followup.bracketing import ProfileSizes, repairs
from isoflop.followup.candidates import Place, places_of

BUDGET = 1.8e19
PLACES = places_of(load_sweep("soda"))
HERE = {place.width: place for place in PLACES if place.budget == BUDGET}


def profile(widths: list[int], optimum: float, best: int) -> ProfileSizes:
    """A profile of some widths with the optimum at a (real) width, and the best run at another."""
    x = [np.log(HERE[width].params("total")) for width in widths]
    known = sorted(HERE)
    at = np.interp(optimum, known, [np.log(HERE[width].params("total")) for width in known])
    return ProfileSizes(BUDGET, np.array(x), float(at), float(np.log(HERE[best].params("total"))))


def status(sizes: ProfileSizes, more: tuple[Place, ...], best: float | None = None) -> str:
    """The status once the runs are done; the best run is the one nearest to the optimum unless it is given."""
    x = np.sort(np.append(sizes.sizes, [np.log(place.params("total")) for place in more]))
    loss = 3.0 + 0.1 * (x - (sizes.optimum if best is None else best)) ** 2
    return status_at(Profile(BUDGET, BUDGET, x, loss, np.ones(len(x)), -x), sizes.optimum)


@pytest.mark.parametrize(
    ("widths", "optimum", "best", "reason", "count"),
    [
        ([640, 768, 1152, 1536], 1000, 1152, "", 0),
        ([384, 512, 640, 768], 1100, 768, "lies above all sizes run", 2),
        ([1280, 1408, 1536, 1664], 1000, 1280, "lies below all sizes run", 2),
        ([640, 768, 896, 1152], 1000, 896, "one size alone lies above the optimum", 1),
        ([896, 1152, 1280, 1536], 1000, 896, "one size alone lies below the optimum", 1),
        ([896, 1152], 1000, 896, "one size alone", 2),
        ([640, 768, 1152, 1536], 1000, 1536, "the largest model is the best so far", 1),
        ([640, 768, 1152, 1536], 1000, 640, "the smallest model is the best so far", 1),
    ],
)
def test_what_is_asked_for(
    widths: list[int], optimum: float, best: int, reason: str, count: int
) -> None:
    sizes = profile(widths, optimum, best)
    found = repairs([sizes], PLACES, "total")
    if not reason:
        assert not found
        return
    (repair,) = found
    assert reason in repair.reason
    assert len(repair.places) == count
    assert all(place.budget == BUDGET and place.width not in widths for place in repair.places)
    assert status(sizes, repair.places) == "interior"


def test_the_runs_are_near_the_optimum_but_not_too_near() -> None:
    sizes = profile([384, 512, 640, 768], 1100, 768)
    (repair,) = repairs([sizes], PLACES, "total")
    ratios = [place.params("total") / np.exp(sizes.optimum) for place in repair.places]
    assert ratios == pytest.approx([1.4, 2.0], rel=0.12)


def test_soda_itself_needs_its_hand_set_points() -> None:
    """SODA's rules leave 3e20 with its optimum beyond the largest size; the authors set runs at 2048 and 2304."""
    rules = list(range(384, 2049, 256))
    here = {place.width: place for place in PLACES if place.budget == 3e20}
    x = np.array([np.log(here[width].params("total")) for width in rules if width in here])
    (repair,) = repairs(
        [ProfileSizes(3e20, x, float(np.log(2.0e9)), float(x[-1]))], PLACES, "total"
    )
    assert min(place.width for place in repair.places) in (2304, 2432)
    assert len(repair.places) == 2


def test_a_side_without_places_is_told() -> None:
    sizes = profile([384, 512, 640, 768], 1100, 768)
    (repair,) = repairs([sizes], [HERE[width] for width in (384, 512, 640, 768)], "total")
    assert repair.places == ()
    assert "lies above all sizes run" in repair.reason


def test_a_lone_run_is_no_profile() -> None:
    assert repairs([profile([768], 1000, 768)], PLACES, "total") == []
