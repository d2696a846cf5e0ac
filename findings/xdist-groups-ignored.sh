#!/usr/bin/env bash
# pytest 9.2.0 with pytest-xdist 3.8.0: `--dist loadgroup` runs without a word and ignores the mark
# `xdist_group`: tests of one group run in several processes, so that a session fixture that they
# share (a server, a cluster) is made once in each. Documented behaviour: all tests of a group run in
# one process. pytest-xdist appends the group to `item._nodeid`, which pytest 9.2 no longer reads.
# `--dist loadfile` and a scheduler of one's own (`pytest_xdist_make_scheduler`) do work.
# Seen on 2026-11-30, Python 3.11, Debian 12: the six tests of one group ran in 2 processes.
# Exit code 0 while that holds, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pytest==9.2.0 pytest-xdist==3.8.0
cat >"$folder/test_group.py" <<'PY'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(6))
def test_member(number, record_property):
    time.sleep(0.3)
    with open(os.environ["SEEN"], "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PY
cd "$folder"
SEEN="$folder/seen" venv/bin/python -m pytest -q -n 2 --dist loadgroup test_group.py
processes=$(sort -u seen | wc -l)
echo "processes that ran the one group: $processes (documented: 1)"
[[ $processes == 2 ]]
