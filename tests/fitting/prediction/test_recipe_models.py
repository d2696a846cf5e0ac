"""The sweep file of one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from isoflop.config.sweep_file import load_sweep
from isoflop.config.yaml_values import parse_yaml
from isoflop.fitting.prediction.recipe_models import one_run_yaml
from isoflop.planning.plan import plan


@pytest.mark.parametrize("text", ["08", "010", "0o17", "1e5", "1.50"])
def test_its_values_read_the_same_by_yaml_1_1_and_1_2(tmp_path: Path, text: str) -> None:
    point = {"budgets": [4.5e10], "widths": [16], "seeds": [0], "extra": [], "replicates": []}
    values = {"name": text, "train.optimizer.eps": 1e-12, "train.z_loss": 5e-4}
    planned = plan("pocket", point | values)
    (file := tmp_path / "run.yaml").write_text(one_run_yaml(planned, ["a comment"]))
    values = parse_yaml(file.read_text())
    assert values == yaml.safe_load(file.read_text())
    assert (values["name"], values["train"]["optimizer"]["eps"]) == (text, 1e-12)
    assert load_sweep(file).train == planned.sweep.train
