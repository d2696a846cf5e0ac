"""The pages of keys and columns in docs/reference hold what the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reference_pages
from reference_pages import PAGES, SCHEMAS, key_rows, read_attributes, update_page

from isoflop.config.grid_schema import Replicate
from isoflop.config.profile import Gpu, Profile
from isoflop.config.schema import Sweep
from isoflop.planning.run_spec import PLAN_COLUMNS
from isoflop.runs.loss_log import LOG_COLUMNS
from isoflop.runs.runs_table import RESULT_COLUMNS


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_page_has_the_keys_of_the_schema(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert update_page(page, SCHEMAS[name]) == page, "run: python scripts/reference_pages.py"


def test_a_changed_page_is_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (PAGES / "profile.md").read_text(encoding="utf-8")
    old = re.sub(r"\| `retries` .*\n", "", page)
    assert old != page
    for name in SCHEMAS:
        text = old if name == "profile" else (PAGES / f"{name}.md").read_text(encoding="utf-8")
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(reference_pages, "PAGES", tmp_path)
    reference_pages.main()
    assert (tmp_path / "profile.md").read_text(encoding="utf-8") == page
    with pytest.raises(ValueError, match="expected one pair of markers, found 0"):
        update_page("no markers", Profile)


@pytest.mark.parametrize(
    ("schema", "row"),
    [
        (Sweep, ("name", "the file's stem")),
        (Sweep, ("seeds", "`[0]`")),
        (Sweep, ("data.codec", "required")),
        (Sweep, ("widths[].until", "`null`")),
        (Sweep, ("replicates[].width", "required in an entry")),
        (Sweep, ("train.optimizer.eps", "`1.0e-15`")),
        (Sweep, ("metric.tokens", "`65536`")),
        (Profile, ("gpu", "`null`")),
        (Profile, ("gpu.type", "required with `gpu`")),
        (Profile, ("slurm", "`{}`")),
        (Profile, ("preemptible", "`false`")),
    ],
)
def test_keys_and_defaults(schema: type, row: tuple[str, str]) -> None:
    assert row in {(key, default) for key, default, _ in key_rows(schema)}


def test_texts_of_keys() -> None:
    assert read_attributes(Gpu)["type"] == "type of the GPUs, such as `h100-sxm`."
    assert set(read_attributes(Replicate)) == {"budget", "width", "seeds"}
    for schema in SCHEMAS.values():
        rows = [*key_rows(schema)]
        assert len({key for key, _, _ in rows}) == len(rows)
        assert all(meaning.endswith(".") and "\n" not in meaning for _, _, meaning in rows)


def names_in_table(heading: str) -> Iterator[str]:
    page = (PAGES / "files.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for first_cell in re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", first_cell)


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("plan.parquet", PLAN_COLUMNS),
        ("runs.parquet", RESULT_COLUMNS),
        ("loss/*.parquet", LOG_COLUMNS),
    ],
)
def test_every_column(heading: str, columns: dict[str, Any]) -> None:
    assert [*names_in_table(heading)] == [*columns]
