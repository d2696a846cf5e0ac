"""Measure the compute that `isoflop extend` saves: simulate its whole loop, on true and wrong laws.

Every replicate starts from every second run of SODA's grid up to 3e19 FLOPs. It fits the parametric
law, extends the study by the choice of `isoflop.followup` under the fitted law, draws the losses of
the new runs and fits again, until the expected interval is as narrow as that of SODA's 64 runs.
Repairs place the optima by the fitted surface alone; the command uses the joint fit too. Nothing
else differs from the command.

    nice python analysis/extend/simulate.py     # results.json, figure.png; minutes on one core
    nice python analysis/extend/simulate.py --replicates 10 --output /tmp/quick
"""

from __future__ import annotations

import os

# before numpy is imported: small matrices gain nothing from threads
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from isoflop.config import load_sweep
from isoflop.config.grid_schema import Point, WidthRule
from isoflop.config.schema import Sweep
from isoflop.fitting.estimators.fisher import Design
from isoflop.fitting.estimators.newton import Observations
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.surface_estimate import Estimate, Sample, estimate_many
from isoflop.fitting.estimators.surface_optimum import optimum
from isoflop.fitting.methods.parametric import hold_out_surface
from isoflop.fitting.results.diagnostics import FINDING_ALPHA
from isoflop.followup.candidates import CandidatePoint, list_candidate_points
from isoflop.followup.extend import select_runs
from isoflop.followup.finished_study import FinishedStudy
from isoflop.followup.selection import Caps
from isoflop.frames import Floats
from isoflop.laws import SURFACES, Surface
from isoflop.planning.plan import plan

NOISE_SD, CONFIDENCE, TARGET_FLOPS = 0.003, 0.95, 1.3e22
MAX_START_BUDGET = 3e19
MAX_ROUND_COST, MAX_ROUND_RUNS = 1.0, 60
"""Limits of a round: its cost, relative to that of all rounds before, and its runs."""

MAX_ROUNDS = 12
GRID = tuple(CandidatePoint(run.budget, run.candidate) for run in plan("soda").runs)
GRID_FLOPS = float(sum(point.train_flops for point in GRID))
START = tuple(point for point in GRID if point.budget <= MAX_START_BUDGET)[::2]


# Truths


@dataclasses.dataclass(frozen=True)
class Truth:
    """True losses of a recipe's runs; the fit assumes a surface."""

    law: str
    wrong: str
    loss: Callable[[Floats, Floats], Floats]

    @property
    def surface(self) -> Surface:
        return SURFACES[self.law]

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return ln N* and ln L* at C = 6ND, by search."""
        x = np.log(self.surface.optimum(flops)[0]) + np.linspace(-1.5, 1.5, 6001)
        y = np.log(self.loss(np.exp(x), flops / 6.0 / np.exp(x)))
        best = int(np.argmin(y))
        return float(x[best]), float(y[best])

    @property
    def a(self) -> float:
        """Return the slope of ln N* over the grid's budgets."""
        low, high = 3e18, 3e20
        return (self.optimum(high)[0] - self.optimum(low)[0]) / float(np.log(high / low))


def truth(law: str, wrong: str) -> Truth:
    """Return a surface with a fault.

    * `none`: no fault.
    * `budgets`: the recipe gets worse with compute, by 0.3% of the loss a decade.
    * `sizes`: its learning rate is off for small models: 1% of the loss at 100M parameters, falling
      as 1 / N.
    * `form`: the terms are coupled, E + ((A/N^alpha)^(1/.85) + (B/D^beta)^(1/.85))^.85, with the
      same exponents and other losses.
    """
    s = SURFACES[law]
    losses: dict[str, Callable[[Floats, Floats], Floats]] = {
        "none": s.loss,
        "budgets": lambda n, d: s.loss(n, d) * (1.0 + 0.003 * np.log10(6.0 * n * d / 3e18)),
        "sizes": lambda n, d: s.loss(n, d) * (1.0 + 0.01 * 1e8 / n),
        "form": lambda n, d: (
            s.E + ((s.A * n**-s.alpha) ** (1 / 0.85) + (s.B * d**-s.beta) ** (1 / 0.85)) ** 0.85
        ),
    }
    return Truth(law, wrong, losses[wrong])


# Studies


class Runs:
    """Runs of one simulated study: its points with their losses."""

    def __init__(self, truth: Truth, rng: np.random.Generator) -> None:
        self.truth, self.rng = truth, rng
        self.losses: dict[CandidatePoint, list[float]] = {}

    def train(self, point: CandidatePoint, runs: int) -> None:
        """Draw the losses of `runs` runs at a point."""
        params, tokens = np.array(float(point.params("total"))), np.array(float(point.tokens))
        loss = float(self.truth.loss(params, tokens))
        noise = self.rng.normal(0.0, NOISE_SD, runs)
        self.losses.setdefault(point, []).extend(loss * np.exp(noise))

    @property
    def flops(self) -> float:
        return float(sum(point.train_flops * len(losses) for point, losses in self.losses.items()))

    @property
    def count(self) -> int:
        return sum(map(len, self.losses.values()))

    def sample(self) -> Sample:
        means = [np.mean(losses) for losses in self.losses.values()]
        return make_sample(list(self.losses), list(map(len, self.losses.values())), means)

    def between_seeds(self) -> tuple[float, int]:
        """Return the sum of squares of ln loss between seeds, and its degrees of freedom."""
        squares = sum(
            float(np.var(np.log(losses)) * len(losses)) for losses in self.losses.values()
        )
        return squares, self.count - len(self.losses)


def count_arrays(points: Sequence[CandidatePoint]) -> tuple[Floats, Floats]:
    """Return the parameters and tokens of points."""
    params = np.array([point.params("total") for point in points], float)
    return params, np.array([point.tokens for point in points], float)


def make_sample(candidates: Sequence[CandidatePoint], seeds: Any, losses: Any) -> Sample:
    """Return the sample of runs at some points; `seeds` is their number at each."""
    budget = np.array([point.budget for point in candidates])
    points = Observations.from_counts(*count_arrays(candidates), np.asarray(losses))
    return Sample(points, np.array(seeds, float), budget, budget, np.arange(len(candidates)))


def grid_design(law: Surface) -> Design:
    """Return the design of SODA's grid under a law."""
    return Design.from_counts(law, *count_arrays(GRID), np.ones(len(GRID)), NOISE_SD)


NAMES = ("a", "a_half", "loss", "loss_half", "loss_more")


def measures(sample: Sample, estimate: Estimate) -> Floats:
    """Return the rows of `NAMES`, each (M,).

    These are a, its half-interval, ln L* at the target, its half-interval, and the allowance of the
    roll-out beyond that.
    """
    alpha, beta = estimate.theta[:, 3], estimate.theta[:, 4]
    by_a = np.zeros((len(alpha), 5))
    by_a[:, 3], by_a[:, 4] = -beta / (alpha + beta) ** 2, alpha / (alpha + beta) ** 2
    values, gradients = optimum(sample.points, estimate.theta, TARGET_FLOPS)
    by_loss = gradients[:, 2]
    t = float(stdtrit(sample.dof, 0.5 + CONFIDENCE / 2.0))
    halves = [
        t * np.sqrt(np.einsum("mi,mij,mj->m", g, estimate.covariance, g)) for g in (by_a, by_loss)
    ]
    holdout = hold_out_surface(sample, estimate, None)
    allowance = np.full(len(alpha), np.nan)
    if holdout is not None:
        allowance = holdout.allowance("loss", TARGET_FLOPS)
    return np.stack([beta / (alpha + beta), halves[0], values[:, 2], halves[1], allowance])


def lack_of_fit(sample: Sample, estimate: Estimate, runs: Runs) -> float:
    """Return the p-value of a fit's F test for lack of fit."""
    residuals, (squares, dof) = sample.residuals(estimate.theta[0]), runs.between_seeds()
    sd = float(np.sqrt(residuals @ residuals / sample.dof))
    return Noise(sd, sample.dof, float(np.sqrt(squares / max(dof, 1))), dof).lack_of_fit


# The two ways to spend compute


def fit_grid(true: Truth, replicates: int, rng: np.random.Generator) -> Floats:
    """Return the `measures` of fits of the whole grid, all replicates as one batch."""
    design = grid_design(true.surface)
    params, tokens = (
        np.exp(design.points.x + design.points.x_mean),
        np.exp(design.points.y + design.points.y_mean),
    )
    noise = rng.normal(0.0, NOISE_SD, (replicates, len(GRID)))
    sample = make_sample(GRID, np.ones(len(GRID)), true.loss(params, tokens) * np.exp(noise))
    start = np.repeat(design.theta[None], replicates, axis=0)
    return measures(sample, estimate_many(sample, start, None))


def extend_until(
    true: Truth,
    goal: str,
    max_half_width: float,
    rng: np.random.Generator,
    find_points: Callable[[frozenset[float]], list[CandidatePoint]],
) -> list[dict[str, float]]:
    """Simulate the loop for one replicate.

    Returns:
        For each round its cost, runs and half-interval; the last one, narrow enough, also has the
        `measures` and the p-value `doubt` of the lack of fit.
    """
    runs, rounds = Runs(true, rng), []
    for point in START:
        runs.train(point, 1)
    sample = runs.sample()
    theta = Design(true.surface, sample.points, sample.seeds, NOISE_SD).theta[None]
    while True:
        estimate = estimate_many(sample, theta, None)
        budgets = frozenset(point.budget for point in runs.losses)
        done = {point.key: len(losses) for point, losses in runs.losses.items()}
        replicates = runs.between_seeds()
        study = FinishedStudy.from_estimate(
            sample, estimate, {}, done, find_points(budgets), replicates=replicates
        )
        target = study.design.exponent() if goal == "a" else study.design.loss(TARGET_FLOPS)
        half = study.design.half_width(target, CONFIDENCE)
        rounds.append({"flops": runs.flops / GRID_FLOPS, "runs": runs.count, "half": half})
        search = None
        if half > max_half_width and len(rounds) <= MAX_ROUNDS:
            caps = Caps(MAX_ROUND_COST * runs.flops, MAX_ROUND_RUNS, max_half_width)
            search, _ = select_runs(study, target, caps, None, CONFIDENCE)
        if search is None or not search.picks:
            last = dict(zip(NAMES, map(float, measures(sample, estimate)[:, 0]), strict=True))
            p_value = lack_of_fit(sample, estimate, runs)
            return [*rounds[:-1], rounds[-1] | last | {"doubt": p_value}]
        for pick in search.picks:
            runs.train(pick.point, pick.runs)
        new = runs.sample()
        sample, theta = new, sample.recentre(estimate.theta, new.points)


def point_finder() -> Callable[[frozenset[float]], list[CandidatePoint]]:
    """Return a function that lists the points for an extension of a study of some budgets.

    It solves each set of budgets once.
    """
    cache: dict[frozenset[float], list[CandidatePoint]] = {}
    soda, widths = load_sweep("soda"), tuple(sorted({point.width for point in START}))

    def find(budgets: frozenset[float]) -> list[CandidatePoint]:
        if budgets not in cache:
            extra = tuple(Point(budget=budget, width=widths[0]) for budget in budgets)
            sweep: Sweep = dataclasses.replace(
                soda, budgets=(3e18,), widths=(WidthRule(values=widths),), extra=extra
            )
            cache[budgets] = list_candidate_points(sweep)
        return cache[budgets]

    return find


# Results


def summary(values: Floats, true_a: float, true_loss: float) -> dict[str, Any]:
    """Return bias, spread and coverage of a and of ln loss at the target, with Monte Carlo errors.

    `values` are those of `measures`.
    """
    results = {}
    rows = dict(zip(NAMES, values, strict=True))
    for name, true in (("a", true_a), ("loss", true_loss)):
        half = rows[f"{name}_half"]
        error, count = rows[name] - true, len(half)
        coverage = float(np.mean(np.abs(error) <= half))
        results[name] = {
            "truth": true,
            "bias": float(error.mean()),
            "bias_mc": float(error.std(ddof=1) / np.sqrt(count)),
            "sd": float(error.std(ddof=1)),
            "half": float(np.median(half)),
            "coverage": coverage,
            "coverage_mc": float(np.sqrt(max(coverage * (1 - coverage), 0.25 / count) / count)),
        }
    widened = half + rows["loss_more"]
    results["loss"]["coverage_with_roll_out"] = float(np.mean(np.abs(error) <= widened))
    results["loss"]["half_with_roll_out"] = float(np.median(widened))
    return results


Paths = dict[str, list[list[dict[str, float]]]]


def study_scenario(
    law: str, wrong: str, goals: tuple[str, ...], replicates: int, seed: int
) -> tuple[dict[str, Any], Paths]:
    """Simulate the grid and the extensions under one truth; return results and rounds.

    The goals are the median half-intervals of fits of the grid under the true law.
    """
    true, find = truth(law, wrong), point_finder()
    true_loss = true.optimum(TARGET_FLOPS)[1]
    design = grid_design(true.surface)
    grid = fit_grid(true, 20 * replicates, np.random.default_rng([seed, 0]))
    right = fit_grid(truth(law, "none"), 2000, np.random.default_rng([seed, 2]))
    half_widths = {"a": float(np.median(right[1])), "loss": float(np.median(right[3]))}
    grid_summary = summary(grid, true.a, true_loss)
    result: dict[str, Any] = {
        "law": law,
        "wrong": wrong,
        "fisher_sd_a": design.sd(design.exponent()),
        "goals": half_widths,
        "grid": {"replicates": grid.shape[1], "runs": len(GRID), **grid_summary},
    }
    paths: Paths = {}
    for goal in goals:
        goal_width = half_widths[goal]
        paths[goal] = [
            extend_until(true, goal, goal_width, np.random.default_rng([seed, 1, k]), find)
            for k in range(replicates)
        ]
        last = [path[-1] for path in paths[goal]]
        flops = np.array([end["flops"] for end in last])
        values = np.array([[end[name] for end in last] for name in NAMES])
        result[f"extended_for_{goal}"] = {
            "replicates": replicates,
            "flops": {
                "mean": float(flops.mean()),
                "mc": float(flops.std(ddof=1) / np.sqrt(replicates)),
                "p10": float(np.quantile(flops, 0.1)),
                "median": float(np.quantile(flops, 0.5)),
                "p90": float(np.quantile(flops, 0.9)),
            },
            "runs": float(np.mean([end["runs"] for end in last])),
            "rounds": float(np.mean([len(path) - 1 for path in paths[goal]])),
            "reached": float(np.mean([end["half"] <= goal_width for end in last])),
            "doubted": float(np.mean([end["doubt"] < FINDING_ALPHA for end in last])),
            **summary(values, true.a, true_loss),
        }
    return result, paths


HEADINGS = (
    *("law", "what is wrong", "study", "FLOPs", "runs"),
    *("a: bias", "half", "covered", "loss: bias", "half", "covered"),
)


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table: shares in percent, with Monte Carlo errors."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for result in results:
        names = {
            "grid": "grid",
            "extended_for_a": "extended for a",
            "extended_for_loss": "extended for the loss",
        }
        for key, name in names.items():
            if key not in result:
                continue
            row = result[key]
            a, loss, flops = row["a"], row["loss"], row.get("flops")
            share = f"{100 * flops['mean']:.1f} ({100 * flops['mc']:.1f})" if flops else "100"
            cells = [
                *(result["law"], result["wrong"], name, share, f"{row['runs']:.0f}"),
                f"{a['bias']:+.4f} ({a['bias_mc']:.4f})",
                f"{a['half']:.4f}",
                f"{100 * a['coverage']:.0f} ({100 * a['coverage_mc']:.1f})",
                f"{100 * loss['bias']:+.2f} ({100 * loss['bias_mc']:.2f})",
                f"{100 * loss['half']:.2f}",
                f"{100 * loss['coverage']:.0f} ({100 * loss['coverage_mc']:.1f})",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(paths: Paths, goals: dict[str, float], file: Path) -> None:
    """Draw the half-interval over compute, a line a replicate, for both goals under SODA's law."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    from isoflop.plotting.style import style_axes

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    titles = {"a": "Exponent a", "loss": "Loss at 1.3e22 FLOPs"}
    units = {
        "a": (1.0, "", [0.02, 0.03, 0.05, 0.08]),
        "loss": (100.0, ", % of the loss", [0.3, 0.5, 1.0, 2.0]),
    }
    for ax, (goal, replicates) in zip(figure.subplots(1, 2), paths.items(), strict=True):
        scale, unit, ticks = units[goal]
        for path in replicates[:60]:
            x, y = [r["flops"] * 100 for r in path], [r["half"] * scale for r in path]
            ax.plot(x, y, color="#2c7fb8", alpha=0.2, lw=1)
        ends = np.array(
            [(path[-1]["flops"] * 100, path[-1]["half"] * scale) for path in replicates]
        )
        ax.plot(*ends.T, "o", ms=3, color="#08306b", alpha=0.5, label="enough, and stopped")
        ax.axhline(
            goals[goal] * scale, color="#b30000", lw=1, ls="--", label="SODA's 64 runs (100 %)"
        )
        ax.set_yscale("log")
        ax.set_xlim(0, None)
        y_label = f"half of the 95% interval{unit}"
        style_axes(ax, titles[goal], "share of the grid's FLOPs, %", y_label)
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=140, facecolor="white")


def main() -> None:
    """Write results.json and figure.png; print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results = []
    for law in ("soda", "chinchilla"):
        for wrong in ("none", "budgets", "sizes", "form"):
            goals = ("a", "loss") if wrong == "none" or law == "soda" else ("a",)
            start = time.monotonic()
            result, paths = study_scenario(law, wrong, goals, options.replicates, options.seed)
            results.append(result)
            if (law, wrong) == ("soda", "none"):
                draw(paths, result["goals"], options.output / "figure.png")
            print(f"{law} {wrong}: {time.monotonic() - start:.0f} s", flush=True)
            (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
