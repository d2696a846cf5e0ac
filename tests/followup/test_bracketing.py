"""Profiles that do not bracket their optimum, and the runs that complete them."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.config import load_sweep
from isoflop.fitting.estimators.parabola import Profile, classify_optimum
from isoflop.followup.bracketing import ProfileSizes, find_repairs
from isoflop.followup.candidates import CandidatePoint, list_candidate_points

BUDGET = 1.8e19
POINTS = list_candidate_points(load_sweep("soda"))
BY_WIDTH = {point.width: point for point in POINTS if point.budget == BUDGET}


def profile(widths: list[int], optimum: float, best: int) -> ProfileSizes:
    """Return a profile of widths with its optimum at a real width and its best run at another."""
    x = [np.log(BY_WIDTH[width].params("total")) for width in widths]
    known = sorted(BY_WIDTH)
    at = np.interp(optimum, known, [np.log(BY_WIDTH[width].params("total")) for width in known])
    return ProfileSizes(
        BUDGET, np.array(x), float(at), float(np.log(BY_WIDTH[best].params("total")))
    )


def status(sizes: ProfileSizes, more: tuple[CandidatePoint, ...], best: float | None = None) -> str:
    """Return the status with more runs; the best run is nearest to the optimum by default."""
    x = np.sort(np.append(sizes.sizes, [np.log(point.params("total")) for point in more]))
    loss = 3.0 + 0.1 * (x - (sizes.optimum if best is None else best)) ** 2
    return classify_optimum(Profile(BUDGET, BUDGET, x, loss, np.ones(len(x)), -x), sizes.optimum)


@pytest.mark.parametrize(
    ("widths", "optimum", "best", "reason", "count"),
    [
        ([640, 768, 1152, 1536], 1000, 1152, "", 0),
        ([384, 512, 640, 768], 1100, 768, "lies above all sizes run", 2),
        ([1280, 1408, 1536, 1664], 1000, 1280, "lies below all sizes run", 2),
        ([640, 768, 896, 1152], 1000, 896, "only one size lies above the optimum", 1),
        ([896, 1152, 1280, 1536], 1000, 896, "only one size lies below the optimum", 1),
        ([896, 1152], 1000, 896, "only one size", 2),
        ([640, 768, 1152, 1536], 1000, 1536, "the largest model is the best so far", 1),
        ([640, 768, 1152, 1536], 1000, 640, "the smallest model is the best so far", 1),
    ],
)
def test_repairs_by_profile(
    widths: list[int], optimum: float, best: int, reason: str, count: int
) -> None:
    sizes = profile(widths, optimum, best)
    repairs = find_repairs([sizes], POINTS, "total")
    if not reason:
        assert not repairs
        return
    (repair,) = repairs
    assert reason in repair.reason
    assert len(repair.points) == count
    assert all(point.budget == BUDGET and point.width not in widths for point in repair.points)
    assert status(sizes, repair.points) == "interior"


def test_the_runs_are_near_the_optimum_but_not_too_near() -> None:
    sizes = profile([384, 512, 640, 768], 1100, 768)
    (repair,) = find_repairs([sizes], POINTS, "total")
    ratios = [point.params("total") / np.exp(sizes.optimum) for point in repair.points]
    assert ratios == pytest.approx([1.4, 2.0], rel=0.12)


def test_soda_needs_its_hand_set_points() -> None:
    """SODA's rules put the optimum of 3e20 beyond the largest size.

    The authors added runs at 2048 and 2304.
    """
    rules = list(range(384, 2049, 256))
    by_width = {point.width: point for point in POINTS if point.budget == 3e20}
    x = np.array([np.log(by_width[width].params("total")) for width in rules if width in by_width])
    (repair,) = find_repairs(
        [ProfileSizes(3e20, x, float(np.log(2.0e9)), float(x[-1]))], POINTS, "total"
    )
    assert min(point.width for point in repair.points) in (2304, 2432)
    assert len(repair.points) == 2


def test_a_side_without_points_is_reported() -> None:
    sizes = profile([384, 512, 640, 768], 1100, 768)
    (repair,) = find_repairs([sizes], [BY_WIDTH[width] for width in (384, 512, 640, 768)], "total")
    assert repair.points == ()
    assert "lies above all sizes run" in repair.reason


def test_a_single_run_is_no_profile() -> None:
    assert find_repairs([profile([768], 1000, 768)], POINTS, "total") == []
