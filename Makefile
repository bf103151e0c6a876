# `make demo` and `make test` work in a fresh clone; `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
FAULTS_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
USER_STAMP := $(VENV)/.thaw-user
DEV_STAMP := $(VENV)/.thaw-dev
DOCS_STAMP := $(VENV)/.thaw-docs
# Editable for the demo too: the code that runs is then always that of this folder, with nothing to install again after a change.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: help demo web test coverage faults check format docs bench bench-keras clean

help: ## list the targets
	@echo "Targets (PYTHON=$(PYTHON) and VENV=$(VENV) can be given: make demo PYTHON=python3.12):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: $(USER_STAMP) ## set up .venv if need be, then train on the bundled digits and write a report
	@$(BIN)/thaw train digits

web: ## fetch onnxruntime-web by npm for the page of thaw demo, where the installation could not
	@$(PYTHON) hatch_build.py

test: $(DEV_STAMP) ## set up .venv if need be, then run the tests, one process per core (PYTEST_ARGS=... is passed on)
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

coverage: $(DEV_STAMP) ## run the tests and measure branch coverage, which has a floor in pyproject.toml
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(PYTEST_ARGS)

faults: $(DEV_STAMP) ## set up .venv if need be, then run the fault campaign (FAULTS_ARGS=... is passed on); see CONTRIBUTING.md
	@$(BIN)/python tests/faults $(FAULTS_ARGS)

check: $(DEV_STAMP) ## lint, formatting, types, and the floors of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP) ## format the code and apply the linter's automatic fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(DOCS_STAMP) ## build the documentation site into site/, with warnings as errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(USER_STAMP) ## time stage 1 against PyTorch and Keras, by hand (BENCH_ARGS=... is passed on)
	@$(BIN)/python bench/stage1.py $(BENCH_ARGS)

bench-keras: ## install Keras on TensorFlow for the benchmark into bench/.venv-keras
	@$(PYTHON) -m venv bench/.venv-keras
	@bench/.venv-keras/bin/python -m pip install --quiet --requirement bench/requirements-keras.txt

clean: ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find src tests bench docs -type d -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)' 2>/dev/null || { \
		found=$$($(PYTHON) --version 2>&1) || found="not there"; \
		echo "thaw needs Python 3.11 or newer; $(PYTHON) is $$found." >&2; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

$(USER_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[dev])
	@touch $(USER_STAMP)

$(DOCS_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[docs])
	@touch $(USER_STAMP)

# Install $(1) into the virtual environment, and leave the stamp that says so.
define install
@$(BIN)/python -c '$(IS_NEW_ENOUGH)' || { \
	echo "$(VENV) holds $$($(BIN)/python --version), but thaw needs 3.11 or newer: remove $(VENV) and run make again." >&2; exit 1; }
@$(BIN)/python -m pip --version >/dev/null || { \
	echo "$(VENV) has no pip: remove $(VENV) and run make again." >&2; exit 1; }
@echo "Installing thaw into $(VENV) (the first time takes some minutes)"
@$(PIP_INSTALL) --editable '$(1)'
@touch $@
endef
