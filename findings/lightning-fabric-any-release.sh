#!/usr/bin/env bash
# lightning 2.6.6: its package has no `lightning_fabric`; that module comes with pytorch-lightning,
# which lightning requires without any version. Expected: the same release, since both are built
# from one source. An environment that already has an older pytorch-lightning keeps it, and
# `import lightning_fabric` loads another release than `lightning.__version__`. A program that
# imports lightning_fabric has to require pytorch-lightning.
# Seen on 2026-12-01, Python 3.11, Debian 12: lightning 2.6.6 beside lightning_fabric of 2.5.6.
# Exit code 0 while that holds, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip --disable-pip-version-check)
# Without dependencies: torch is not needed to see which releases are accepted.
"${pip[@]}" install --quiet --no-deps pytorch-lightning==2.5.6
"${pip[@]}" install --quiet --no-deps lightning==2.6.6
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import files, requires, version

required = [text for text in requires("lightning") or [] if text.startswith("pytorch-lightning")]
owners = [
    name
    for name in ("lightning", "pytorch-lightning")
    if any(path.parts[0] == "lightning_fabric" for path in files(name) or [])
]
print(f"lightning {version('lightning')} requires: {required}")
print(f"lightning_fabric belongs to: {owners}, release {version('pytorch-lightning')}")
sys.exit(not (required == ["pytorch-lightning"] and owners == ["pytorch-lightning"]))
PY
