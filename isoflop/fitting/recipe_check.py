"""Check of a recipe: runs at half and double learning rate and batch, and the exponents of a tuned
recipe.

A recipe that is badly tuned for small models and well for large ones moves the optimum of every
profile towards large ones: the exponents are then those of the recipe, not of the models. Runs of
`recipe_check` (column `check`: `lr x 0.5`, `batch x 2`) locate the best learning rate and batch of
a few sizes. The excess of a size is the loss at the recipe's setting less that at the best. It is
interpolated over size and budget and subtracted from every loss, and the law is fitted again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import pandas as pd

from isoflop.errors import FitError
from isoflop.fitting.methods.isoflop import fit_isoflop
from isoflop.fitting.methods.joint import fit_joint
from isoflop.fitting.methods.parametric import fit_parametric
from isoflop.fitting.results.base import Fit
from isoflop.frames import Floats, column, mask, records, rows
from isoflop.shapes import ParamCount
from isoflop.text import count_text, flops_text, percent_text

CheckMethod = Literal["joint", "isoflop", "parametric"]
CHECK_COLUMN = "check"
CLEAR_SDS = 2.0
"""Standard deviations beyond which the deviation of a setting from the best is clear."""

FITTERS: dict[str, Callable[[pd.DataFrame, ParamCount], Fit]] = {
    "joint": lambda runs, n: fit_joint(runs, n=n),
    "isoflop": lambda runs, n: fit_isoflop(runs, n=n, bootstrap=0),
    "parametric": lambda runs, n: fit_parametric(runs, n=n, bootstrap=0),
}


@dataclass(frozen=True, eq=False)
class RecipeCheck:
    """Excess loss of a recipe, and its effect on the exponents.

    Attributes:
        points: a row for each size, budget and setting (`lr` or `batch`) that was checked:
            `budget, params, setting, best` (factor on the recipe's setting with the least loss),
            `excess` (the recipe's loss above the least, in ln loss), `noise` (the excess by noise
            alone), `clear` (True if the recipe deviates by more than two standard deviations),
            `bounded` (True if the best lies within the factors run; else it is the better of them,
            and the excess a lower bound).
        recipe: the fit of the losses as they are.
        tuned: the fit of the losses less their excess, if that is clear.
    """

    points: pd.DataFrame
    recipe: Fit
    tuned: Fit

    @property
    def exponents(self) -> pd.DataFrame:
        """Rows a and b; columns recipe, tuned, difference (tuned less recipe), half (half width of
        the recipe's interval).
        """
        before, after = self.recipe.exponents, self.tuned.exponents
        return pd.DataFrame(
            {
                "recipe": before["value"],
                "tuned": after["value"],
                "difference": after["value"] - before["value"],
                "half": (before["high"] - before["low"]) / 2.0,
            }
        )

    def summary(self) -> str:
        """Return the result as text: the worst excess, and the change of the exponents."""
        worst = max(records(self.points), key=lambda point: point["excess"])
        clear = int(np.count_nonzero(mask(self.points, "clear")))
        lines = [
            f"At {clear} of {len(self.points)} points the recipe costs more than noise explains.",
            f"The recipe costs up to {percent_text(worst['excess'])} of the loss "
            f"({worst['setting']} at {count_text(worst['params'])} parameters, "
            f"{flops_text(worst['budget'], 3)} FLOPs: best at {worst['best']:.2g} times it).",
        ]
        for name, row in self.exponents.to_dict("index").items():
            lines.append(
                f"{name}: {row['recipe']:.4f} +/- {row['half']:.4f} as run, {row['tuned']:.4f} if "
                f"each size were tuned ({row['difference']:+.4f})."
            )
        open_ends = int(np.count_nonzero(~mask(self.points, "bounded")))
        if open_ends:
            lines.append(
                f"At {open_ends} of {len(self.points)} points the best lies beyond the factors run."
            )
        return "\n".join(lines)


def select_recipe_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that follow the recipe, without those that check it: the runs to fit."""
    return rows(runs, _check_names(runs) == "") if CHECK_COLUMN in runs.columns else runs


def _check_names(runs: pd.DataFrame) -> np.ndarray:
    return cast(pd.Series, runs[CHECK_COLUMN]).fillna("").to_numpy(dtype=str)


def check_recipe(
    runs: pd.DataFrame,
    *,
    method: CheckMethod = "joint",
    n: ParamCount = "total",
    loss: str = "loss",
) -> RecipeCheck:
    """Measure the excess loss of each checked size, and fit the exponents without it.

    For each size a parabola is laid through ln loss at half, one and double the setting, in ln of
    the factor (for the batch the ratio of actual batches, if the runs have `batch_size`). Its
    vertex is the tuned loss. The excess is linear in ln N between the checked sizes and in ln C
    between budgets, and constant beyond them. The excesses of learning rate and batch add up (the
    recipe scales its learning rate with the batch). An excess that is not clear counts as 0.

    Args:
        runs: a table as of `read_runs`, with the column `check`; seeds of a configuration are
            averaged.
        method: method of the fits; the parametric one also takes runs without budgets.
        n: parameter count that N stands for.
        loss: column of the loss.

    Raises:
        FitError: no check with three known losses, or runs that can't be fitted.
    """
    counts = "params" if "params" in runs.columns and n == "total" else f"params_{n}"
    if missing := [
        name for name in (CHECK_COLUMN, "budget", counts, loss) if name not in runs.columns
    ]:
        raise FitError(
            f"the runs have no column {missing[0]!r}: a recipe is checked with recipe_check in the "
            "sweep"
        )
    recipe_runs = select_recipe_runs(runs)
    recipe = FITTERS[method](recipe_runs.assign(loss=recipe_runs[loss]), n)
    points = pd.DataFrame(_check_points(runs, counts, loss, recipe.noise.sd))
    if not len(points):
        raise FitError(
            "no size has a done run at half, one and double of a setting: nothing can be checked"
        )
    excess = np.zeros(len(recipe_runs))
    for _, setting_points in points.groupby("setting"):
        excess += _interpolate_excess(
            setting_points, column(recipe_runs, "budget"), column(recipe_runs, counts)
        )
    tuned_runs = recipe_runs.assign(loss=recipe_runs[loss] * np.exp(-excess))
    return RecipeCheck(points, recipe, FITTERS[method](tuned_runs, n))


def _check_points(
    runs: pd.DataFrame, counts: str, loss: str, noise: float
) -> list[dict[str, object]]:
    """Return the rows of `RecipeCheck.points`."""
    known = runs[loss].notna() & (runs["state"] == "done" if "state" in runs.columns else True)
    done = rows(runs, known.to_numpy(dtype=bool))
    batch = np.log(column(done, "batch_size")) if "batch_size" in done.columns else None
    keys = zip(column(done, "budget"), column(done, counts), _check_names(done), strict=True)
    seeds: dict[tuple[float, float, str], list[int]] = {}  # rows of the seeds of a configuration
    for i, (budget, size, check) in enumerate(keys):
        seeds.setdefault((float(budget), float(size), check), []).append(i)
    ln_loss, points = np.log(column(done, loss)), []
    for budget, size in sorted({(budget, size) for budget, size, check in seeds if check}):
        for setting in ("lr", "batch"):
            three = [
                seeds.get((budget, size, check), [])
                for check in (f"{setting} x 0.5", "", f"{setting} x 2")
            ]
            if not all(three):
                continue
            factors = np.log([0.5, 1.0, 2.0])
            if setting == "batch" and batch is not None:
                factors = np.array([batch[members].mean() for members in three])
                factors = factors - factors[1]
            means = np.array([ln_loss[members].mean() for members in three])
            key = {"budget": budget, "params": size, "setting": setting}
            points.append(key | _vertex(factors, means, noise / np.sqrt(list(map(len, three)))))
    return points


def _vertex(x: Floats, y: Floats, noise: Floats) -> dict[str, object]:
    """Return the excess and the best factor by the parabola through ln loss y at ln factors x (0 in
    the middle), with noise as a standard deviation of each loss.

    By noise alone the excess is the variance of the slope over twice the curvature.
    """
    to_slope, to_bend = np.linalg.inv(np.stack([np.ones(3), x, 0.5 * x**2], axis=1))[1:]
    slope, bend = float(to_slope @ y), float(to_bend @ y)
    vertex = -slope / bend if bend > 0.0 else np.inf
    if x[0] <= vertex <= x[2]:
        noise_excess = float(np.sum((to_slope * noise) ** 2)) / (2.0 * bend)
        excess = slope**2 / (2.0 * bend)
        return {
            "best": float(np.exp(vertex)),
            "excess": excess,
            "noise": noise_excess,
            "clear": excess > CLEAR_SDS**2 * noise_excess,
            "bounded": True,
        }
    best = int(np.argmin(y))
    noise_excess = float(np.hypot(noise[best], noise[1])) if best != 1 else 0.0
    excess = float(y[1] - y[best])
    return {
        "best": float(np.exp(x[best])),
        "excess": excess,
        "noise": noise_excess,
        "clear": excess > CLEAR_SDS * noise_excess,
        "bounded": False,
    }


def _interpolate_excess(points: pd.DataFrame, budget: Floats, params: Floats) -> Floats:
    """Return the excess of one setting at budgets and sizes, (K,), from the points checked."""
    levels = np.unique(column(points, "budget"))
    curves = []
    for level in levels:
        checked = points.loc[points["budget"] == level].sort_values("params")
        excess = column(checked, "excess") * mask(checked, "clear")
        curves.append(np.interp(np.log(params), np.log(column(checked, "params")), excess))
    table = np.array(curves)
    position = np.interp(np.log(budget), np.log(levels), np.arange(len(levels)))
    low = np.minimum(position.astype(np.int64), max(len(levels) - 2, 0))
    high, index = np.minimum(low + 1, len(levels) - 1), np.arange(len(budget))
    return table[low, index] + (position - low) * (table[high, index] - table[low, index])
