# The verbs of this repository. `make demo` and `make test` set up all they need; the second run costs seconds.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLD := .venv-ipykernel6
STAMPS := .make
SOURCES := $(shell find js/src js/build.mjs js/package.json -type f)

# An editable install builds the page module once more, by the way, and npm then writes its lock file anew, as it was: what was
# made before that is not older for it. In the order in which one is made of the other; what comes later is not made yet.
SETTLED = touch -c $(STAMPS)/npm && touch -c $(STAMPS)/bundle

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMPS)/npm: js/package-lock.json
	@mkdir -p $(STAMPS)
	cd js && npm ci --silent --no-fund --no-audit
	@touch $@

$(STAMPS)/bundle: $(STAMPS)/npm $(SOURCES)
	cd js && npm run --silent build
	@touch $@

# Built first: an editable install carries the page module that is there.
$(STAMPS)/venv: pyproject.toml $(STAMPS)/bundle
	@mkdir -p $(STAMPS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@$(SETTLED) && touch $@

# The oldest kernel we promise to work with, beside the newest in the first environment.
$(STAMPS)/ipykernel6: pyproject.toml $(STAMPS)/bundle
	@mkdir -p $(STAMPS)
	test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --upgrade pip
	$(OLD)/bin/python -m pip install --quiet --editable . 'ipykernel==6.31.*'
	@$(SETTLED) && touch -c $(STAMPS)/venv && touch $@

$(STAMPS)/interpreters: pyproject.toml scripts/interpreters.py $(STAMPS)/bundle
	$(PYTHON) scripts/interpreters.py setup
	@$(SETTLED) && touch -c $(STAMPS)/venv $(STAMPS)/ipykernel6 && touch $@

$(STAMPS)/chromium:
	@mkdir -p $(STAMPS)
	$(PYTHON) scripts/chromium.py
	@touch $@

setup: $(STAMPS)/venv $(STAMPS)/ipykernel6 $(STAMPS)/interpreters $(STAMPS)/chromium ## make the environments

lint: $(STAMPS)/venv ## ruff, mypy, import contracts, biome, tsc
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports > $(STAMPS)/imports.log || { cat $(STAMPS)/imports.log; exit 1; }
	cd js && npm run --silent lint && npm run --silent check

unit: $(STAMPS)/interpreters $(STAMPS)/npm ## unit tests: vitest, and pytest on each Python that is here
	cd js && npm test --silent
	$(PYTHON) scripts/interpreters.py test

test: setup lint unit ## set up, then run every check
	$(BIN)/python -m pytest

mutants: setup ## break the house on purpose, and see each break caught
	$(BIN)/python scripts/mutants.py

soak: setup ## the stress tests at full size; writes tests/soak.md
	$(BIN)/python scripts/soak.py

demo: $(STAMPS)/venv ## two notebooks side by side in JupyterLab, sharing one live state
	$(BIN)/python scripts/demo.py

bench: setup ## the figures, as medians and ratios
	PYTHONPATH=tests $(BIN)/python tests/bench/figures.py $(ARGS)

dist: $(STAMPS)/bundle $(STAMPS)/venv ## wheel and sdist
	$(BIN)/python -m build --outdir dist

.PHONY: help setup lint unit test mutants soak demo bench dist
