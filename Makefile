# make demo   a vision transformer that learns, forgets and retains digits; writes results/demo-classification/report.html
# make test   all tests
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
DONE   := $(VENV)/.installed
TOOLS  := $(VENV)/.tools
# compiled files are kept: the tests start many processes
TEST   := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup op demo demo-detection demo-segmentation app test test-fast lint format clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DONE) op  ## make .venv, install what running needs, build the compiled op

$(DONE): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' || \
	  { echo "error: $(PYTHON) is too old or missing; Python 3.10 or later is needed: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(PY) -c 'import torch, torchvision; print("torch", torch.__version__, "with torchvision", torchvision.__version__)' || \
	  { echo "error: torch and torchvision do not fit each other; remove $(VENV) and run make setup again" >&2; exit 2; }
	@touch $@

$(TOOLS): $(DONE)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	@touch $@

op: $(DONE)  ## build the compiled op (a failure leaves the plain-PyTorch path in use)
	@if [ -f object-detection/ops/build.py ]; then $(PY) object-detection/ops/build.py || true; fi

demo: setup  ## learn two digits, forget two, keep six, attack the forgotten; writes results/demo-classification/report.html
	$(PY) image-classification/demo.py

demo-detection: setup  ## the same for a DINO detector on digit scenes
	$(PY) object-detection/demo.py

demo-segmentation: setup  ## the same for Mask2Former on digit scenes
	$(PY) semantic-segmentation/demo.py

app: setup  ## a page on this machine to try a run on: make app RUN=results/demo-classification
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[app]'
	$(PY) -m common.app $(or $(RUN),results/demo-classification)

test: setup $(TOOLS)  ## all tests, in two processes
	$(TEST)

test-fast: setup $(TOOLS)  ## tests that take less than ten seconds each
	$(TEST) -m "not slow"

lint: $(TOOLS)  ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(TOOLS)  ## rewrite to house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove the environment, builds and results
	rm -rf $(VENV) results build *.egg-info
