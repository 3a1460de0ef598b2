# Every target sets up what it needs, in a virtual environment of its own. Needed on the machine:
# Python >= 3.11 (with venv), git, make.

PYTHON ?= python3
VENV ?= .venv
# More arguments for pytest or the benchmarks: make test ARGS="tests/core -x"
ARGS ?=
# Not empty, it has the tests measured: make test COVERAGE=1, and then make gates.
COVERAGE ?=

python := $(VENV)/bin/python
# Stamps: what is installed into the environment, repeated when pyproject.toml has changed.
package := $(VENV)/.installed-package
test := $(VENV)/.installed-test
lint := $(VENV)/.installed-lint
types := $(VENV)/.installed-types
ray := $(VENV)/.installed-ray
mutants := $(VENV)/.installed-mutants
# -qq: only errors are shown.
install := $(python) -m pip install -qq --disable-pip-version-check
# $(call gate,FOLDER,PERCENT): fail if the tests take fewer of the branches in there.
gate = echo "== quantum_async/$(1): at least $(2) %"; $(python) -m coverage report --skip-covered \
	--include='quantum_async/$(1)*' --fail-under=$(2)

# No questions to the registry about newer versions; what is installed is what runs.
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installations into one environment at a time would spoil it.
.NOTPARALLEL:
.PHONY: help run test test-ray coverage gates mutants torture check lint types test-all wheel \
	bench bench-peers clean

help: ## List the targets
	@echo "make run and make test do all set-up themselves. Variables: PYTHON=$(PYTHON) VENV=$(VENV)"
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1|/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r target says; do printf '  make %-11s %s\n' "$$target" "$$says"; done

run: $(package) ## Build a search index over the standard library, or the folder DIR=…
	@$(python) -m examples.search_index --out out $(if $(DIR),"$(DIR:~/%=$(HOME)/%)")

test: $(test) ## Run all the tests; ARGS=… for pytest
	@$(if $(COVERAGE),$(python) -m coverage erase)
	@$(python) $(if $(COVERAGE),-m coverage run) -m pytest $(ARGS)

test-ray: $(test) $(ray) ## Run the tests of units on a Ray cluster (installs 240 MB)
	@$(python) -m pytest -m cluster tests/cluster/test_ray.py $(ARGS)

coverage: $(test) ## Run all the tests, and see to it that they take the branches they should
	@$(MAKE) --no-print-directory test COVERAGE=1
	@$(MAKE) --no-print-directory gates

gates: $(test) ## The second half of that, after make test COVERAGE=1
	@if ls .coverage.* >/dev/null 2>&1; then $(python) -m coverage combine --append --quiet; fi
	@failed=0; \
	$(call gate,core/,99) || failed=1; \
	$(call gate,engine/,98) || failed=1; \
	$(call gate,,95) || failed=1; \
	exit $$failed

mutants: $(mutants) ## Change the decision core in every small way, and see that a test fails (5 min)
	@$(python) -m tests.mutants

torture: $(test) ## Hard use with fresh seeds, for MINUTES=10
	@$(python) -m tests.torture --minutes $(or $(MINUTES),10)

check: lint $(types) $(test) ## Quick look: linters, mypy, and the tests that are not slow
	@$(python) -m mypy
	@$(python) -m pytest -q -m "not slow" $(ARGS)

lint: $(lint) ## Linter and formatter (ruff), which change nothing
	@failed=0; \
	$(python) -m ruff check || failed=1; \
	$(python) -m ruff format --check || failed=1; \
	exit $$failed

types: $(types) ## Type checkers: mypy, and pyright on the typed API file
	@failed=0; \
	$(python) -m mypy || failed=1; \
	$(python) -m pyright --pythonpath $(python) || failed=1; \
	exit $$failed

test-all: ## Run all the tests on every Python from 3.11 to 3.14 that is found
	@failed=; tried=; \
	for found in $$(.ci/pythons); do \
		version=$${found%%=*}; \
		echo "== Python $$version"; \
		$(MAKE) --no-print-directory test PYTHON="$${found#*=}" VENV=".venv-$$version" \
			|| failed="$$failed $$version"; \
		tried="$$tried $$version"; \
	done; \
	if [ -z "$$tried" ]; then echo "No Python from 3.11 to 3.14 was found." >&2; exit 1; fi; \
	if [ -n "$$failed" ]; then echo "Tests failed on:$$failed" >&2; exit 1; fi; \
	echo "Tests passed on:$$tried"

wheel: $(python) ## Build the wheel, install it elsewhere and look at it
	@.ci/check-wheel $(python)

bench: $(package) ## Measure; ARGS=… for the benchmarks
	@$(python) -m benchmarks $(ARGS)

bench-peers: $(package) ## Measure others beside us, each installed in .venv-peers; ARGS="--only dask,ray"
	@$(python) -m benchmarks.peers $(ARGS)

clean: ## Remove the environments, caches and everything built
	rm -rf .venv .venv-3.* .venv-peers build dist out mutants .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find quantum_async tests examples benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

# -- set-up -----------------------------------------------------------------------------------

$(python):
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "There is no '$(PYTHON)' here. Name a Python >= 3.11: make PYTHON=python3.12 …" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "quantum_async needs Python 3.11 or later, but '$(PYTHON)' is" \
			"$$("$(PYTHON)" --version 2>&1). Name a newer one: make PYTHON=python3.12 …" >&2; \
		exit 1; }
	@echo "Setting up $(VENV) with $$("$(PYTHON)" --version) …"
# What is left of an environment whose Python has gone away would be in the way.
	@rm -rf $(VENV)/bin $(VENV)/lib $(VENV)/lib64 $(VENV)/.installed-*
	@"$(PYTHON)" -m venv $(VENV)
# pip before 25.1 knows no dependency groups.
	@$(install) --upgrade "pip>=25.1"

$(package): $(python) pyproject.toml
	@echo "Installing quantum_async …"
	@$(install) --editable .
	@touch $@

$(test): $(package) pyproject.toml
	@echo "Installing what the tests need …"
	@$(install) --group test
	@touch $@

$(ray): $(test) pyproject.toml
	@echo "Installing Ray …"
	@$(install) --group ray
	@touch $@

$(lint): $(python) pyproject.toml
	@echo "Installing the linter …"
	@$(install) --group lint
	@touch $@

$(mutants): $(test) pyproject.toml
	@echo "Installing the mutation tester …"
	@$(install) --group mutants
	@touch $@

$(types): $(test) pyproject.toml
	@echo "Installing the type checkers …"
	@$(install) --group types
	@touch $@
