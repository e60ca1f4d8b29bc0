# The same commands at hand and in CI. The first two need only Python and this file:
#   make demo    train on real digits with and without batch normalization (JAX)
#   make test    every test on TensorFlow, JAX and PyTorch
# Not part of CI, most with an environment of their own: docs, dist, test-extras, test-python, test-lowest, pyright.
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

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
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
PYTEST = $(BIN)/python -m pytest -q -n $(TEST_WORKERS)

.PHONY: help demo test test-gpu summary lint format types selfcheck selfcheck-arm bench clean \
  $(addprefix test-,$(SUITES)) docs docs-serve dist test-extras test-python test-lowest pyright

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What an installation is made of: a stamp that is older than one of them makes pip run again. The
# package is installed as a user would, kernels and all; build/ keeps what was compiled.
SOURCES := pyproject.toml constraints.txt tests/without_dependencies.txt $(shell find src kernels -type f -name '*.*' ! -name '*.pyc')

$(VENV)/.demo: $(SOURCES) | $(BIN)/python
	$(PIP) '.[jax,keras,demo]'
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
# interpreter needs no GPU, its compiler neither. COMPILED=1 compiles every kernel, about a quarter of an hour.
$(GPU)/.triton: constraints.txt | $(BIN)/python
	$(PIP) --no-deps --upgrade --target $(GPU) triton jax-triton jax-cuda12-plugin
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

# Not part of CI: it needs Node.js, and fetches what it is made of from there.
pyright: $(VENV)/.test  ## pyright on a file that uses every public name
	$(PIP) pyright
	$(BIN)/pyright --pythonpath $(BIN)/python tests/typed/everything.py

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

# The site reads the sources and imports none of them: no framework and no compiler is needed.
SITE := $(VENV)-docs
# Material prints, at each start, until when it is kept up (May 2027); that is no warning about our pages.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs

$(SITE)/.docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -C wheel.cmake=false '.[docs]'
	@touch $@

docs: $(SITE)/.docs  ## the site, into build/site; a warning is an error
	$(MKDOCS) build --strict --site-dir build/site

docs-serve: $(SITE)/.docs  ## the site on localhost, built anew as pages change
	$(MKDOCS) serve

# The wheel is built from the source distribution, as whoever downloads that would.
RELEASE := $(VENV)-release

$(RELEASE)/.release: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -C wheel.cmake=false '.[release]'
	@touch $@

dist: $(RELEASE)/.release  ## source distribution and wheel, checked, into dist
	rm -rf dist
	$(RELEASE)/bin/python -m build
	$(RELEASE)/bin/twine check --strict dist/*
	$(RELEASE)/bin/auditwheel show dist/*.whl

test-extras: dist  ## each extra of the wheel in a fresh environment, with the README's lines
	$(PYTHON) tests/workers/extras.py dist/*.whl

# The core's tests elsewhere: `make test-python PYTHON=python3.13 BACKENDS="jax tensorflow"`.
CORE := -m 'not keras' tests/test_*.py tests/backends tests/native

test-python: VENV := .venv-$(notdir $(PYTHON))
test-python:  ## the core's tests on PYTHON, with the frameworks that have wheels there (BACKENDS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) '.[$(ALL_REQUESTED),keras,cli]' -r tests/core.txt
	$(ENVIRONMENT) $(REQUESTED)=$(ALL_REQUESTED) $(PYTEST) $(CORE) $(PYTEST_ARGS)

test-lowest: VENV := .venv-lowest
test-lowest: LOWEST = $(BIN)/python -m pip install -qq --disable-pip-version-check -c tests/lowest.txt
test-lowest:  ## the core's tests, and Keras' on each backend, with the lowest versions that pyproject.toml claims
	$(PYTHON) -m venv $(VENV)
	$(LOWEST) '.[$(ALL_REQUESTED),flax,keras,demo]' tf_keras -r tests/core.txt
	$(ENVIRONMENT) $(REQUESTED)=$(ALL_REQUESTED) $(PYTEST) $(CORE) $(PYTEST_ARGS)
	for backend in $(BACKENDS); do \
	  $(ENVIRONMENT) $(REQUESTED)=$$backend KERAS_BACKEND=$$backend $(PYTEST) -m keras tests/keras tests/tools \
	    $(PYTEST_ARGS) || exit 1; \
	done

clean:  ## remove everything that these commands made
	rm -rf $(VENV) $(VENV)-* build dist batchnorm-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
