# Everything a newcomer or CI needs: `make demo`, `make test`, `make check`, `make bench`.
# Needs python3 (3.11 or newer) with venv. Variables: PYTHON, VENV, PIP_ARGS (such as an index for torch's CPU build).

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BENCHMARKS ?= $(sort $(wildcard benchmarks/bench_*.py))

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST ?= .venv-oldest
BETWEEN ?= .venv-between
NEWEST ?= .venv-newest
WHEELS ?= .venv-wheels
CLIENTS ?= .venv-clients
AUDIT ?= .venv-audit
DOCS ?= .venv-docs
RAY ?= .venv-ray
TORCHVISION ?= .venv-torchvision

# Tests start many processes. Where nothing compiled may be kept, each compiles Coterie again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-matrix test-slow test-oldest test-between test-newest test-clients test-ray test-torchvision check audit fix docs \
site report talker lock bench wheels release-check clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
	while IFS="$$(printf '\t')" read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

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
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not matrix and not clients and not ray"

test-matrix: $(STAMP) ## Compare every Mixture-of-Experts model and router class of transformers with stock
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m matrix

test-slow: $(STAMP) $(WHEELS)/.installed ## Run the slow tests (kill tests, large models, wheels)
	COTERIE_WHEELS_PYTHON=$(abspath $(WHEELS))/bin/python $(BIN)/python -m pytest -m slow

# Further environments: other releases of transformers, what makes wheels, and clients of others. What they lack they find in the first.
$(OLDEST)/.installed: requirements-oldest.lock
$(BETWEEN)/.installed: requirements-between.lock
$(WHEELS)/.installed: requirements-wheels.lock
$(CLIENTS)/.installed: requirements-clients.lock
$(RAY)/.installed: requirements-ray.lock
$(TORCHVISION)/.installed: requirements-torchvision.lock
$(OLDEST)/.installed $(BETWEEN)/.installed $(WHEELS)/.installed $(CLIENTS)/.installed $(RAY)/.installed \
$(TORCHVISION)/.installed: $(STAMP)
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r $(filter requirements%,$^)
	$(BIN)/python scripts/borrow.py $(@D)
	@touch $@

# Everything that depends on transformers. Each of two environments opens what the other one wrote.
RELEASE_TESTS_IN = COTERIE_OTHER_PYTHON=$(abspath $(BIN))/python $(1)/bin/python -m pytest -n auto
RELEASE_DIRS := tests/hf tests/checkpoint tests/routing tests/passes tests/integration tests/engine tests/generation \
tests/profiles tests/analysis tests/versions tests/test_zoo.py

test-oldest: $(OLDEST)/.installed ## Run the tests that depend on transformers with the oldest release allowed
	$(call RELEASE_TESTS_IN,$(OLDEST)) -m "not slow and not matrix" $(RELEASE_DIRS)

# What a release between the two ends can break are classes of models and their routers, and how a pass is called.
test-between: $(BETWEEN)/.installed ## Run the matrix and what sees forward passes with a release between the ends
	OMP_NUM_THREADS=1 $(call RELEASE_TESTS_IN,$(BETWEEN)) -m "not slow" tests/versions tests/routing tests/engine/test_matrix.py \
	tests/passes/test_forward_call.py tests/integration/test_token_forwards.py tests/engine/test_statistics.py \
	tests/engine/test_loader.py tests/engine/test_recording.py tests/generation/test_steps.py tests/hf/test_generation_steps.py

test-newest: $(STAMP) ## Run what test-oldest runs with the newest release below 6, if it is newer than the pinned one
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(BIN)/python scripts/borrow.py $(NEWEST)
	@$(BIN)/python scripts/newest.py $(NEWEST) $(PIP_ARGS); told=$$?; \
	if [ $$told = 3 ]; then exit 0; elif [ $$told != 0 ]; then exit $$told; fi; \
	$(call RELEASE_TESTS_IN,$(NEWEST)) -m "not slow and not matrix" $(RELEASE_DIRS)

# The clients have one environment, the server that they ask has another: neither sees the other's releases.
test-clients: $(CLIENTS)/.installed ## Ask a server through clients that others made
	COTERIE_OTHER_PYTHON=$(abspath $(BIN))/python $(CLIENTS)/bin/python -m pytest -n auto --dist loadfile -m clients tests/clients

test-ray: $(RAY)/.installed ## Run replicas and workers on a Ray of several processes, and kill some of them
	$(RAY)/bin/python -m pytest -m ray tests/on_ray

test-torchvision: $(TORCHVISION)/.installed ## Compare inputs with those of transformers' own processors
	PYTHONPATH=tests $(TORCHVISION)/bin/python -m pytest -n auto -p torchvision_operators tests/generation/test_full_processors.py

check: $(STAMP) ## Format, lint, types, layers, lock and generated docs: all that CI checks
	$(BIN)/python scripts/check.py

audit: ## Look for known advisories about pinned packages; needs a network
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(PYTHON) scripts/advisories.py $(AUDIT) $(PIP_ARGS)

fix: $(STAMP) ## Mend formatting and what lint can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## Write the generated docs anew
	$(BIN)/python scripts/docs.py

# The site has an environment of its own: Coterie needs none of its packages. A broken link or anchor fails.
$(DOCS)/.installed: requirements-docs.lock
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r $<
	@touch $@

site: $(DOCS)/.installed ## Build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict
	@echo "Open build/site/index.html."

report: $(STAMP) ## Record the bundled model on MATERIAL=FOLDER and write docs/report anew
	@test -n "$(MATERIAL)" || { echo "Say where texts, sounds and pictures are: make report MATERIAL=FOLDER" >&2; exit 1; }
	$(BIN)/python scripts/report.py $(MATERIAL)

talker: $(STAMP) ## Train the talker of the bundled omni model anew (a quarter of an hour; needs espeak-ng)
	$(BIN)/python scripts/train_talker.py

lock: $(STAMP) ## Write requirements.lock from what is installed in .venv
	$(BIN)/python scripts/lock.py

bench: $(STAMP) ## Run the benchmarks; each prints its figures with machine and versions
	@test -n "$(BENCHMARKS)" || { echo "There is no benchmarks/bench_*.py." >&2; exit 1; }
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

wheels: $(WHEELS)/.installed ## Make everything that a package index gets, in dist/
	$(WHEELS)/bin/python scripts/wheels.py dist

release-check: $(STAMP) ## Say what is still missing for a release (RELEASING.md)
	$(BIN)/python scripts/releasing.py

clean: ## Remove environments, caches and build results
	rm -rf $(VENV) $(OLDEST) $(BETWEEN) $(NEWEST) $(WHEELS) $(CLIENTS) $(AUDIT) $(DOCS) $(RAY) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache benchmarks/work
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
