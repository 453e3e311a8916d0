# The verbs of this repository. `make demo` and `make test` set up all they need; the second run costs seconds.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLD := .venv-ipykernel6
STAMPS := .make

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMPS)/venv: pyproject.toml
	@mkdir -p $(STAMPS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

# The oldest kernel we promise to work with, beside the newest in the first environment.
$(STAMPS)/ipykernel6: pyproject.toml
	@mkdir -p $(STAMPS)
	test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --upgrade pip
	$(OLD)/bin/python -m pip install --quiet --editable . 'ipykernel==6.31.*'
	@touch $@

$(STAMPS)/interpreters: pyproject.toml scripts/interpreters.py
	$(PYTHON) scripts/interpreters.py setup
	@touch $@

setup: $(STAMPS)/venv $(STAMPS)/ipykernel6 $(STAMPS)/interpreters ## make the environments

lint: $(STAMPS)/venv ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMPS)/interpreters ## unit tests on each Python that is here
	$(PYTHON) scripts/interpreters.py test

test: setup lint unit ## set up, then run every check
	$(BIN)/python -m pytest

.PHONY: help setup lint unit test
