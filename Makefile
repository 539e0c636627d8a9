# make serve   a ready service with the demo collection         make test    all tests
# make check   format, lint, types, import arrows               make install the service alone, nothing started
#
# Each target does its own set-up; stamps inside the virtual environment remember what is done.
# Variables, on the command line or in the environment:
#   PYTHON=python3.12  PORT=9000  ENCODER=<checkpoint directory or hub name>  COLLECTION=<default collection>  ARGS=<for pytest>

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input

ifdef PORT
export EOSEEK_API__PORT := $(PORT)
endif
ifdef ENCODER
export EOSEEK_ENCODER__CHECKPOINT := $(ENCODER)
endif
ifdef COLLECTION
export EOSEEK_STORE__COLLECTION := $(COLLECTION)
endif

.PHONY: help install install-dev model serve test check format clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

$(VENV)/stamps/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "EOSeek needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -1). Name another: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null
	@mkdir -p $(@D) && touch $@

$(VENV)/stamps/base: $(VENV)/stamps/venv pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/stamps/dev: $(VENV)/stamps/base
	$(PIP) -c constraints.txt -e '.[train,dev]'
	@touch $@

install: $(VENV)/stamps/base

install-dev: $(VENV)/stamps/dev

model: install
	$(BIN)/eoseek model pull default

serve: install
	$(BIN)/eoseek serve --demo

test: install-dev model
	$(BIN)/python -m pytest $(ARGS)

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
