"""Studies with simulated losses that need follow-up runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from isoflop.config import load_sweep
from isoflop.config.grid_schema import Point, WidthRule
from isoflop.config.schema import Sweep
from isoflop.laws import SURFACES, Surface
from isoflop.planning.plan import Plan, plan

SODA = SURFACES["soda"]
NOISE = 0.003


def at_points(points: Sequence[tuple[float, int]]) -> Sweep:
    """Return SODA's study at some budgets and widths only."""
    (budget, width), *rest = points
    extra = tuple(Point(budget=budget, width=width) for budget, width in rest)
    rule = WidthRule(values=(width,))
    return dataclasses.replace(load_sweep("soda"), budgets=(budget,), widths=(rule,), extra=extra)


def every_second(largest: float) -> Sweep:
    """Return SODA's study with every second run of its grid up to a budget."""
    runs = [run for run in plan("soda").runs if run.budget <= largest]
    return at_points([(run.budget, run.width) for run in runs[::2]])


def with_losses(
    study: Plan, law: Surface = SODA, noise: float = NOISE, seed: int = 0
) -> pd.DataFrame:
    """Return finished runs with losses by a law; a run has the same loss in every study."""
    frame = study.to_frame()
    params, tokens = (frame[name].to_numpy(dtype=np.float64) for name in ("params_total", "tokens"))
    scatter = [
        np.random.default_rng([seed, *run_id.encode()]).normal(0.0, noise)
        for run_id in frame["run_id"]
    ]
    return frame.assign(state="done", loss=law.loss(params, tokens) * np.exp(scatter))
