"""Plans of a submission: the runs that a query chooses, and no change of any file."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_study import Study, make_study

from isoflop.errors import ConfigError
from isoflop.launching.queue.submission_plan import plan_submission


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return make_study(tmp_path, monkeypatch)


def test_telling_what_would_be_done_changes_nothing(study: Study) -> None:
    assert set(plan_submission(study.plan, study.profile).queued) == set(study.ids)
    assert not study.directory.exists()
    assert study.slurm.calls("sbatch") == []


@pytest.mark.parametrize(
    ("only", "widths"),
    [
        (None, {8, 12, 16}),
        ("width <= 12", {8, 12}),
        ("width == 8 and budget < 1e9", {8}),
        ("seed == 0", {8, 12, 16}),
    ],
)
def test_only_what_a_query_chooses_is_queued(
    study: Study, only: str | None, widths: set[int]
) -> None:
    queued = plan_submission(study.plan, study.profile, only).queued
    assert {run.width for run in study.plan.runs if run.run_id in queued} == widths


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ("width > 99", "selects none of the 3 runs"),
        ("with == 8", ""),
        ("colour == 8", "'colour' is not defined"),
        ("width ==", ""),
        ("@study", "a query has no @"),
        ("width", ""),
        ("seed", ""),
        ("1", ""),
        ("", ""),
    ],
)
def test_a_query_that_chooses_nothing_is_refused(study: Study, only: str, says: str) -> None:
    with pytest.raises(ConfigError, match="--only") as problem:
        plan_submission(study.plan, study.profile, only)
    assert says in str(problem.value)
