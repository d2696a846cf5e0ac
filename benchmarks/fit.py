"""Times and peak memory of fits, beside the peers on the package index; writes Markdown.

    python benchmarks/fit.py > benchmarks/fit.md
    python benchmarks/fit.py --peers-python python3.12 > benchmarks/fit.md

Every figure comes from a process of its own: the median of the repeats after one that is not counted, all but the
import, from a CSV file to intervals; and the most memory beyond what the import takes. The peers are installed in a
virtual environment in a temporary folder (one of them needs Python 3.12). The goals are 1 s for 4000 resamples of 240
runs and .1 s for profiles of 64.

Data: with ISOFLOP_REFERENCE_DATA, or `../shared/data` beside the repository, the 240 Chinchilla runs and 64 runs of
known truth; else simulated studies of the same size.
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
    """Measures everything and prints it."""
    source = write_data(folder)
    print(f"# Fits: times and memory, {datetime.now(UTC):%Y-%m-%d}\n")
    print(
        f"{machine()}. {source}. Medians of {options.repeats}; s is wall time, CPU s that of all threads.\n"
    )

    def ours(case: str, data: str, repeats: int = options.repeats) -> dict[str, Any]:
        return child(sys.executable, __file__, case, folder / data, repeats)

    intervals, profiles = ours("intervals", "surface.csv"), ours("profiles", "profiles.csv")
    rows = [
        ["4000 resamples of the surface, 240 runs", "isoflop", intervals, intervals],
        ["profiles and laws with 4000 resamples, 64 runs", "isoflop", profiles, profiles],
    ]
    versions = "" if options.no_peers else peers(folder, options, rows)
    print(versions)
    table(
        ["what", "tool", "s", "CPU s", "MiB", "x isoflop's s", "x its CPU s"],
        [
            [what, tool, *shown(m), *(f"{m[k] / own[k]:.3g}" for k in ("seconds", "cpu"))]
            for what, tool, m, own in rows
        ],
    )
    print("\nGrowth with rows (no resamples) and with resamples (240 runs):\n")
    grown: list[tuple[int, int, dict[str, Any]]] = []
    for count in ROWS:
        simulated(count).to_csv(folder / f"{count}.csv", index=False)
        grown.append((count, 0, ours("rows", f"{count}.csv", 3 if count < 100_000 else 1)))
    grown += [
        (240, n, ours(f"resamples-{n}", "surface.csv", 3 if n < 100_000 else 1)) for n in RESAMPLES
    ]
    grown.append((100_000, 100, ours("both", "100000.csv", 1)))
    table(
        ["rows", "resamples", "s", "CPU s", "MiB", "CPU µs a row, or a row and resample"],
        [
            [f"{k:,}", f"{n:,}", *shown(m), f"{1e6 * m['cpu'] / (k * max(n, 1)):.3g}"]
            for k, n, m in grown
        ],
    )


def table(headings: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(headings) + " |\n|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def shown(measured: dict[str, Any]) -> list[str]:
    return [f"{measured['seconds']:.3g}", f"{measured['cpu']:.3g}", f"{measured['mib']:.0f}"]


def write_data(folder: Path) -> str:
    """surface.csv and profiles.csv; says what they are."""
    surface, profiles = REFERENCE / "chinchilla_epoch.csv", REFERENCE / "isoflop64_known_truth.csv"
    if surface.exists() and profiles.exists():
        raw = pd.read_csv(surface).nsmallest(240, "loss")
        frame = pd.DataFrame(
            {"params": raw["Model Size"], "flops": raw["Training FLOP"], "loss": raw["loss"]}
        )
        frame["tokens"] = frame["flops"] / (6.0 * frame["params"])
        known = pd.read_csv(profiles).rename(columns={"C": "budget", "N": "params", "D": "tokens"})
        source = "Data: the 240 Chinchilla runs as digitised by Epoch AI; 64 simulated runs of known truth"
    else:
        frame, known, source = (
            simulated(240),
            simulated(64),
            "Data: simulated studies of 240 and 64 runs",
        )
    frame.to_csv(folder / "surface.csv", index=False)
    known.to_csv(folder / "profiles.csv", index=False)
    return source


def simulated(runs: int) -> pd.DataFrame:
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


def child(python: str, script: str, case: str, data: Path, repeats: int) -> dict[str, Any]:
    command = [python, script, "--case", case, "--data", str(data), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def peers(folder: Path, options: argparse.Namespace, rows: list[list[Any]]) -> str:
    """Installs the peers, measures them and adds their rows; returns their versions."""
    subprocess.run([options.peers_python, "-m", "venv", str(folder / "venv")], check=True)
    python = str(folder / "venv" / "bin" / "python")
    installed = []
    for peer in PEERS:
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", peer],
            capture_output=True,
            text=True,
            check=False,
        )
        installed += [peer] if done.returncode == 0 else []
    script = str(Path(__file__).with_name("fit_peers.py"))
    surface, profiles = (row[2] for row in rows[:2])

    def add(peer: str, what: str, case: str, data: str, own: dict[str, Any], repeats: int) -> None:
        if peer in installed:
            rows.append([what, peer, child(python, script, case, folder / data, repeats), own])

    add(
        PEERS[1],
        "4000 resamples of the surface, least squares",
        "resamples",
        "surface.csv",
        surface,
        3,
    )
    add(
        PEERS[1],
        "profiles and their laws with 4000 resamples",
        "profiles",
        "profiles.csv",
        profiles,
        3,
    )
    add(
        PEERS[0], "one fit from the 3125 starts of its README", "one-fit", "surface.csv", surface, 1
    )
    left = [peer for peer in PEERS if peer not in installed]
    versions = f"Peers, on {python_version(python)}: {', '.join(installed)}"
    return versions + (f"; not for this Python: {', '.join(left)}.\n" if left else ".\n")


def python_version(python: str) -> str:
    return subprocess.run(
        [python, "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()


def machine() -> str:
    from importlib.metadata import version

    git = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
    )
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        "unknown CPU",
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "pandas"))
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, {cpu}, load {load:.1f} at the start; Python {platform.python_version()}, "
        + (f"{packages}; commit {git.stdout.strip()}")
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
