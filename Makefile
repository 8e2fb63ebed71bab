# Two commands for a first look: `make demo` and `make test`. Both set up .venv on first use and reuse it afterwards.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
# Processes that share the tests.
WORKERS ?= 2
# What tests import and start is compiled once, and not by every process.
unexport PYTHONDONTWRITEBYTECODE

# Left out of `make check`: tests that start scripts, fill memory, interpret GPU kernels, train, or read the reference's
# recorded arrays.
CHECK_WITHOUT := tests/stages tests/benchmarks tests/hostile tests/conformance tests/exchange tests/hardware tests/gpu \
	tests/kernels tests/finetune tests/cost tests/test_latent.py tests/convert/test_spike_chunk.py \
	tests/convert/test_carried_sampling.py tests/convert/test_fold.py tests/convert/test_foreign.py \
	tests/convert/test_incremental.py tests/generate/test_compiled.py tests/metrics/test_fad.py \
	tests/metrics/test_score.py tests/checkpoints/test_dialects.py tests/checkpoints/test_folders.py \
	tests/checkpoints/test_seal.py tests/convert/test_direct_raster.py tests/convert/test_random_graphs.py \
	tests/generate/test_latent_editing.py tests/nets/test_sddpm.py tests/diffusion/test_samplers.py \
	tests/diffusion/test_gddim.py tests/diffusion/test_sample_currents.py tests/nets/test_spike_driven.py \
	tests/docs/test_own_network.py tests/docs/test_models.py tests/docs/test_notebooks.py tests/docs/test_extending.py \
	tests/test_same_images.py tests/test_threads.py tests/test_lost_processes.py tests/test_toy.py tests/test_commands.py

.PHONY: demo check test test-long lint types format install clean-demo

install: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed; name one: make PYTHON=python3.11 ..."; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q -r requirements-dev.txt
	$(PY) -m pip install -q --no-deps -e .  # importable from anywhere, and .venv/bin/ann2snn
	$(PY) -m pip install -q --no-deps neurobench==2.3.0 snntorch==1.0.0  # its metrics alone: a test compares ours with them
	touch $@

# Its steps are those of `ann2snn demo`, ann2snn/commands/demo.py.
demo: $(STAMP)
	$(PY) -m ann2snn demo

clean-demo:
	rm -rf logs/demo logs/shipped

check: $(STAMP) lint types
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu" $(CHECK_WITHOUT:%=--ignore %)

test: $(STAMP) lint
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu" --ignore tests/conformance
	$(PY) -m pytest -m "not slow and not gpu" tests/conformance  # in one process, which sees what all of them read

test-long: $(STAMP)
	$(PY) -m pytest

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m vulture

types: $(STAMP)
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
