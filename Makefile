# Everything a user or a contributor needs; each target makes what it depends on.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
CLUSTER := PYTHONPATH=cluster $(PY) -m pds_cluster
PYTHON ?= python3
RUNS ?= 20000
WORKERS ?= 3
# Where the environment has set it, each of some hundred processes compiles its modules anew.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q -n $(WORKERS) --dist worksteal

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "PDServing needs Python 3.11 or newer: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@test -x $(VENV)/bin/uv || $(PY) -m pip install --quiet uv
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	@touch $@

venv: $(VENV)/.ready  ## the Python environment, in .venv

demo: $(VENV)/.ready  ## cluster, chart, a PDServing, a streamed answer, the URL
	$(PY) examples/demo.py

test: check unit  ## what a contributor runs before a commit: linters, types, tests

check: $(VENV)/.ready  ## ruff, mypy --strict, import contracts, generated files
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	@{ $(VENV)/bin/pds-operator crd | diff -u crds/pdservings.yaml - \
	  && $(VENV)/bin/pds-operator crd --chart | diff -u charts/pdserving/templates/crd.yaml -; } \
	  || { echo "generated files have drifted: run make gen" >&2; exit 1; }

unit: $(VENV)/.ready  ## the tests that need no cluster
	@$(CLUSTER) helm > /dev/null
	$(PYTEST) -m 'not cluster and not gpu and not soak'

test-all: check  ## all tests there are, whole matrices and soaks among them
	@$(CLUSTER) helm > /dev/null
	$(PYTEST) -m 'not cluster and not gpu'
	$(MAKE) soak e2e-all

soak: $(VENV)/.ready simulate  ## the operator's lives, schedules of stages and dp ranks, layouts at random
	$(PY) -m pds_simulation.schedules
	OMP_NUM_THREADS=1 $(PY) -m pds_simulation.dp_schedules
	PDS_LIVES=300 OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q tests/engine/scheduler/world/random_groups/test_random_groups.py
	PDS_PARITY_SAMPLE=40 OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q -s tests/engine/worker/test_parity.py

simulate: $(VENV)/.ready  ## the operator's cluster through 20,000 random lives
	OMP_NUM_THREADS=1 $(PY) tests/operator/simulate.py --runs $(RUNS) --processes $$(nproc)

simulate-briefly: $(VENV)/.ready  ## as many of them as three minutes hold on one core
	OMP_NUM_THREADS=1 $(PY) tests/operator/simulate.py --seconds 180

e2e: $(VENV)/.ready cluster-up  ## the tests on the local Kubernetes, but for the long ones
	$(PY) tests/cluster/lanes.py

e2e-all: $(VENV)/.ready cluster-up  ## all tests on the local Kubernetes
	$(PY) tests/cluster/lanes.py --soak

gen: $(VENV)/.ready  ## files generated from code: the CRD, the contract between releases
	$(PY) tests/contract.py --write
	@mkdir -p .cache
	$(VENV)/bin/pds-operator crd > .cache/crd.yaml && mv .cache/crd.yaml crds/pdservings.yaml
	$(VENV)/bin/pds-operator crd --chart > .cache/crd.yaml \
	  && mv .cache/crd.yaml charts/pdserving/templates/crd.yaml

cluster-up: $(VENV)/.ready  ## a real Kubernetes on this machine (PDS_CONTEXT=name: use yours)
	$(CLUSTER) up

cluster-down: $(VENV)/.ready  ## stop it and leave nothing behind
	$(CLUSTER) down

clean:  ## the environment and caches of this checkout
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.PHONY: help venv demo test test-all soak check unit simulate simulate-briefly e2e e2e-all gen cluster-up cluster-down clean
