# Everything a newcomer or CI needs: `make demo`, `make test`, `make check`, `make bench`.
# Needs python3 (3.11 or newer) with venv. Variables: PYTHON, VENV, PIP_ARGS (such as an index for torch's CPU build).

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BENCHMARKS ?= $(sort $(wildcard benchmarks/bench_*.py))

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST ?= .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-matrix test-slow test-oldest check fix docs report lock bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
	while IFS="$$(printf '\t')" read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

NATIVE := src/coterie/native

# Reinstalled only when a pin, the package's own metadata or the native library's sources change.
$(STAMP): requirements.lock pyproject.toml hatch_build.py $(wildcard $(NATIVE)/*.[ch]) $(NATIVE)/build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Coterie needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	{ echo "$(PYTHON) cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

install: $(STAMP) ## Make .venv with the pinned packages and Coterie in it

demo: $(STAMP) ## Run the bundled model end to end, with proof of exactness
	$(BIN)/coterie demo

test: $(STAMP) ## Run the tests, but the slow ones and the matrix of models
	$(BIN)/python -m pytest -n auto -m "not slow and not matrix"

test-matrix: $(STAMP) ## Compare every Mixture-of-Experts model and router class of transformers with stock
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m matrix

test-slow: $(STAMP) ## Run the slow tests (kill tests, large models)
	$(BIN)/python -m pytest -m slow

# A second environment with the oldest transformers; what it lacks it finds in the first.
$(OLDEST_STAMP): $(STAMP) requirements-oldest.lock
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r requirements-oldest.lock
	$(BIN)/python scripts/borrow.py $(OLDEST)
	@touch $@

# Each of the two environments opens what the other one wrote.
test-oldest: $(OLDEST_STAMP) ## Run the tests that depend on transformers with the oldest release allowed
	COTERIE_OTHER_PYTHON=$(abspath $(BIN))/python $(OLDEST)/bin/python -m pytest -n auto -m "not slow and not matrix" \
	tests/hf tests/checkpoint tests/routing tests/integration tests/engine tests/profiles tests/analysis tests/versions tests/test_zoo.py

check: $(STAMP) ## Format, lint, types, layers, lock and generated docs: all that CI checks
	$(BIN)/python scripts/check.py

fix: $(STAMP) ## Mend formatting and what lint can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## Write the generated docs anew
	$(BIN)/python scripts/docs.py

report: $(STAMP) ## Record the bundled model on MATERIAL=FOLDER and write docs/report anew
	@test -n "$(MATERIAL)" || { echo "Say where texts, sounds and pictures are: make report MATERIAL=FOLDER" >&2; exit 1; }
	$(BIN)/python scripts/report.py $(MATERIAL)

lock: $(STAMP) ## Write requirements.lock from what is installed in .venv
	$(BIN)/python scripts/lock.py

bench: $(STAMP) ## Run the benchmarks; each prints its figures with machine and versions
	@test -n "$(BENCHMARKS)" || { echo "There is no benchmarks/bench_*.py." >&2; exit 1; }
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

clean: ## Remove .venv, caches and build results
	rm -rf $(VENV) $(OLDEST) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache benchmarks/work
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
