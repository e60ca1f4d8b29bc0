# The same commands at hand and in CI. The first two need only Python and this file:
#   make demo    train on real digits with and without batch normalization (JAX)
#   make test    every test on TensorFlow, JAX and PyTorch
# Overridable: PYTHON, VENV, BACKENDS, TEST_WORKERS, PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS.

PYTHON ?= python3
VENV ?= .venv
BACKENDS ?= tensorflow jax torch
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

SHELL := bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
LOGS := build/test
GPU := build/triton
SUITES := core composite $(BACKENDS)
# Test workers are the parallelism; threads inside each would only fight over the same cores.
ONE_THREAD := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1
QUIET := TF_CPP_MIN_LOG_LEVEL=2
# A kernel that was not built must fail the run, not be stepped around.
KERNELS ?= require
ENVIRONMENT = $(ONE_THREAD) $(QUIET) BATCHNORM_KERNELS=$(KERNELS)
comma := ,
empty :=
space := $(empty) $(empty)
# tests/conftest.py fails the run when one of these cannot be imported.
REQUESTED := BATCHNORM_TEST_BACKENDS
ALL_REQUESTED := $(subst $(space),$(comma),$(strip $(BACKENDS)))
PYTEST := $(BIN)/python -m pytest -q -n $(TEST_WORKERS)

.PHONY: help demo test test-gpu summary lint format types selfcheck selfcheck-arm bench clean $(addprefix test-,$(SUITES))

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What an installation is made of: a stamp that is older than one of them makes pip run again. The
# package is installed as a user would, kernels and all; build/ keeps what was compiled.
SOURCES := pyproject.toml constraints.txt tests/without_dependencies.txt $(shell find src kernels -type f -name '*.*' ! -name '*.pyc')

$(VENV)/.demo: $(SOURCES) | $(BIN)/python
	$(PIP) '.[jax,demo]'
	@touch $@

$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(PIP) '.[all,test]'
	$(PIP) --no-deps -r tests/without_dependencies.txt
	@touch $@

demo: $(VENV)/.demo  ## set up what is missing, then train on real digits
	$(QUIET) $(BIN)/batchnorm demo $(DEMO_ARGS)

# Every suite runs although an earlier one failed, so that one run tells everything.
test: $(VENV)/.test  ## set up what is missing, then every test on every backend
	@rm -rf $(LOGS); failed=0; \
	for suite in $(SUITES); do \
	  $(MAKE) --no-print-directory test-$$suite || failed=1; \
	done; \
	$(MAKE) --no-print-directory summary && exit $$failed

# Keras reads its backend once, at import: one process per backend, and one for all the rest.
test-core: $(VENV)/.test  ## the tests that need no Keras backend
	@mkdir -p $(LOGS); echo "== core"
	@$(ENVIRONMENT) $(REQUESTED)=$(ALL_REQUESTED) $(PYTEST) -m 'not keras' $(PYTEST_ARGS) \
	  2>&1 | tee $(LOGS)/core.log

test-composite: KERNELS := never
test-composite: $(VENV)/.test  ## the core's tests again, as on a machine without kernels
	@mkdir -p $(LOGS); echo "== composite path"
	@$(ENVIRONMENT) $(REQUESTED)=$(ALL_REQUESTED) $(PYTEST) -m 'not keras' tests/test_*.py tests/backends \
	  $(PYTEST_ARGS) 2>&1 | tee $(LOGS)/composite.log

$(addprefix test-,$(BACKENDS)): test-%: $(VENV)/.test
	@mkdir -p $(LOGS); echo "== Keras on $*"
	@$(ENVIRONMENT) $(REQUESTED)=$* KERAS_BACKEND=$* $(PYTEST) -m keras $(PYTEST_ARGS) \
	  2>&1 | tee $(LOGS)/$*.log

# In a process and a folder of their own: Triton crashes where TensorFlow was imported before. Its
# interpreter needs no GPU, its compiler neither. COMPILED=1 compiles every kernel, about half an hour.
$(GPU)/.triton: constraints.txt | $(BIN)/python
	$(PIP) --no-deps --upgrade --target $(GPU) triton
	@touch $@

test-gpu: $(VENV)/.test $(GPU)/.triton  ## the kernels for NVIDIA GPUs, interpreted and compiled, without a GPU
	@mkdir -p $(LOGS); echo "== GPU kernels"
	@$(ENVIRONMENT) $(REQUESTED)=torch PYTHONPATH=$(CURDIR)/$(GPU) $(PYTEST) tests/gpu $(PYTEST_ARGS) \
	  2>&1 | tee $(LOGS)/gpu.log
	@grep -qE '[0-9]+ passed' $(LOGS)/gpu.log

# A suite whose log does not close on "N passed" did not run: that fails too.
summary:  ## the closing line of each suite of the last `make test`
	@missing=0; \
	for suite in $(SUITES); do \
	  line=$$(grep -hE '[0-9]+ (passed|failed|error)' $(LOGS)/$$suite.log 2>/dev/null | tail -n 1); \
	  printf '%-12s%s\n' "$$suite" "$${line:-did not run}"; \
	  grep -qE '[0-9]+ passed' <<<"$$line" || missing=1; \
	done; \
	exit $$missing

lint: $(VENV)/.test  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.test  ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.test  ## mypy
	$(BIN)/mypy

# Needs a C++17 compiler and CMake (those of the virtual environment, or of the system).
# Each instruction set that this processor has; a higher one than that falls back to the best.
selfcheck: $(VENV)/.test  ## the kernels against plain loops, under the address and undefined-behaviour sanitizers
	$(BIN)/cmake -S kernels -B build/selfcheck -DBATCHNORM_SANITIZE=ON >/dev/null
	$(BIN)/cmake --build build/selfcheck --target selfcheck tunecheck bench -j 2 >/dev/null
	build/selfcheck/tunecheck
	for isa in baseline v3 best; do \
	  BATCHNORM_ISA=$$isa OMP_NUM_THREADS=2 build/selfcheck/selfcheck 60 || exit 1; \
	done
	OMP_NUM_THREADS=2 build/selfcheck/bench 2 0 0 all all 32 48 50 >/dev/null

# Needs Debian's g++-aarch64-linux-gnu and qemu-user.
selfcheck-arm: $(VENV)/.test  ## the kernels for 64-bit Arm against plain loops, under emulation
	$(BIN)/cmake -S kernels -B build/selfcheck-arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ >/dev/null
	$(BIN)/cmake --build build/selfcheck-arm --target selfcheck -j 2 >/dev/null
	OMP_NUM_THREADS=2 qemu-aarch64 -L /usr/aarch64-linux-gnu build/selfcheck-arm/selfcheck 60

bench: $(VENV)/.test  ## measure against the peers on this machine, about an hour
	$(QUIET) $(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:  ## remove everything that these commands made
	rm -rf $(VENV) build dist batchnorm-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
