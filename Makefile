# Everything this repository does, on a machine that has Python 3.11+ with venv, and make.
#
#   make demo    real complaints, worked by real agents on a real PostgreSQL
#   make test    the tests
#
# Both make `.venv` first, from a lock file with hashes; the second time that takes no time.
# PYTHON=/path/to/python chooses another interpreter, VENV another place, ARGS is handed through:
#   make demo ARGS="--input complaints.csv"      make test ARGS="tests/demo -x"

SHELL = /bin/sh
VENV ?= .venv
BIN = $(VENV)/bin
PYTHON ?=
ARGS ?=

# Where packages come from (index, proxy, certificates) is the machine's business and is kept. What
# would send them elsewhere than into $(VENV), or compile them, is not.
PIP = env -u PYTHONPATH -u PYTHONHOME -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_PYTHON \
  -u PIP_CONSTRAINT -u PIP_REQUIREMENT -u PIP_NO_BINARY -u PIP_REQUIRE_HASHES -u PIP_NO_DEPS \
  -u PIP_PLATFORM -u PIP_DRY_RUN -u PIP_IGNORE_INSTALLED -u PIP_EDITABLE -u PIP_LOG \
  PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
  PIP_ROOT_USER_ACTION=ignore \
  $(BIN)/python -m pip
LOCKED = --quiet --require-hashes --only-binary :all:
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help demo crash test faults soak simulate nightly lint format mutants bench bench-check bench-growth audit sizes lock env wheel clean

help:  ## what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.demo-ready  ## install what the demo needs, and run it
	@$(BIN)/agentmesh demo $(ARGS)

crash: $(VENV)/.demo-ready  ## the same while workers are killed with SIGKILL
	@$(BIN)/agentmesh demo crash $(ARGS)

test: $(VENV)/.dev-ready  ## the tests; servers that are not there are skipped (in CI: fail)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

faults: $(VENV)/.dev-ready  ## every fault test, as often as it takes, against servers it starts itself
	@AGENTMESH_TEST_FIGURES=$$(mktemp) AGENTMESH_TEST_ROUNDS=1 $(BIN)/python -m pytest tests -m "numbered or faults" \
	  -n 2 --dist worksteal --durations=15 $(ARGS)

soak: $(VENV)/.dev-ready  ## the same with a new seed each time, again and again for MINUTES (60)
	@until=$$(($$(date +%s) + 60 * $(or $(MINUTES),60))); while [ $$(date +%s) -lt $$until ]; do \
	  AGENTMESH_TEST_ROUNDS=1 $(BIN)/python -m pytest tests -m "numbered or faults" $(ARGS) || exit 1; done

simulate: $(VENV)/.dev-ready  ## schedules from seeds, with faults; ARGS="--schedules 10000" for a night
	@$(BIN)/python -m tests.simulation $(ARGS)

nightly: $(VENV)/.dev-ready  ## 10,000 schedules; those that fail are shrunk and printed
	@$(BIN)/python -m tests.simulation --schedules 10000 --keep-going $(ARGS)

lint: $(VENV)/.dev-ready  ## format, lint, types and layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev-ready  ## put the code into its form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

mutants: $(VENV)/.dev-ready  ## that the tests catch every seeded bug
	@$(BIN)/python .ci/mutants.py $(ARGS)

bench: $(VENV)/.dev-ready  ## our figures on your machine; ARGS="W1 W3 --broker redis", ARGS="--help" for more
	@$(BIN)/python -m bench $(ARGS)

bench-check: $(VENV)/.dev-ready  ## whether W1 and W2 are as fast as they were, beside a hand-written loop
	@$(BIN)/python -m bench check $(ARGS)

bench-growth: $(VENV)/.dev-ready  ## what finished traces and churn cost; ARGS=--quick, GROWTH=empty,10k,100k,1M
	@$(BIN)/python -m bench growth $(ARGS)

audit: $(VENV)/.dev-ready  ## the locks against published advisories
	@$(BIN)/python .ci/audit.py requirements/dev.lock requirements/demo.lock

sizes: $(VENV)/.dev-ready  ## modules and functions over the sizes we aim at
	@$(BIN)/python .ci/sizes.py agentmesh workers

lock: $(VENV)/.dev-ready  ## write the lock files anew; UPGRADE=1 takes newer releases
	@$(BIN)/python -c "import uv" 2>/dev/null || $(PIP) install --quiet uv
	@$(LOCK) $(if $(UPGRADE),--upgrade) --extra embedded --extra embeddings --extra llm pyproject.toml requirements/dev.in \
	  -o requirements/dev.lock
	@$(LOCK) --extra embedded --extra llm pyproject.toml requirements/run.in \
	  -c requirements/dev.lock -o requirements/demo.lock
	@$(LOCK) --extra llm pyproject.toml requirements/run.in -c requirements/dev.lock -o requirements/run.lock

env: $(VENV)/.dev-ready  ## the development environment in $(VENV)

wheel: $(VENV)/.dev-ready  ## dist/agentmesh-*.whl
	@$(BIN)/hatchling build -t wheel

clean:  ## remove what was made (not the demo's data in .agentmesh)
	@rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache .grimp_cache

# --- the environment: the newest Python that is there, then exactly what the lock says -----------

$(BIN)/python:
	@set -e; for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	    >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$("$$python" --version)"; \
	    env -u PYTHONPATH -u PYTHONHOME "$$python" -m venv --clear "$(VENV)"; exit 0; fi; \
	  done; \
	  echo "no Python 3.11 or newer with venv and ensurepip was found; name one: make PYTHON=..." >&2; \
	  exit 1

$(VENV)/.demo-ready: requirements/demo.lock pyproject.toml | $(BIN)/python
	@if [ ! -e $(VENV)/.dev-ready ] || [ requirements/demo.lock -nt $(VENV)/.dev-ready ]; then \
	  echo "installing what the demo needs (once, about half a minute)"; \
	  $(PIP) install $(LOCKED) -r requirements/demo.lock; fi
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev-ready: requirements/dev.lock pyproject.toml | $(BIN)/python
	@echo "installing the development environment (once, about a minute)"
	@$(PIP) install $(LOCKED) -r requirements/dev.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@
