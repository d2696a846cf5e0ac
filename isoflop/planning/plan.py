"""A study laid out: its runs, what was dropped, and the tables of both."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.config.config_file import Overrides
from isoflop.config.identity import budget_label, run_id, run_identity
from isoflop.config.schema import Data, Sweep
from isoflop.config.sweep_definition import load_sweep
from isoflop.errors import ConfigError, IsoflopError, RunError
from isoflop.files import replace_file
from isoflop.planning.checked_recipe import Rules
from isoflop.planning.grid import Grid, lay_out
from isoflop.planning.run_spec import COLUMNS, RunSpec
from isoflop.planning.trainers import check_trainer
from isoflop.recipes import Dropped

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.planning.bill import Bill

HTML_ROWS = 100


@dataclass(frozen=True, repr=False)
class Plan:
    """The runs of a study, in order of budget, width and seed; those that check the recipe come last.

    Attributes:
        sweep: the study's definition.
        runs: what is to be run.
        dropped: candidates that the rules left out, with the reason.
        warnings: what the user should know before it is run, a line each.
        bill: what it would take on a cluster; None as long as none is named.
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
        """A row of `plan.parquet` for each run."""
        return [run.row() for run in self.runs]

    def totals(self) -> dict[str, float | None]:
        """Number of runs and their training FLOPs; hours and cost are None without a cluster profile."""
        bill = self.bill
        return {
            "runs": len(self.runs),
            "train_flops": float(self.total_flops),
            "gpu_hours": bill and bill.gpu_hours,
            "cost": bill and bill.cost,
            "finish_hours": bill and bill.finish_hours,
        }

    def to_frame(self) -> pd.DataFrame:
        """The plan as a table, a row a run, with the columns of `plan.parquet`."""
        import pandas as pd

        dtypes = {str: "string", int: "Int64", float: "float64"}
        empty = {"gpus", "nodes"}
        frame = pd.DataFrame(self.rows(), columns=list(COLUMNS))
        whole = {
            name: "int64" for name, kind in COLUMNS.items() if kind is int and name not in empty
        }
        return frame.astype({name: dtypes[kind] for name, kind in COLUMNS.items()} | whole)

    def write_parquet(self, path: str | PathLike[str]) -> None:
        """Writes `plan.parquet`: whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
        schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
        table = pa.Table.from_pylist(self.rows(), schema=schema)
        _write(path, lambda temporary: pq.write_table(table, temporary))

    def write_csv(self, path: str | PathLike[str]) -> None:
        """Writes the plan's table as CSV: whole or not at all."""
        import csv

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(COLUMNS), lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows())

        _write(path, write)

    def __repr__(self) -> str:
        budgets = sorted({run.budget for run in self.runs})
        span = " to ".join(
            budget_label(budget) for budget in dict.fromkeys((budgets[0], budgets[-1]))
        )
        return (
            f"<Plan {self.sweep.name}: {len(self.runs)} runs, {len(budgets)} budgets ({span}), "
            f"{budget_label(float(f'{self.total_flops:.3g}'))} training FLOPs, {len(self.dropped)} candidates dropped>"
        )

    def _repr_html_(self) -> str:
        names = [
            "run_id",
            "budget",
            "width",
            "layers",
            "batch_size",
            "steps",
            "lr",
            "params_total",
            "tokens",
            "epochs",
        ]
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td>{_cell(getattr(run, name))}</td>" for name in names) + "</tr>"
            for run in self.runs[:HTML_ROWS]
        )
        more = len(self.runs) - HTML_ROWS
        rest = f"<p>and {more} more; plan.to_frame() has them all</p>" if more > 0 else ""
        caption = html.escape(repr(self)[1:-1])
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def plan_rows(directory: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Columns of a sweep's `plan.parquet`, a row a run; without pandas, which takes longer to import than this to read.

    Raises:
        RunError: no plan in the directory, or a damaged one.
    """
    import pyarrow.parquet as pq

    file = directory / "plan.parquet"
    if not file.exists():
        raise RunError(
            f"{directory}: no sweep's directory (it has no plan.parquet); name the one that submit printed"
        )
    try:
        with pq.ParquetFile(file) as table:
            return table.read(columns=list(columns)).select(list(columns)).to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{file}: damaged ({error}); delete it, and `isoflop submit` writes it anew"
        ) from None


def plan(source: str | PathLike[str] | Sweep, overrides: Overrides = ()) -> Plan:
    """Lays out a study.

    Args:
        source: path of a sweep file, the name of a shipped sweep such as `soda`, or a Sweep.
        overrides: `key=value` texts, or a mapping of dotted keys to values.

    Raises:
        ConfigError: a sweep that can't be read or laid out, in one line with the mend.
    """
    if isinstance(source, Sweep):
        if overrides:
            raise ConfigError("overrides go with a file; change a Sweep with dataclasses.replace")
        sweep, label = source, source.name
    else:
        sweep, label = load_sweep(source, overrides), fspath(source)
    try:
        check_trainer(sweep)
        rules = Rules(sweep)
        grid = lay_out(rules)
        if not grid.points:
            raise _nothing_left(grid)
    except IsoflopError as problem:
        raise ConfigError(f"{label}: {problem}") from None

    runs = []
    for point in grid.points:
        candidate = point.candidate
        epochs = epochs_of(sweep.data, candidate.tokens)
        for seed in sorted(point.seeds):
            identity = run_identity(sweep, rules.recipe, candidate, seed)
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
    if (twice := _given_twice(runs)) is not None:
        raise ConfigError(f"{label}: {twice}")
    return Plan(sweep, tuple(runs), grid.dropped, _warnings(sweep, runs))


def _given_twice(runs: Sequence[RunSpec]) -> str | None:
    """What two runs of one name are, in words: budgets that differ by rounding only, or a recipe's rules."""
    places: dict[str, RunSpec] = {}
    for run in runs:
        if (other := places.setdefault(run.run_id, run)) is not run:
            return (
                f"{run.run_id} would be run twice: the recipe makes one training configuration of width {other.width} "
                f"at {other.budget!r} FLOPs and width {run.width} at {run.budget!r}; leave one of the two out"
            )
    return None


def drop_counts(dropped: tuple[Dropped, ...]) -> Mapping[str, int]:
    """How many candidates fell to each reason, the commonest first."""
    return dict(Counter(str(item.reason) for item in dropped).most_common())


def epochs_of(data: Data, tokens: int) -> dict[str, float]:
    """Passes over each source whose size is known."""
    return {
        source: tokens * data.mixture[source] / unique for source, unique in data.tokens.items()
    }


def _warnings(sweep: Sweep, runs: list[RunSpec]) -> tuple[str, ...]:
    most = sweep.data.max_epochs
    over = [run for run in runs if run.epochs is not None and run.epochs > most]
    if not over:
        return ()
    worst = max(over, key=lambda run: run.tokens)
    epochs = epochs_of(sweep.data, worst.tokens)
    source = max(epochs, key=epochs.__getitem__)
    return (
        f"{len(over)} of {len(runs)} runs pass over a source more than {most:g} times (data.max_epochs); "
        f"the most: {worst.run_id}, {epochs[source]:.1f} epochs of {source}",
    )


def _nothing_left(grid: Grid) -> ConfigError:
    reason, count = next(iter(drop_counts(grid.dropped).items()))
    example = next(item for item in grid.dropped if item.reason == reason)
    place = f"{budget_label(example.budget)} at width {example.width}"
    mends = {
        "batch": "lower min_batch or raise budgets",
        "steps": "raise max_steps",
        "budget": "raise budgets",
    }
    return ConfigError(
        f"no runs are left: {count} of {len(grid.dropped)} candidates fell to {reason} "
        f"({place}: {example.detail}); {mends.get(reason, 'change budgets or widths')}"
    )


def _write(path: str | PathLike[str], write: Any) -> None:
    target = Path(path)
    try:
        with replace_file(target) as temporary:
            write(temporary)
    except OSError as problem:
        raise IsoflopError(
            f"{fspath(path)}: can't be written ({problem.strerror or problem})"
        ) from None


def _cell(value: Any) -> str:
    return (
        ""
        if value is None
        else html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
    )
