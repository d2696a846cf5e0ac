"""Trainer `simulated`: losses from a law with noise, in milliseconds, to rehearse a study."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoflop.planning.trainers import find_law
from isoflop.runs.loss_log import log_row
from isoflop.runs.run_directory import RunDirectory, State
from isoflop.shapes import ModelShape

NOISE_SHARE = 0.003
"""Relative standard deviation of a run's final loss between seeds."""


def simulate(run: RunDirectory, law: str) -> State:
    """Write the loss log that a law predicts for a run, and mark the run as done and simulated.

    Args:
        run: directory of the run.
        law: name or file of the law.

    Raises:
        ConfigError: an unknown law.
    """
    surface = find_law(law)
    config = run.config()
    plan, shape = config["run"], ModelShape(**config["identity"]["shape"])
    generator = np.random.default_rng([plan["seed"], *run.run_id.encode()])
    shift = float(np.exp(NOISE_SHARE * generator.standard_normal()))
    rows: list[dict[str, Any]] = []
    points = np.unique(
        np.ceil(np.geomspace(1, plan["steps"], config["log_points"])).astype(int)
    ).tolist()
    evals = [-(-plan["steps"] * k // config["evals"]) for k in range(1, config["evals"] + 1)]
    for split, steps in (("train", points), (config["metric"]["set"], sorted(set(evals)))):
        for step in steps:
            tokens = step * plan["batch_size"] * shape.seq_len
            loss = shift * float(surface.loss(shape.params_total, tokens))
            known = {
                "split": split,
                "kind": config["metric"]["kind"],
                "targets": tokens,
                "loss": loss,
            }
            rows.append(
                log_row(shape, plan["batch_size"], step, **known, lr=plan["lr"], wall_s=0.0)
            )
    run.truncate_log(0)
    run.append_log(sorted(rows, key=lambda row: (row["step"], row["split"])))
    run.mark_done()
    last = {"step": plan["steps"], "loss": rows[-1]["loss"], "loss_split": rows[-1]["split"]}
    run.set_state("done", steps=plan["steps"], **last, simulated=True)
    return "done"
