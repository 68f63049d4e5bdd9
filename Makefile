# `make run` and `make test` are the two commands; the rest is for developers. Everything lands in .venv.
# ARGS is passed on: make test ARGS="-x --durations=5".
PYTHON ?= python3
# Tests start hundreds of processes; without bytecode each of them would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Files with slow tests come first (tests/conftest.py), in the order of their collection.
SPREAD := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# With ROOM, the tests of one room in one process, without lint: `make test ROOM=worker/judge`.
TESTS := $(if $(ROOM),tests/$(ROOM),$(SPREAD))

.PHONY: help run test test-all lint gpu-test gpu-parity gpu-bench selftest soak fuzz fleet-test history chaos
.PHONY: container-test bench-service coverage clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "  make test ROOM=worker/judge: the tests of one room (a folder or a file below tests/), without lint"

run: $(VENV)/.installed-worker  ## Serve, run a small comparison, print its verdict, keep serving
	$(BIN)/clipwatch up --demo

test: $(VENV)/.installed-dev $(if $(ROOM),,lint)  ## Lint, type check, walls, and the tests that can run here
	$(BIN)/python -m pytest -m "not combination" --durations 20 $(TESTS) $(ARGS)

test-all: $(VENV)/.installed-dev $(if $(ROOM),,lint)  ## The same, with combinations that rarely break
	$(BIN)/python -m pytest --durations 20 $(TESTS) $(ARGS)

coverage: $(VENV)/.installed-dev  ## The same tests, and which lines they reach
	$(BIN)/python -m pytest $(SPREAD) --cov --cov-report=term $(ARGS)

lint: $(VENV)/.installed-dev  ## Style, types, walls between rooms, declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m deptry service worker migrations
	$(BIN)/python -m deptry flash_clipping/src --config flash_clipping/pyproject.toml
	$(BIN)/python -m deptry tests --ignore DEP002,DEP004
	$(BIN)/mypy

gpu-test: $(VENV)/.installed-dev  ## The tests that need a GPU
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

gpu-parity: $(VENV)/.installed-dev  ## The table of docs/results: default comparison on 1, 2 and 4 GPUs
	$(BIN)/python -m tests.gpu.parity --world-sizes 1,2,4 --output docs/results/parity.md

fleet-test: $(VENV)/.installed-dev  ## Arms over hosts in network namespaces, and what goes wrong there; needs root
	FLEET_TESTS=1 $(BIN)/python -m pytest --timeout 900 tests/worker/fleet $(ARGS)

fuzz: $(VENV)/.installed-dev  ## Many requests that the OpenAPI document allows and forbids
	FUZZ_EXAMPLES=500 $(BIN)/python -m pytest --timeout 3000 tests/service/api/test_fuzz.py $(ARGS)

selftest: $(VENV)/.installed-dev  ## Are all faults found by the full suite?
	$(BIN)/clipwatch selftest full $(ARGS)

soak: $(VENV)/.installed-dev  ## Do clean comparisons alarm?
	$(BIN)/python -m tests.soak --runs 200 $(ARGS)

history: $(VENV)/.installed-dev  ## Check commits of a clone through a running service: make history OPACUS=clone
	$(BIN)/python -m tests.opacus_history $(OPACUS) $(ARGS)

chaos: $(VENV)/.installed-dev  ## Is anything lost or doubled while workers and servers are killed?
	$(BIN)/python -m tests.chaos --jobs 200 --seed 1 2 3 $(ARGS)

container-test: $(VENV)/.installed-dev  ## Images, compose and the container launcher on the engine of this host
	@docker info >/dev/null 2>&1 || { echo "no container engine answers: start Docker or set DOCKER_HOST" >&2; exit 1; }
	@docker compose version >/dev/null || { echo "docker has no compose plugin" >&2; exit 1; }
	docker compose build
	$(BIN)/python -m pytest -m engine tests/container $(ARGS)

bench-service: $(VENV)/.installed-dev  ## Is the service fast at its own job? About half an hour
	$(BIN)/python -m tests.benchmarks.service --output docs/results/service.md $(ARGS)

gpu-bench: $(VENV)/.installed-dev  ## Tables of kernels and of whole steps beside Opacus' ghost; needs a GPU
	$(BIN)/python -m tests.benchmarks.norms --output docs/results/h200-kernels.md $(ARGS)
	$(BIN)/python -m tests.benchmarks.steps $(ARGS)

# The base install is the service alone; a worker adds torch, Opacus and Triton; dev adds what tests need.
$(VENV)/.installed-worker: pyproject.toml flash_clipping/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ./flash_clipping --editable '.[worker]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml flash_clipping/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ./flash_clipping --editable '.[worker,dev]'
	touch $@

clean:  ## Remove the environment and everything that runs and tests left
	rm -rf $(VENV) .clipwatch clipwatch-runs .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
