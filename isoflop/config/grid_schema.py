"""Schema of a sweep's widths and points, and the checks of budgets and seeds."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.config.validation import SchemaError, require
from isoflop.text import flops_text

MAX_WIDTH = 1_000_000
MAX_BUDGET_FLOPS = 1e40


@dataclass(frozen=True, kw_only=True)
class WidthRule:
    """Widths to try at some budgets: `values`, or `start` to `stop` by `step`.

    Attributes:
        until: largest budget of the rule in training FLOPs, itself included; `null` for all
            budgets.
        start: smallest width.
        stop: largest width; it is tried if a step falls on it.
        step: difference of two neighbouring widths.
        values: list of widths, instead of `start`, `stop` and `step`.
    """

    until: float | None = None
    start: int | None = None
    stop: int | None = None
    step: int | None = None
    values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        bounds = {"start": self.start, "stop": self.stop, "step": self.step}
        present = [name for name, value in bounds.items() if value is not None]
        if self.until is not None:
            require(
                self.until > 0,
                "until",
                f"expected a budget above 0, got {flops_text(self.until, 6)}",
            )
        if self.values is not None:
            require(
                not present,
                present[0] if present else "",
                "give either values or start, stop and step, not both",
            )
            require(bool(self.values), "values", "an empty list; give at least one width")
            check_distinct("values", self.values)
        else:
            missing = [name for name in bounds if name not in present]
            if missing:
                raise SchemaError(missing[0], "missing; a rule has start, stop and step, or values")
        for name, width in [
            *bounds.items(),
            *((f"values[{i}]", width) for i, width in enumerate(self.values or ())),
        ]:
            if width is not None:
                require(
                    0 < width <= MAX_WIDTH,
                    name,
                    f"expected 1 to {MAX_WIDTH:,}, got {width:,}",
                )
        if self.start is not None and self.stop is not None:
            require(
                self.start <= self.stop,
                "stop",
                f"expected {self.start} (start) or more, got {self.stop}",
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the widths in ascending order."""
        if self.values is not None:
            return tuple(sorted(self.values))
        return tuple(range(self.start or 0, (self.stop or 0) + 1, self.step or 1))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the grid.

    Attributes:
        budget: training FLOPs (3 x forward).
        width: width of the model.
    """

    budget: float
    width: int

    def __post_init__(self) -> None:
        check_budget("budget", self.budget)
        require(
            0 < self.width <= MAX_WIDTH,
            "width",
            f"expected 1 to {MAX_WIDTH:,}, got {self.width:,}",
        )


@dataclass(frozen=True, kw_only=True)
class Replicate(Point):
    """Additional seeds at one point of the grid, which separate noise of runs from lack of fit.

    Attributes:
        seeds: the additional seeds.
    """

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds("seeds", self.seeds)


def check_budget(key: str, budget: float) -> None:
    """Raise SchemaError unless a budget is above 0 and at most `MAX_BUDGET_FLOPS`."""
    require(
        0 < budget <= MAX_BUDGET_FLOPS,
        key,
        f"expected training FLOPs above 0 and up to {flops_text(MAX_BUDGET_FLOPS)}, "
        f"got {flops_text(budget, 6)}",
    )


def check_seeds(key: str, seeds: tuple[int, ...]) -> None:
    """Raise SchemaError unless the seeds are distinct, from 0 to 2^32 - 1, and at least one."""
    require(bool(seeds), key, "an empty list; give at least one seed")
    for i, seed in enumerate(seeds):
        require(0 <= seed < 2**32, f"{key}[{i}]", f"expected 0 to {2**32 - 1:,}, got {seed:,}")
    check_distinct(key, seeds)


def check_distinct(key: str, values: tuple[float, ...] | tuple[int, ...]) -> None:
    """Raise SchemaError if a value is given twice."""
    distinct: set[float] = set()
    for value in values:
        text = f"{value:,}" if isinstance(value, int) else flops_text(value, 6)
        require(value not in distinct, key, f"{text} is given twice; leave one out")
        distinct.add(value)
