# make demo       from nothing to a fine-tuned classifier on this machine, in under ten minutes
# make test       everything that must hold, in its short form
# make test-all   the long forms too
# make soak       a run that is killed 300 times must end with the weights of one that never was; KILLS=20 SEED=7
# make check      format, lint and types alone
# make bench-gpu  on a machine with a GPU: what must hold there, and how fast it is (bench/README.md); PARTS="steps ..."

PYTHON ?= $(firstword $(foreach minor,11 12 13,$(shell command -v python3.$(minor))))
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
export MLFLOW_DISABLE_TELEMETRY ?= true
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Most images set it; without compiled modules every one of some hundred processes compiles ours anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: env demo test test-all soak check lint types operator before-tests programs bench-gpu clean

env: $(VENV)/ready

$(VENV)/ready: requirements.txt
	@test -n "$(PYTHON)" || { echo "There is no Python 3.11 to 3.13 on the PATH: make $(MAKECMDGOALS) PYTHON=/where/it/is" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned requirements (about two minutes, 6 GB) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-for-tests: $(VENV)/ready requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt -c requirements.txt
	touch $@

demo: env
	$(BIN)/python launchers/demo.py

check: lint types

lint: $(VENV)/ready-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/ready-for-tests
	$(BIN)/mypy

operator: $(VENV)/ready-for-tests
	$(BIN)/python -m gamut.train.build

# The two beside each other, as either keeps one core busy for half a minute or more.
before-tests: lint programs
	$(MAKE) --no-print-directory -j 2 types operator

programs:
	bash tests/install_programs.sh

# What compares numbers runs once more as an older CPU would compute: other instructions, other orders of summation.
NUMERIC := tests/audio/test_logmel.py tests/audio/test_augment.py tests/evaluate tests/models/test_attention.py \
	tests/models/test_heads.py tests/models/test_positions.py tests/models/test_vit.py tests/models/test_weights.py \
	tests/pretrain/test_asit.py tests/pretrain/test_koleo.py tests/pretrain/test_losses.py \
	tests/pretrain/test_sparse.py tests/pretrain/test_variants.py tests/train/test_clipping.py
OLDER_CPU := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 OMP_NUM_THREADS=2

# A worker more than there are cores, as many tests wait for processes, timers and schedulers (tests/conftest.py says
# what stays together); more than four would compete for the disk.
WORKERS := -n $(shell expr $$(nproc) + 1) --maxprocesses 4 --dist loadscope --no-loadscope-reorder

test: before-tests
	$(BIN)/python -m pytest -q $(WORKERS) -m "not long" --durations=15
	$(OLDER_CPU) $(BIN)/python -m pytest -q $(WORKERS) -m "not long" $(NUMERIC)

test-all: before-tests
	$(BIN)/python -m pytest -q $(WORKERS) --durations=30
	$(OLDER_CPU) $(BIN)/python -m pytest -q $(WORKERS) $(NUMERIC)

KILLS ?= 300
SEED ?=
soak: operator
	$(BIN)/python -m tests.soak --kills $(KILLS) $(if $(SEED),--seed $(SEED))

# No environment is made: whatever Python has torch and the wheels (GPU_PYTHON=python3 where there is no .venv).
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
PARTS ?=
bench-gpu:
	@mkdir -p build
	PYTHONUNBUFFERED=1 $(GPU_PYTHON) -m bench.gpu --out build/bench-gpu.md $(if $(PARTS),--only $(PARTS))
	@cat build/bench-gpu.md

clean:
	rm -rf $(VENV) build
