"""A plan: the runs of a study, the dropped candidates, and tables of both."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.config.config_file import Overrides
from isoflop.config.identity import run_id, run_identity
from isoflop.config.schema import Data, Sweep
from isoflop.config.sweep_file import load_sweep
from isoflop.errors import ConfigError, IsoflopError, RunError
from isoflop.files import replace_file
from isoflop.planning.grid import Grid, build_grid
from isoflop.planning.run_spec import PLAN_COLUMNS, RunSpec
from isoflop.planning.sweep_recipe import SweepRecipe, point_label
from isoflop.planning.trainers import check_trainer
from isoflop.recipes import Dropped
from isoflop.text import flops_text

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.planning.bill import Bill

MAX_HTML_ROWS = 100
HTML_COLUMNS = (
    "run_id", "budget", "width", "layers", "batch_size", "steps", "lr", "params_total", "tokens",
    "epochs",
)  # fmt: skip
EMPTY_COLUMNS = frozenset({"gpus", "nodes"})
"""Integer columns that may be empty."""


@dataclass(frozen=True, repr=False)
class Plan:
    """Runs of a study by budget, width and seed; those that check the recipe come last.

    Attributes:
        sweep: definition of the study.
        runs: runs to train.
        dropped: candidates that the rules exclude, with the reason.
        warnings: messages for the user before the runs start, one line each.
        bill: resources on a cluster; None without a cluster.
    """

    sweep: Sweep
    runs: tuple[RunSpec, ...]
    dropped: tuple[Dropped, ...]
    warnings: tuple[str, ...] = ()
    bill: Bill | None = None

    @cached_property
    def total_flops(self) -> int:
        """Training FLOPs of all runs together (3 x forward)."""
        return sum(run.train_flops for run in self.runs)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of `plan.parquet` for each run."""
        return [run.row() for run in self.runs]

    def totals(self) -> dict[str, float | None]:
        """Return number of runs, training FLOPs, hours and cost.

        Hours and cost are None without a cluster profile.
        """
        bill = self.bill
        return {
            "runs": len(self.runs),
            "train_flops": float(self.total_flops),
            "gpu_hours": bill and bill.gpu_hours,
            "cost": bill and bill.cost,
            "finish_hours": bill and bill.finish_hours,
        }

    def to_frame(self) -> pd.DataFrame:
        """Return the plan as a table, one row per run, with the columns of `plan.parquet`."""
        import pandas as pd

        dtypes = {str: "string", int: "int64", float: "float64"}
        frame = pd.DataFrame(self.rows(), columns=list(PLAN_COLUMNS))
        return frame.astype(
            {
                name: "Int64" if name in EMPTY_COLUMNS else dtypes[kind]
                for name, kind in PLAN_COLUMNS.items()
            }
        )

    def write_parquet(self, path: str | PathLike[str]) -> None:
        """Write `plan.parquet`, complete or not at all.

        Raises:
            IsoflopError: a path that can't be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
        schema = pa.schema([(name, types[kind]) for name, kind in PLAN_COLUMNS.items()])
        table = pa.Table.from_pylist(self.rows(), schema=schema)
        _write(path, lambda temporary: pq.write_table(table, temporary))

    def write_csv(self, path: str | PathLike[str]) -> None:
        """Write the plan's table as CSV, complete or not at all.

        Raises:
            IsoflopError: a path that can't be written.
        """
        import csv

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(PLAN_COLUMNS), lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows())

        _write(path, write)

    def __repr__(self) -> str:
        budgets = sorted({run.budget for run in self.runs})
        span = " to ".join(
            flops_text(budget) for budget in dict.fromkeys((budgets[0], budgets[-1]))
        )
        total = flops_text(self.total_flops, 3)
        return (
            f"<Plan {self.sweep.name}: {len(self.runs)} runs, {len(budgets)} budgets ({span}), "
            f"{total} training FLOPs, {len(self.dropped)} candidates dropped>"
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in HTML_COLUMNS)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{_cell(getattr(run, name))}</td>" for name in HTML_COLUMNS)
            + "</tr>"
            for run in self.runs[:MAX_HTML_ROWS]
        )
        more = len(self.runs) - MAX_HTML_ROWS
        rest = f"<p>and {more} more; plan.to_frame() has them all</p>" if more > 0 else ""
        caption = html.escape(repr(self)[1:-1])
        return (
            f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>{rest}"
        )


def read_plan_rows(directory: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return columns of a sweep's `plan.parquet`, one row per run.

    pandas is not used: it takes longer to import than this takes to read.

    Raises:
        RunError: no plan in the directory, or a damaged one.
    """
    import pyarrow.parquet as pq

    file = directory / "plan.parquet"
    if not file.exists():
        raise RunError(
            f"{directory}: no sweep's directory (it has no plan.parquet); "
            "use the directory that submit printed"
        )
    try:
        with pq.ParquetFile(file) as table:
            return table.read(columns=list(columns)).select(list(columns)).to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{file}: damaged ({error}); delete it, and `isoflop submit` writes it again"
        ) from None


def plan(source: str | PathLike[str] | Sweep, overrides: Overrides = ()) -> Plan:
    """Plan a study.

    Args:
        source: path of a sweep file, name of a shipped sweep such as `soda`, or a Sweep.
        overrides: `key=value` texts, or a mapping of dotted keys to values.

    Raises:
        ConfigError: a sweep that can't be read or planned, in one line with the fix.
    """
    if isinstance(source, Sweep):
        if overrides:
            raise ConfigError("overrides go with a file; change a Sweep with dataclasses.replace")
        sweep, label = source, source.name
    else:
        sweep, label = load_sweep(source, overrides), fspath(source)
    try:
        check_trainer(sweep)
        recipe = SweepRecipe(sweep)
        grid = build_grid(recipe)
        if not grid.points:
            raise _no_runs_error(grid)
    except IsoflopError as problem:
        raise ConfigError(f"{label}: {problem}") from None

    runs = []
    for point in grid.points:
        candidate = point.candidate
        epochs = count_epochs(sweep.data, candidate.tokens)
        for seed in sorted(point.seeds):
            identity = run_identity(sweep, recipe.recipe, candidate, seed)
            runs.append(
                RunSpec(
                    run_id=run_id(point.budget, point.width, seed, identity, point.check),
                    sweep=sweep.name,
                    budget=point.budget,
                    shape=candidate.shape,
                    batch_size=candidate.batch_size,
                    steps=candidate.steps,
                    lr=candidate.lr,
                    beta2=candidate.beta2,
                    seed=seed,
                    check=point.check,
                    epochs=max(epochs.values(), default=None),
                )
            )
    if (fault := _find_duplicate(runs)) is not None:
        raise ConfigError(f"{label}: {fault}")
    return Plan(sweep, tuple(runs), grid.dropped, _warnings(sweep, runs))


def _find_duplicate(runs: Sequence[RunSpec]) -> str | None:
    """Return a message about two runs with one id, or None.

    Their budgets differ only by rounding, or the recipe ignores the difference.
    """
    first: dict[str, RunSpec] = {}
    for run in runs:
        if (other := first.setdefault(run.run_id, run)) is not run:
            return (
                f"{run.run_id} would be run twice: the recipe makes the same training "
                f"configuration for width {other.width} at {other.budget!r} FLOPs and width "
                f"{run.width} at {run.budget!r}; leave one of the two out"
            )
    return None


def count_dropped(dropped: tuple[Dropped, ...]) -> Mapping[str, int]:
    """Return the number of dropped candidates by reason, the most frequent first."""
    return dict(Counter(str(candidate.reason) for candidate in dropped).most_common())


def count_epochs(data: Data, tokens: int) -> dict[str, float]:
    """Return the passes over each source of known size."""
    return {
        source: tokens * data.mixture[source] / unique for source, unique in data.tokens.items()
    }


def _warnings(sweep: Sweep, runs: list[RunSpec]) -> tuple[str, ...]:
    max_epochs = sweep.data.max_epochs
    over = [run for run in runs if run.epochs is not None and run.epochs > max_epochs]
    if not over:
        return ()
    worst = max(over, key=lambda run: run.tokens)
    epochs = count_epochs(sweep.data, worst.tokens)
    source = max(epochs, key=epochs.__getitem__)
    return (
        f"{len(over)} of {len(runs)} runs pass over a source more than {max_epochs:g} times "
        f"(data.max_epochs); the most: {worst.run_id}, {epochs[source]:.1f} epochs of {source}",
    )


def _no_runs_error(grid: Grid) -> ConfigError:
    reason, count = next(iter(count_dropped(grid.dropped).items()))
    example = next(candidate for candidate in grid.dropped if candidate.reason == reason)
    fixes = {
        "batch": "lower min_batch or raise budgets",
        "steps": "raise max_steps",
        "budget": "raise budgets",
    }
    return ConfigError(
        f"no runs are left: {count} of {len(grid.dropped)} candidates were dropped for {reason} "
        f"({point_label(example.budget, example.width)}: {example.detail}); "
        f"{fixes.get(reason, 'change budgets or widths')}"
    )


def _write(path: str | PathLike[str], write: Callable[[Path], object]) -> None:
    target = Path(path)
    try:
        with replace_file(target) as temporary:
            write(temporary)
    except OSError as problem:
        raise IsoflopError(
            f"{fspath(path)}: can't be written ({problem.strerror or problem})"
        ) from None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return html.escape(flops_text(value) if isinstance(value, float) else str(value))
