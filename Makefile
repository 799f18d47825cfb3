# make demo       from nothing to a fine-tuned classifier on this machine, in under ten minutes
# make test       everything that must hold, in its short form
# make test-all   the long forms too
# make check      format, lint and types alone

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
export MLFLOW_DISABLE_TELEMETRY ?= true
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: env demo test test-all check programs clean

env: $(VENV)/ready

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned requirements (about two minutes, 6 GB) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-for-tests: $(VENV)/ready requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt -c requirements.txt
	touch $@

demo: env
	$(BIN)/python launchers/demo.py

check: $(VENV)/ready-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

programs:
	bash tests/install_programs.sh

test: check programs
	$(BIN)/python -m gamut.train.build
	$(BIN)/python -m pytest -q -m "not long" --durations=15

test-all: check programs
	$(BIN)/python -m gamut.train.build
	$(BIN)/python -m pytest -q --durations=30

clean:
	rm -rf $(VENV) build
