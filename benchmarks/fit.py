"""Measure times and peak memory of fits, beside peers from the package index; print Markdown.

    python benchmarks/fit.py > benchmarks/fit.md
    python benchmarks/fit.py --peers-python python3.12 > benchmarks/fit.md

Every figure comes from a separate process. A time goes from a CSV file to intervals without the
import; it is the median of the repeats, after a first one that does not count. Memory is the peak
beyond that of the import. The peers are installed in a virtual environment in a temporary folder
(one of them needs Python 3.12). The goals are 1 s for 4000 resamples of 240 runs and 0.1 s for
profiles of 64.

Data: with ISOFLOP_REFERENCE_DATA, or `../shared/data` beside the repository, the 240 Chinchilla
runs and 64 runs of known truth; else simulated studies of the same size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from timed import measure

REPOSITORY = Path(__file__).parents[1]
REFERENCE = Path(os.environ.get("ISOFLOP_REFERENCE_DATA", REPOSITORY.parent / "shared" / "data"))
PEERS = ("chinchilla==0.2.0", "simple-scaling-laws==0.2.0")
ROWS = (100, 1_000, 10_000, 100_000)
RESAMPLES = (1_000, 10_000, 100_000)


def main() -> None:
    """Print the report, or with --case measure one case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--peers-python", default=sys.executable, help="an interpreter for the peers' environment"
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        measure(CASES[options.case](options.data), options.repeats)
        return
    with tempfile.TemporaryDirectory() as folder:
        report(Path(folder), options)


def report(folder: Path, options: argparse.Namespace) -> None:
    """Measure everything and print it."""
    source = write_data(folder)
    print(f"# Fits: times and memory, {datetime.now(UTC):%Y-%m-%d}\n")
    print(
        f"{describe_machine()}. {source}. "
        f"Medians of {options.repeats}; s is wall time, CPU s that of all threads.\n"
    )

    def measure_isoflop(case: str, data: str, repeats: int = options.repeats) -> dict[str, Any]:
        return measure_case(sys.executable, __file__, case, folder / data, repeats)

    intervals = measure_isoflop("intervals", "surface.csv")
    profiles = measure_isoflop("profiles", "profiles.csv")
    rows = [
        ["4000 resamples of the surface, 240 runs", "isoflop", intervals, intervals],
        ["profiles and laws with 4000 resamples, 64 runs", "isoflop", profiles, profiles],
    ]
    versions = "" if options.no_peers else measure_peers(folder, options, rows)
    print(versions)
    print_table(
        ["what", "tool", "s", "CPU s", "MiB", "x isoflop's s", "x its CPU s"],
        [
            [task, tool, *cells(m), *(f"{m[k] / reference[k]:.3g}" for k in ("seconds", "cpu"))]
            for task, tool, m, reference in rows
        ],
    )
    print("\nGrowth with rows (no resamples) and with resamples (240 runs):\n")
    growth: list[tuple[int, int, dict[str, Any]]] = []
    for count in ROWS:
        simulate_table(count).to_csv(folder / f"{count}.csv", index=False)
        repeats = 3 if count < 100_000 else 1
        growth.append((count, 0, measure_isoflop("rows", f"{count}.csv", repeats)))
    for count in RESAMPLES:
        repeats = 3 if count < 100_000 else 1
        growth.append((240, count, measure_isoflop(f"resamples-{count}", "surface.csv", repeats)))
    growth.append((100_000, 100, measure_isoflop("both", "100000.csv", 1)))
    print_table(
        ["rows", "resamples", "s", "CPU s", "MiB", "CPU µs a row, or a row and resample"],
        [
            [f"{k:,}", f"{n:,}", *cells(m), f"{1e6 * m['cpu'] / (k * max(n, 1)):.3g}"]
            for k, n, m in growth
        ],
    )


def print_table(headings: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(headings) + " |\n|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def cells(measures: dict[str, Any]) -> list[str]:
    """Return wall time (s), CPU time (s) and memory (MiB) as texts."""
    return [f"{measures['seconds']:.3g}", f"{measures['cpu']:.3g}", f"{measures['mib']:.0f}"]


def write_data(folder: Path) -> str:
    """Write surface.csv and profiles.csv; return a sentence about their source."""
    surface, profiles = REFERENCE / "chinchilla_epoch.csv", REFERENCE / "isoflop64_known_truth.csv"
    if surface.exists() and profiles.exists():
        raw = pd.read_csv(surface).nsmallest(240, "loss")
        frame = pd.DataFrame(
            {"params": raw["Model Size"], "flops": raw["Training FLOP"], "loss": raw["loss"]}
        )
        frame["tokens"] = frame["flops"] / (6.0 * frame["params"])
        known = pd.read_csv(profiles).rename(columns={"C": "budget", "N": "params", "D": "tokens"})
        source = (
            "Data: the 240 Chinchilla runs as digitised by Epoch AI; "
            "64 simulated runs of known truth"
        )
    else:
        frame, known = simulate_table(240), simulate_table(64)
        source = "Data: simulated studies of 240 and 64 runs"
    frame.to_csv(folder / "surface.csv", index=False)
    known.to_csv(folder / "profiles.csv", index=False)
    return source


def simulate_table(runs: int) -> pd.DataFrame:
    """Return a simulated study of at most `runs` runs."""
    from isoflop.fitting import simulate_isoflop

    frame = simulate_isoflop(points=-(-runs // 7)).drop(columns=["run_id", "seed"]).iloc[:runs]
    return frame.rename(columns={"train_flops": "flops"})


def _intervals(data: Path) -> Callable[[], object]:
    from isoflop import fit_parametric

    return lambda: fit_parametric(pd.read_csv(data), huber_delta=1e-3, bootstrap=4000).conf_int(
        kind="percentile"
    )


def _profiles(data: Path) -> Callable[[], object]:
    from isoflop import fit_isoflop

    return lambda: fit_isoflop(pd.read_csv(data), bootstrap=4000).conf_int()


def _surface(resamples: int) -> Callable[[Path], Callable[[], object]]:
    def case(data: Path) -> Callable[[], object]:
        from isoflop import fit_parametric

        return lambda: fit_parametric(pd.read_csv(data), bootstrap=resamples).conf_int()

    return case


CASES = {
    "intervals": _intervals,
    "profiles": _profiles,
    "rows": _surface(0),
    "both": _surface(100),
    **{f"resamples-{n}": _surface(n) for n in RESAMPLES},
}


def measure_case(python: str, script: str, case: str, data: Path, repeats: int) -> dict[str, Any]:
    """Return the measures of a case in a separate process; exit with its error if it fails."""
    command = [python, script, "--case", case, "--data", str(data), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure_peers(folder: Path, options: argparse.Namespace, rows: list[list[Any]]) -> str:
    """Install the peers, measure them and add their rows; return their versions."""
    subprocess.run([options.peers_python, "-m", "venv", str(folder / "venv")], check=True)
    python = str(folder / "venv" / "bin" / "python")
    installed = []
    for peer in PEERS:
        command = [python, "-m", "pip", "install", "-q", peer]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        installed += [peer] if done.returncode == 0 else []
    script = str(Path(__file__).with_name("fit_peers.py"))
    surface, profiles = (row[2] for row in rows[:2])
    simple_scaling_laws, chinchilla = PEERS[1], PEERS[0]
    for peer, task, case, data, reference, repeats in (
        (
            simple_scaling_laws,
            "4000 resamples of the surface, least squares",
            *("resamples", "surface.csv", surface, 3),
        ),
        (
            simple_scaling_laws,
            "profiles and their laws with 4000 resamples",
            *("profiles", "profiles.csv", profiles, 3),
        ),
        (
            chinchilla,
            "one fit from the 3125 starts of its README",
            *("one-fit", "surface.csv", surface, 1),
        ),
    ):
        if peer in installed:
            measures = measure_case(python, script, case, folder / data, repeats)
            rows.append([task, peer, measures, reference])
    missing = [peer for peer in PEERS if peer not in installed]
    versions = f"Peers, on {python_version(python)}: {', '.join(installed)}"
    return versions + (f"; not for this Python: {', '.join(missing)}.\n" if missing else ".\n")


def python_version(python: str) -> str:
    """Return an interpreter's name and version, such as `Python 3.12.1`."""
    command = [python, "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def describe_machine() -> str:
    """Return a line with the CPU, the load, versions and the commit."""
    from importlib.metadata import version

    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    git = subprocess.run(command, capture_output=True, text=True, check=False)
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        "unknown CPU",
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "pandas"))
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, {cpu}, load {load:.1f} at the start; "
        f"Python {platform.python_version()}, {packages}; commit {git.stdout.strip()}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
