"""How much compute does `isoflop extend` save? A simulation of the whole loop, on laws that are true and on others.

Every replicate starts from every second run of SODA's grid up to 3e19 FLOPs. It fits the parametric law, extends the
study by what `isoflop.followup` chooses under the fitted law, draws the losses of the new runs, fits again, and so on
until the expected interval is as narrow as that of SODA's 64 runs. What the optima are placed by in repairs is the
fitted surface alone (the command asks the joint fit too). Nothing else differs from the command.

    nice python analysis/extend/simulate.py             # results.json and figure.png, minutes on one core
    nice python analysis/extend/simulate.py --replicates 10 --output /tmp/quick
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy: small matrices gain nothing from threads

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from isoflop.config import load_sweep
from isoflop.config.schema import Point, Sweep, WidthRule
from isoflop.fitting.estimators.fisher import Design
from isoflop.fitting.estimators.newton import Observations
from isoflop.fitting.estimators.noise import Noise
from isoflop.fitting.estimators.surface_estimate import Estimate, Sample, estimate_many
from isoflop.fitting.methods.parametric import hold_out_surface
from isoflop.fitting.results.diagnostics import FINDING_ALPHA
from isoflop.fitting.results.parametric_fit import optimum
from isoflop.followup.candidates import CandidatePoint, list_candidate_points
from isoflop.followup.extend import select_runs
from isoflop.followup.finished_study import FinishedStudy
from isoflop.followup.selection import Caps
from isoflop.laws import SURFACES, Surface
from isoflop.planning.plan import plan

Floats = np.ndarray
NOISE, CONFIDENCE, TARGET = 0.003, 0.95, 1.3e22
START_UP_TO = 3e19
ROUND = (1.0, 60)
"""A round may cost as much as has been spent so far, and have 60 runs."""

MOST_ROUNDS = 12
GRID = tuple(CandidatePoint(run.budget, run.candidate) for run in plan("soda").runs)
GRID_FLOPS = float(sum(place.train_flops for place in GRID))
START = tuple(place for place in GRID if place.budget <= START_UP_TO)[::2]


# Truths


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the runs of a recipe really come to; the fit believes in a surface."""

    law: str
    wrong: str
    loss: Callable[[Floats, Floats], Floats]

    @property
    def surface(self) -> Surface:
        return SURFACES[self.law]

    def optimum(self, flops: float) -> tuple[float, float]:
        """ln N* and ln L* at C = 6ND, by search."""
        x = np.log(self.surface.optimum(flops)[0]) + np.linspace(-1.5, 1.5, 6001)
        y = np.log(self.loss(np.exp(x), flops / 6.0 / np.exp(x)))
        best = int(np.argmin(y))
        return float(x[best]), float(y[best])

    @property
    def a(self) -> float:
        """Slope of ln N* over the grid's budgets."""
        low, high = 3e18, 3e20
        return (self.optimum(high)[0] - self.optimum(low)[0]) / float(np.log(high / low))


def truth(law: str, wrong: str) -> Truth:
    """A surface, and what is wrong with it.

    * `none`: it is true.
    * `budgets`: the recipe gets worse with compute, by 0.3 % of the loss for each decade.
    * `sizes`: its learning rate is off for small models: 1 % of the loss at 100M parameters, falling as 1 / N.
    * `form`: the terms are coupled, E + ((A/N^alpha)^(1/.85) + (B/D^beta)^(1/.85))^.85: same exponents, other losses.
    """
    s = SURFACES[law]
    found: dict[str, Callable[[Floats, Floats], Floats]] = {
        "none": s.loss,
        "budgets": lambda n, d: s.loss(n, d) * (1.0 + 0.003 * np.log10(6.0 * n * d / 3e18)),
        "sizes": lambda n, d: s.loss(n, d) * (1.0 + 0.01 * 1e8 / n),
        "form": lambda n, d: (
            s.E + ((s.A * n**-s.alpha) ** (1 / 0.85) + (s.B * d**-s.beta) ** (1 / 0.85)) ** 0.85
        ),
    }
    return Truth(law, wrong, found[wrong])


# Studies


class Runs:
    """The runs of one imagined study: places with the losses that were measured there."""

    def __init__(self, truth: Truth, rng: np.random.Generator) -> None:
        self.truth, self.rng = truth, rng
        self.losses: dict[CandidatePoint, list[float]] = {}

    def train(self, place: CandidatePoint, runs: int) -> None:
        loss = float(
            self.truth.loss(np.array(float(place.params("total"))), np.array(float(place.tokens)))
        )
        self.losses.setdefault(place, []).extend(loss * np.exp(self.rng.normal(0.0, NOISE, runs)))

    @property
    def flops(self) -> float:
        return float(sum(place.train_flops * len(losses) for place, losses in self.losses.items()))

    @property
    def count(self) -> int:
        return sum(map(len, self.losses.values()))

    def sample(self) -> Sample:
        means = [np.mean(several) for several in self.losses.values()]
        return sample_at(list(self.losses), list(map(len, self.losses.values())), means)

    def between_seeds(self) -> tuple[float, int]:
        """Sum of squares of ln loss about the means of configurations, and its degrees of freedom."""
        squares = sum(
            float(np.var(np.log(several)) * len(several)) for several in self.losses.values()
        )
        return squares, self.count - len(self.losses)


def sample_at(places: list[CandidatePoint], seeds: Any, losses: Any) -> Sample:
    params, tokens = (
        np.array(v, float)
        for v in zip(*((p.params("total"), p.tokens) for p in places), strict=True)
    )
    budget = np.array([place.budget for place in places])
    points = Observations.from_counts(params, tokens, np.asarray(losses))
    return Sample(points, np.array(seeds, float), budget, budget, np.arange(len(places)))


def grid_design(law: Surface) -> Design:
    params, tokens = (
        np.array(v, float) for v in zip(*((p.params("total"), p.tokens) for p in GRID), strict=True)
    )
    return Design.from_counts(law, params, tokens, np.ones(len(GRID)), NOISE)


NAMES = ("a", "a_half", "loss", "loss_half", "loss_more")


def measures(sample: Sample, estimate: Estimate) -> Floats:
    """a, its half-interval, ln L* at the target, its half-interval, and what the roll-out adds to that, each (M,)."""
    alpha, beta = estimate.theta[:, 3], estimate.theta[:, 4]
    by_a = np.zeros((len(alpha), 5))
    by_a[:, 3], by_a[:, 4] = -beta / (alpha + beta) ** 2, alpha / (alpha + beta) ** 2
    values, gradients = optimum(sample.points, estimate.theta, TARGET)
    by_loss = gradients[:, 2]
    t = float(stdtrit(sample.dof, 0.5 + CONFIDENCE / 2.0))
    halves = [
        t * np.sqrt(np.einsum("mi,mij,mj->m", g, estimate.covariance, g)) for g in (by_a, by_loss)
    ]
    rollout = hold_out_surface(sample, estimate, None)
    more = np.full(len(alpha), np.nan) if rollout is None else rollout.allowance("loss", TARGET)
    return np.stack([beta / (alpha + beta), halves[0], values[:, 2], halves[1], more])


def doubt(sample: Sample, estimate: Estimate, runs: Runs) -> float:
    """Probability of residuals as large as these if the law were true: the F test that a fit makes."""
    residuals, (squares, more) = sample.residuals(estimate.theta[0]), runs.between_seeds()
    sd = float(np.sqrt(residuals @ residuals / sample.dof))
    return Noise(sd, sample.dof, float(np.sqrt(squares / max(more, 1))), more).lack_of_fit


# The two ways to spend compute


def fit_grid(true: Truth, replicates: int, rng: np.random.Generator) -> Floats:
    """`measures` of fits of the whole grid, all replicates as one batch."""
    design = grid_design(true.surface)
    params, tokens = (
        np.exp(design.points.x + design.points.x_mean),
        np.exp(design.points.y + design.points.y_mean),
    )
    losses = true.loss(params, tokens) * np.exp(rng.normal(0.0, NOISE, (replicates, len(GRID))))
    sample = sample_at(list(GRID), np.ones(len(GRID)), losses)
    return measures(
        sample, estimate_many(sample, np.repeat(design.theta[None], replicates, axis=0), None)
    )


def extend_until(
    true: Truth,
    goal: str,
    enough: float,
    rng: np.random.Generator,
    places: Callable[[frozenset[float]], list[CandidatePoint]],
) -> list[dict[str, float]]:
    """The loop for one replicate: what each round knew and had spent, the last when it was enough."""
    runs, rounds = Runs(true, rng), []
    for place in START:
        runs.train(place, 1)
    sample = runs.sample()
    theta = Design(true.surface, sample.points, sample.seeds, NOISE).theta[None]
    while True:
        estimate = estimate_many(sample, theta, None)
        budgets = frozenset(place.budget for place in runs.losses)
        done = {place.key: len(losses) for place, losses in runs.losses.items()}
        replicates = runs.between_seeds()
        study = FinishedStudy.from_estimate(
            sample, estimate, {}, done, places(budgets), replicates=replicates
        )
        aim = study.design.exponent() if goal == "a" else study.design.loss(TARGET)
        half = study.design.half_width(aim, CONFIDENCE)
        rounds.append({"flops": runs.flops / GRID_FLOPS, "runs": runs.count, "half": half})
        search = None
        if half > enough and len(rounds) <= MOST_ROUNDS:
            search, _ = select_runs(
                study, aim, Caps(ROUND[0] * runs.flops, ROUND[1], enough), None, CONFIDENCE
            )
        if search is None or not search.picks:
            found = dict(zip(NAMES, map(float, measures(sample, estimate)[:, 0]), strict=True))
            return [*rounds[:-1], rounds[-1] | found | {"doubt": doubt(sample, estimate, runs)}]
        for pick in search.picks:
            runs.train(pick.point, pick.runs)
        new = runs.sample()
        sample, theta = new, sample.recentre(estimate.theta, new.points)


def point_finder() -> Callable[[frozenset[float]], list[CandidatePoint]]:
    """Places that a study of some budgets may be extended by, solved once for each set of budgets."""
    known: dict[frozenset[float], list[CandidatePoint]] = {}
    soda, widths = load_sweep("soda"), tuple(sorted({place.width for place in START}))

    def find(budgets: frozenset[float]) -> list[CandidatePoint]:
        if budgets not in known:
            extra = tuple(Point(budget=budget, width=widths[0]) for budget in budgets)
            sweep: Sweep = dataclasses.replace(
                soda, budgets=(3e18,), widths=(WidthRule(values=widths),), extra=extra
            )
            known[budgets] = list_candidate_points(sweep)
        return known[budgets]

    return find


# Results


def summary(values: Floats, true_a: float, true_loss: float) -> dict[str, Any]:
    """Bias, spread and coverage of a and of ln loss at the target, with Monte Carlo errors; `values` as `measures`."""
    found = {}
    rows = dict(zip(NAMES, values, strict=True))
    for name, true in (("a", true_a), ("loss", true_loss)):
        half = rows[f"{name}_half"]
        error, count = rows[name] - true, len(half)
        hit = float(np.mean(np.abs(error) <= half))
        found[name] = {
            "truth": true,
            "bias": float(error.mean()),
            "bias_mc": float(error.std(ddof=1) / np.sqrt(count)),
            "sd": float(error.std(ddof=1)),
            "half": float(np.median(half)),
            "coverage": hit,
            "coverage_mc": float(np.sqrt(max(hit * (1 - hit), 0.25 / count) / count)),
        }
    found["loss"]["coverage_with_roll_out"] = float(
        np.mean(np.abs(error) <= half + rows["loss_more"])
    )
    found["loss"]["half_with_roll_out"] = float(np.median(half + rows["loss_more"]))
    return found


Paths = dict[str, list[list[dict[str, float]]]]


def study_scenario(
    law: str, wrong: str, goals: tuple[str, ...], replicates: int, seed: int
) -> tuple[dict[str, Any], Paths]:
    """What the grid and the extensions come to under one truth.

    The goals are the median half-intervals of fits of the grid where the law is true.
    """
    true, find = truth(law, wrong), point_finder()
    true_loss = true.optimum(TARGET)[1]
    design = grid_design(true.surface)
    grid = fit_grid(true, 20 * replicates, np.random.default_rng([seed, 0]))
    right = fit_grid(truth(law, "none"), 2000, np.random.default_rng([seed, 2]))
    enough = {"a": float(np.median(right[1])), "loss": float(np.median(right[3]))}
    result: dict[str, Any] = {
        "law": law, "wrong": wrong, "fisher_sd_a": design.sd(design.exponent()), "goals": enough,
        "grid": {"replicates": grid.shape[1], "runs": len(GRID), **summary(grid, true.a, true_loss)},
    }  # fmt: skip
    paths: Paths = {}
    for goal in goals:
        paths[goal] = [
            extend_until(true, goal, enough[goal], np.random.default_rng([seed, 1, k]), find)
            for k in range(replicates)
        ]
        last = [path[-1] for path in paths[goal]]
        spent = np.array([end["flops"] for end in last])
        ends = np.array([[end[name] for end in last] for name in NAMES])
        result[f"extended_for_{goal}"] = {
            "replicates": replicates,
            "flops": {
                "mean": float(spent.mean()), "mc": float(spent.std(ddof=1) / np.sqrt(replicates)),
                **{name: float(np.quantile(spent, q)) for name, q in (("p10", 0.1), ("median", 0.5), ("p90", 0.9))},
            },
            "runs": float(np.mean([end["runs"] for end in last])),
            "rounds": float(np.mean([len(path) - 1 for path in paths[goal]])),
            "reached": float(np.mean([end["half"] <= enough[goal] for end in last])),
            "doubted": float(np.mean([end["doubt"] < FINDING_ALPHA for end in last])),
            **summary(ends, true.a, true_loss),
        }  # fmt: skip
    return result, paths


def table(results: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown: shares in percent, with Monte Carlo errors."""
    head = [
        "law",
        "what is wrong",
        "study",
        "FLOPs",
        "runs",
        "a: bias",
        "half",
        "covered",
        "loss: bias",
        "half",
        "covered",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for result in results:
        names = {
            "grid": "grid",
            "extended_for_a": "extended for a",
            "extended_for_loss": "extended for the loss",
        }
        for key, name in names.items():
            if key not in result:
                continue
            found = result[key]
            a, loss, flops = found["a"], found["loss"], found.get("flops", {"mean": 1.0, "mc": 0.0})
            share = (
                f"{100 * flops['mean']:.1f} ({100 * flops['mc']:.1f})" if key != "grid" else "100"
            )
            cells = [
                result["law"], result["wrong"], name, share, f"{found['runs']:.0f}",
                f"{a['bias']:+.4f} ({a['bias_mc']:.4f})", f"{a['half']:.4f}",
                f"{100 * a['coverage']:.0f} ({100 * a['coverage_mc']:.1f})",
                f"{100 * loss['bias']:+.2f} ({100 * loss['bias_mc']:.2f})", f"{100 * loss['half']:.2f}",
                f"{100 * loss['coverage']:.0f} ({100 * loss['coverage_mc']:.1f})",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(paths: Paths, goals: dict[str, float], file: Path) -> None:
    """Half of the interval over compute, a line a replicate, for both goals under SODA's law."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    from isoflop.plotting.style import style_axes

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    titles = {"a": "Exponent a", "loss": "Loss at 1.3e22 FLOPs"}
    units = {
        "a": (1.0, "", [0.02, 0.03, 0.05, 0.08]),
        "loss": (100.0, ", % of the loss", [0.3, 0.5, 1.0, 2.0]),
    }
    for ax, (goal, several) in zip(figure.subplots(1, 2), paths.items(), strict=True):
        scale, unit, ticks = units[goal]
        for path in several[:60]:
            x, y = [r["flops"] * 100 for r in path], [r["half"] * scale for r in path]
            ax.plot(x, y, color="#2c7fb8", alpha=0.2, lw=1)
        ends = np.array([(path[-1]["flops"] * 100, path[-1]["half"] * scale) for path in several])
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    results = []
    for law in ("soda", "chinchilla"):
        for wrong in ("none", "budgets", "sizes", "form"):
            goals = ("a", "loss") if wrong == "none" or law == "soda" else ("a",)
            began = time.monotonic()
            result, paths = study_scenario(law, wrong, goals, asked.replicates, asked.seed)
            results.append(result)
            if (law, wrong) == ("soda", "none"):
                draw(paths, result["goals"], asked.output / "figure.png")
            print(f"{law} {wrong}: {time.monotonic() - began:.0f} s", flush=True)
            (asked.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
