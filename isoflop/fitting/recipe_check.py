"""Is the recipe tuned alike for all sizes? Runs at half and double learning rate and batch tell, and what it does to a.

A recipe that is off for small models and right for large ones bends every profile towards large ones: the exponents are
then those of the recipe, not of the models. Runs of `recipe_check` (column `check`: `lr x 0.5`, `batch x 2`) place the
best learning rate and batch of a few sizes. What a size loses to it, its excess, is taken over size and budget, taken
off every loss, and the law fitted again.
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
from isoflop.frames import column, mask, records, rows
from isoflop.shapes import ParamCount

Floats = np.ndarray
Method = Literal["joint", "isoflop", "parametric"]
COLUMN = "check"
CLEAR = 2.0
"""Standard deviations by which a setting is off clearly."""

FITS: dict[str, Callable[[pd.DataFrame, ParamCount], Fit]] = {
    "joint": lambda runs, n: fit_joint(runs, n=n),
    "isoflop": lambda runs, n: fit_isoflop(runs, n=n, bootstrap=0),
    "parametric": lambda runs, n: fit_parametric(runs, n=n, bootstrap=0),
}


@dataclass(frozen=True, eq=False)
class RecipeCheck:
    """What a recipe costs, and what that does to the exponents.

    Attributes:
        points: a row for each size, budget and setting (`lr` or `batch`) that was checked: `budget, params, setting,
            best` (factor on the recipe's setting with the least loss), `excess` (how far the recipe's loss lies above
            that, in ln loss), `noise` (what the excess would be by noise alone), `clear` (whether the recipe is off by
            more than two standard deviations), `bounded` (whether the best lies within the factors run; else it is the
            better of them, and the excess a lower bound).
        recipe: the fit of the losses as they are.
        tuned: the fit of the losses less their excess, where that is clear.
    """

    points: pd.DataFrame
    recipe: Fit
    tuned: Fit

    @property
    def exponents(self) -> pd.DataFrame:
        """Rows a and b; columns recipe, tuned, difference (tuned less recipe), half (of the recipe's interval)."""
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
        """The result as text: the worst excess, and how the exponents move."""
        worst = max(records(self.points), key=lambda point: point["excess"])
        clear = int(np.count_nonzero(mask(self.points, "clear")))
        lines = [
            f"At {clear} of {len(self.points)} points the recipe costs more than noise explains.",
            f"The recipe costs up to {100 * worst['excess']:.2f} % of the loss ({worst['setting']} at "
            f"{worst['params']:.3g} parameters, {worst['budget']:.3g} FLOPs: best at {worst['best']:.2g} times it).",
        ]
        for name, row in self.exponents.to_dict("index").items():
            lines.append(
                f"{name}: {row['recipe']:.4f} +/- {row['half']:.4f} as run, {row['tuned']:.4f} if each size were tuned "
                f"({row['difference']:+.4f})."
            )
        open_ends = int(np.count_nonzero(~mask(self.points, "bounded")))
        if open_ends:
            lines.append(
                f"At {open_ends} of {len(self.points)} points the best lies beyond the factors run."
            )
        return "\n".join(lines)


def unchecked(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that follow the recipe: those that enter fits."""
    return rows(runs, _names(runs) == "") if COLUMN in runs.columns else runs


def _names(runs: pd.DataFrame) -> np.ndarray:
    return cast(pd.Series, runs[COLUMN]).fillna("").to_numpy(dtype=str)


def check_recipe(
    runs: pd.DataFrame, *, method: Method = "joint", n: ParamCount = "total", loss: str = "loss"
) -> RecipeCheck:
    """How far each checked size is from its tuned loss, and the exponents if all were tuned.

    For each size, ln loss at half, one and double the setting is a parabola in ln of the factor (that of the batches
    as they were, where the runs have `batch_size`); its vertex is the tuned loss. The excess is linear in ln N between
    the sizes checked and in ln C between budgets, constant beyond them; those of learning rate and batch add up (the
    recipe scales its learning rate with the batch). One that is not clear counts as none.

    Args:
        runs: a table as `read_runs` has it, with the column `check`; of a configuration's seeds the mean is taken.
        method: which fit; the parametric one also takes losses in no budgets.
        n: which parameter count.
        loss: column of the loss.

    Raises:
        FitError: no checks whose three losses are known, or runs that can't be fitted.
    """
    counts = "params" if "params" in runs.columns and n == "total" else f"params_{n}"
    if missing := [name for name in (COLUMN, "budget", counts, loss) if name not in runs.columns]:
        raise FitError(
            f"the runs have no column {missing[0]!r}: a recipe is checked with recipe_check in the sweep"
        )
    own = unchecked(runs)
    recipe = FITS[method](own.assign(loss=own[loss]), n)
    points = pd.DataFrame(_points(runs, counts, loss, recipe.noise.sd))
    if not len(points):
        raise FitError(
            "no size has a done run at half, one and double of a setting: nothing can be checked"
        )
    excess = np.zeros(len(own))
    for _, several in points.groupby("setting"):
        excess += _interpolated(several, column(own, "budget"), column(own, counts))
    return RecipeCheck(
        points, recipe, FITS[method](own.assign(loss=own[loss] * np.exp(-excess)), n)
    )


def _points(runs: pd.DataFrame, counts: str, loss: str, noise: float) -> list[dict[str, object]]:
    """Rows of `RecipeCheck.points`."""
    known = runs[loss].notna() & (runs["state"] == "done" if "state" in runs.columns else True)
    done = rows(runs, known.to_numpy(dtype=bool))
    batch = np.log(column(done, "batch_size")) if "batch_size" in done.columns else None
    cells = zip(column(done, "budget"), column(done, counts), _names(done), strict=True)
    places: dict[tuple[float, float, str], list[int]] = {}
    for i, (budget, size, check) in enumerate(cells):
        places.setdefault((float(budget), float(size), check), []).append(i)
    ln_loss, found = np.log(column(done, loss)), []
    for budget, size in sorted({(budget, size) for budget, size, check in places if check}):
        for setting in ("lr", "batch"):
            three = [
                places.get((budget, size, check), [])
                for check in (f"{setting} x 0.5", "", f"{setting} x 2")
            ]
            if not all(three):
                continue
            steps = np.log([0.5, 1.0, 2.0])
            if setting == "batch" and batch is not None:
                steps = np.array([batch[several].mean() for several in three])
                steps = steps - steps[1]
            means = np.array([ln_loss[several].mean() for several in three])
            place = {"budget": budget, "params": size, "setting": setting}
            found.append(place | _vertex(steps, means, noise / np.sqrt(list(map(len, three)))))
    return found


def _vertex(x: Floats, y: Floats, noise: Floats) -> dict[str, object]:
    """The parabola through ln loss y at ln factors x (0 in the middle); the noise of each loss is a standard deviation.

    By noise alone the excess would be the variance of the slope over twice the curvature.
    """
    to_slope, to_bend = np.linalg.inv(np.stack([np.ones(3), x, 0.5 * x**2], axis=1))[1:]
    slope, bend = float(to_slope @ y), float(to_bend @ y)
    at = -slope / bend if bend > 0.0 else np.inf
    if x[0] <= at <= x[2]:
        by_noise = float(np.sum((to_slope * noise) ** 2)) / (2.0 * bend)
        excess = slope**2 / (2.0 * bend)
        clear = excess > CLEAR**2 * by_noise
        return {
            "best": float(np.exp(at)),
            "excess": excess,
            "noise": by_noise,
            "clear": clear,
            "bounded": True,
        }
    best = int(np.argmin(y))
    by_noise = float(np.hypot(noise[best], noise[1])) if best != 1 else 0.0
    excess = float(y[1] - y[best])
    clear = excess > CLEAR * by_noise
    return {
        "best": float(np.exp(x[best])),
        "excess": excess,
        "noise": by_noise,
        "clear": clear,
        "bounded": False,
    }


def _interpolated(points: pd.DataFrame, budget: Floats, params: Floats) -> Floats:
    """The excess of one setting at places, (K,), from the points checked."""
    levels = np.unique(column(points, "budget"))
    curves = []
    for level in levels:
        here = points.loc[points["budget"] == level].sort_values("params")
        certain = column(here, "excess") * mask(here, "clear")
        curves.append(np.interp(np.log(params), np.log(column(here, "params")), certain))
    stack, at = np.array(curves), np.interp(np.log(budget), np.log(levels), np.arange(len(levels)))
    low = np.minimum(at.astype(np.int64), max(len(levels) - 2, 0))
    high, rows = np.minimum(low + 1, len(levels) - 1), np.arange(len(budget))
    return stack[low, rows] + (at - low) * (stack[high, rows] - stack[low, rows])
