"""Compare the numbers of two versions of isoflop: fits, plans, bills and sbatch scripts.

    python benchmarks/same_numbers.py OLD_COMMIT [--data FOLDER] [--cluster PROFILE]

OLD_COMMIT is checked out into a temporary folder and run by this same Python, beside the code of
this checkout. JSON is compared number for number, bit for bit, and run by run id; text by the
numbers in it, units written out (147K is 147,000) and within their rounding, since formats may
differ. Keys that only one side has are listed.

FOLDER holds further tables to fit (the reference data); each file is fitted by all methods.
PROFILE is that of a cluster in reach, such as slurm/testbed.yaml after `make slurm-up`: then the
scripts of `submit --dry-run` are compared too. Exit code 1 if a number differs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = "import sys; from isoflop.cli import main; main(sys.argv[1:])"
METHODS = ("--method", "isoflop,joint,parametric,envelope")
COLUMNS = {
    "chinchilla_epoch.csv": (
        ("--params", "Model Size", "--tokens", "D", "--flops", "Training FLOP"),
        lambda frame: frame.assign(D=frame["Training FLOP"] / (6.0 * frame["Model Size"])),
    ),
    "isoflop64_known_truth.csv": (("--params", "N", "--tokens", "D", "--flops", "C"), None),
}
"""Options of tables whose columns have other names, and a function that adds missing columns."""
SWEEPS = ("soda", "pocket", "pocket-64")
PROFILES = ("h100", "h200", "a100")
UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
UNITS |= {" MB": 1e6, " GB": 1e9, " TB": 1e12}
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?(?P<unit>[kKMBT]\b| [MGT]B\b)?")
VOLATILE_KEYS = frozenset({"version", "hash", "draws", "source"})


def run(code: Path, folder: Path, *arguments: str) -> str:
    """Return what a command of one version prints to stdout; its error text if it is refused."""
    environment = {**os.environ, "PYTHONPATH": str(code), "ISOFLOP_ROOT": str(folder / "runs")}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else f"exit {done.returncode}: {done.stderr}"


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a JSON document with its dotted key."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in VOLATILE_KEYS:
                yield from flatten(item, f"{key}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from flatten(item, f"{key}[{number}]")
    else:
        yield key, value


def numbers(text: str) -> list[tuple[float, float]]:
    """Return value and rounding error of each number of a text, units written out."""
    values = []
    for match in NUMBER.finditer(text):
        digits = match[0].removesuffix(match["unit"] or "").replace(",", "")
        unit = UNITS[match["unit"] or ""]
        mantissa, _, exponent = digits.partition("e")
        decimals = len(mantissa.partition(".")[2])
        scale = unit * 10.0 ** int(exponent or 0)
        values.append((float(digits) * unit, 0.5 * scale * 10.0**-decimals))
    return values


def compare_json(name: str, old: str, new: str) -> int:
    """Print how two JSON documents differ in numbers; return the count of differing numbers."""
    try:
        before, after = (dict(flatten(json.loads(text))) for text in (old, new))
    except ValueError:
        same = numbers(old) == numbers(new)
        print(f"{name}: {'both refused' if same else f'DIFFERS: {old!r} | {new!r}'}")
        return 0 if same else 1
    differing = [
        key
        for key in before.keys() & after.keys()
        if (isinstance(before[key], (int, float)) or key.endswith("run_id"))
        and not _equal(before[key], after[key])
    ]
    count = sum(isinstance(value, (int, float)) for value in before.values())
    one_sided = sorted(before.keys() ^ after.keys())
    print(f"{name}: {count - len(differing):,} of {count:,} numbers equal", end="")
    print(f"; keys of one side: {', '.join(one_sided[:8])}" if one_sided else "")
    for key in differing[:8]:
        print(f"  {key}: {before[key]!r} -> {after[key]!r}")
    return len(differing)


def compare_text(name: str, old: str, new: str) -> int:
    """Print how two texts differ in numbers, beyond their rounding; return 1 if they do."""
    before, after = numbers(old), numbers(new)
    pairs = list(zip(before, after, strict=False))
    apart = [(x, y) for (x, ex), (y, ey) in pairs if abs(x - y) > max(ex, ey) * (1.0 + 1e-9)]
    if len(before) == len(after) and not apart:
        print(f"{name}: {len(before):,} numbers equal, as far as they are printed")
        return 0
    print(f"{name}: DIFFERS: {len(before):,} and {len(after):,} numbers; first: {apart[:5]}")
    return 1


def _equal(first: Any, second: Any) -> bool:
    if isinstance(second, (int, float)) and math.isnan(first) and math.isnan(second):
        return True
    return first == second


def tables(folder: Path, data: Path | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield name and arguments of `isoflop fit` for every table."""
    for study in sorted((ROOT / "analysis").glob("*/runs.parquet")):
        yield study.parent.name, (str(study.parent),)
    if data is None:
        return
    import pandas as pd

    for file in sorted(data.glob("*.csv")):
        options, change = COLUMNS.get(file.name, ((), None))
        source = file
        if change is not None:
            source = folder / file.name
            change(pd.read_csv(file)).to_csv(source, index=False)
        yield file.name, (str(source), *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", help="commit to compare with")
    parser.add_argument("--data", type=Path, help="folder of further tables")
    parser.add_argument("--cluster", help="profile of a cluster in reach")
    options = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder, before = Path(temporary), Path(temporary, "old")
        worktree = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*worktree, "add", "--detach", "-q", before, options.old], check=True)
        try:
            for name, arguments in tables(folder, options.data):
                command = ("fit", *arguments, *METHODS, "--json")
                pair = [run(code, folder, *command) for code in (before, ROOT)]
                differing += compare_json(f"fit {name}", *pair)
            for sweep in SWEEPS:
                pair = [run(code, folder, "plan", sweep, "--json") for code in (before, ROOT)]
                differing += compare_json(f"plan {sweep}", *pair)
            for profile in PROFILES:
                for more in ((), ("--interruptions", "2"), ("--order", "budget")):
                    command = ("plan", "soda", "--cluster", profile, *more)
                    pair = [run(code, folder, *command) for code in (before, ROOT)]
                    differing += compare_text(" ".join(command), *pair)
                    pair = [run(code, folder, *command, "--json") for code in (before, ROOT)]
                    differing += compare_json(" ".join((*command, "--json")), *pair)
            if options.cluster:
                profile = str(Path(options.cluster).resolve())
                command = ("submit", "pocket", "--cluster", profile, "--dry-run")
                pair = [run(code, folder, *command) for code in (before, ROOT)]
                if any(text.startswith("exit ") for text in pair):
                    sys.exit(f"no scripts to compare: {pair[1].strip()}")
                differing += compare_text(" ".join(command), *pair)
        finally:
            subprocess.run([*worktree, "remove", "--force", before], check=True)
    print(f"{differing} numbers differ" if differing else "all numbers equal")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
