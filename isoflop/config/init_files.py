"""Write files to start a study from: copies of a shipped sweep and a cluster profile."""

from __future__ import annotations

import difflib
from contextlib import ExitStack
from pathlib import Path

from isoflop.config.config_file import shipped_files
from isoflop.errors import ConfigError
from isoflop.files import replace_file

PROFILE_NAME = "h100"
PROFILE_FILE = "cluster.yaml"


def write_start(sweep: str, folder: Path, force: bool = False) -> tuple[Path, Path]:
    """Write `<sweep>.yaml` and `cluster.yaml`, with their comments, into a folder: both or neither.

    Args:
        sweep: name of a shipped sweep.
        folder: target folder; it is created if it does not exist.
        force: replace existing files.

    Returns:
        The paths of the sweep file and the cluster profile.

    Raises:
        ConfigError: an unknown sweep, an existing file, or a folder that can't be written to.
    """
    sweeps = shipped_files("sweeps")
    if sweep not in sweeps:
        nearest = difflib.get_close_matches(sweep, sweeps, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ConfigError(
            f"{sweep}: no shipped sweep of that name; {hint}shipped: {', '.join(sweeps)}"
        )
    targets = (folder / f"{sweep}.yaml", folder / PROFILE_FILE)
    sources = (sweeps[sweep], shipped_files("slurm")[PROFILE_NAME])
    for target in targets:
        if not force and target.exists():
            raise ConfigError(
                f"{target}: exists already; replace it with --force, or name another folder"
            )
    try:
        with ExitStack() as stack:
            for source, target in zip(sources, targets, strict=True):
                stack.enter_context(replace_file(target)).write_bytes(source.read_bytes())
    except OSError as problem:
        raise ConfigError(
            f"{folder}: can't be written to ({problem.strerror or problem})"
        ) from None
    return targets
