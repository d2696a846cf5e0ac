# Everything runs in .venv, which `make setup` fills; nothing needs to be activated.
# Needs make and a Python from 3.11 with venv. Another Python: make setup PYTHON=python3.12
# Other Pythons for test-versions: make test-versions PYTHONS="python3.13 /opt/python3.14/bin/python"

PYTHON ?= python3
PYTHONS ?= python3.12 python3.13
VENV := .venv
RUN := $(VENV)/bin/python -m

# Compile modules once, not in each of the thousands of processes that tests start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-long test-all test-versions test-gpu check format docs notebook \
  slurm-install slurm-up slurm-down clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/bin/python ## Make .venv and install everything; quick when there is nothing to do.
	@$(call needs_recent,$(VENV)/bin/python)
	@$(VENV)/bin/python scripts/set_up.py

demo: setup ## Run a real IsoFLOP study on this machine, in minutes, and print where its report is.
	$(VENV)/bin/isoflop run sweeps/pocket.yaml

test: setup ## Run the fast tests: under 3 minutes on 2 cores.
	$(RUN) pytest -m "not slow and not long" -n 3 --dist loadfile --durations=20

test-slow: setup ## Run the slow tests: a real SLURM, real training, killed processes.
	$(RUN) pytest -m "slow and not long" -n 3 --dist loadfile --durations=20

test-long: setup ## Run the long repetitions, before a release; benchmarks/README.md has the last result.
	$(RUN) pytest -m long -n 3 --dist loadfile --durations=20

test-all: setup ## Run every test that needs no GPU.
	$(RUN) pytest

test-versions: setup ## Run the tests without torch on Python 3.12 and 3.13 and with the lowest versions.
	$(VENV)/bin/python scripts/test_versions.py lowest $(PYTHONS)

test-gpu: setup ## Run the tests that need NVIDIA GPUs: one, and as many as there are up to 8.
	$(RUN) pytest -m gpu

check: setup ## Lint; check the format, the types and the allowed imports.
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) pyright
	$(VENV)/bin/lint-imports --no-cache

format: setup ## Fix what ruff can fix, and format.
	$(RUN) ruff check --fix
	$(RUN) ruff format

docs: setup ## Build the documentation into site/, which opens from disk; a broken link is an error.
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

notebook: setup ## Execute the notebooks of analysis/ again, in place.
	$(VENV)/bin/python -c "from nbclient.cli import main; main()" --inplace analysis/*.ipynb

slurm-install: ## Fetch SLURM from Debian or Ubuntu, for the test bed (needs root).
	slurm/testbed/testbed.sh install

slurm-up: ## Start a real SLURM cluster of 4 virtual nodes on this machine.
	slurm/testbed/testbed.sh up

slurm-down: ## Stop the cluster and remove its files.
	slurm/testbed/testbed.sh down

clean: ## Remove caches and builds; .venv and runs stay.
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find isoflop tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# Makes .venv if it is missing or its Python is gone.
$(VENV)/bin/python:
	@$(call needs_recent,$(PYTHON))
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || \
	  { echo "isoflop set-up: $(PYTHON) has no venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)

needs_recent = $(1) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || \
	  { echo "isoflop set-up: $(1) is no Python from 3.11; name one, e.g.: make setup PYTHON=python3.12" >&2; exit 1; }
