# Two commands for a first look: `make demo` and `make test`. Both set up .venv on first use and reuse it afterwards.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
DEMO   := logs/demo
SHIPPED := logs/shipped
# Processes that share the tests.
WORKERS ?= 2
EVAL   := $(PY) evaluate.py --flagfile config/SNN_evaluate

# Left out of `make check`: tests that start scripts, fill memory, or read the reference's recorded arrays.
CHECK_WITHOUT := tests/stages tests/benchmarks tests/hostile tests/conformance tests/docs/test_own_network.py \
	tests/test_same_images.py tests/test_threads.py tests/test_lost_processes.py tests/test_toy.py

.PHONY: demo check test test-long lint types format install clean-demo

install: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed; name one: make PYTHON=python3.11 ..."; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q -r requirements-dev.txt
	$(PY) -m pip install -q --no-deps neurobench==2.3.0 snntorch==1.0.0  # its metrics alone: a test compares ours with them
	touch $@

# First the network that ships: converted, carried, scored. Then a small one of its own through the stages. Through the
# scripts and flagfiles a user uses, on the data shipped with the package; what is there already is not made again.
demo: $(STAMP)
	$(PY) SNN_conversion.py --flagfile config/SNN_convert/shipped.txt
	test -e $(SHIPPED)/stats.npz || $(EVAL)/shipped.txt --noeval --nocarry --make_stats --num_images 2000
	$(EVAL)/shipped.txt --noeval --nocarry --score_data
	$(EVAL)/shipped.txt
	$(PY) -m ann2snn.report $(SHIPPED)
	$(PY) ANN_train.py --flagfile config/train_ANN/demo.txt
	$(PY) SNN_conversion.py --flagfile config/SNN_convert/demo.txt
	test -e $(DEMO)/stats.npz || $(EVAL)/demo.txt --noeval --make_stats --num_images 2000
	$(EVAL)/demo.txt --noeval --score_data
	$(EVAL)/demo.txt --eval_model_path $(DEMO)/ckpt.pt
	$(EVAL)/demo.txt --schedule stream
	$(EVAL)/demo.txt --schedule stream --burst 3
	$(PY) -m ann2snn.report $(DEMO)

clean-demo:
	rm -rf $(DEMO) $(SHIPPED)

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
