#!/usr/bin/env bash
# submitit 1.5.3 with setuptools 84: `submitit.JobEnvironment()` and every job fail with
# ModuleNotFoundError: No module named 'pkg_resources', although submitit imports without a warning
# and submits. It finds its plug-ins through pkg_resources, which setuptools no longer has, and does
# not declare setuptools. Expected: a declared dependency, or an error at the import. The first to
# notice is the job, after its time in the queue. submitit 1.5.4 does without.
# Seen on 2026-12-01, Python 3.11, Debian 12.
# Exit code 0 while that holds, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
cat >"$folder/job.py" <<'PY'
import sys

import submitit

executor = submitit.LocalExecutor(sys.argv[1])
job = executor.submit(lambda: submitit.JobEnvironment().num_tasks)
try:
    print(f"{submitit.__version__}: {job.result()}")
except Exception:
    last = job.stderr() or ""
    print(f"{submitit.__version__}: the job failed:", last.strip().splitlines()[-1])
    sys.exit("pkg_resources" in last)
PY
run() { # VERSION
  "$python" -m pip --disable-pip-version-check install --quiet "submitit==$1" setuptools==84.2.1
  "$python" "$folder/job.py" "$folder/logs-$1"
}
if run 1.5.3; then exit 1; fi
run 1.5.4
