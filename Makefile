# make install | demo | test work from a clean clone, and again. Another interpreter: make PYTHON=python3.12 install
.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-native lint types format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ldm-filter-installed
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)

# One thread for each process: the tests run in two processes, and small matrices gain nothing from more.
test test-slow: export OMP_NUM_THREADS := 1

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */ - /'

install: $(STAMP)  ## create .venv and install everything, the package editable; does nothing when nothing changed

demo: install  ## fit, filter, forecast real sensor data; prints a table, writes pictures
	$(BIN)/python -m benchmarks.demo

test: lint types  ## everything CI runs: ruff, mypy, the quick tests, the examples in docstrings
	$(BIN)/python -m pytest -n 2 --doctest-modules ldm_filter tests

test-slow: install  ## the trainings, minutes each
	$(BIN)/python -m pytest -m slow tests

# The sanitizers' libraries come first in the process, as they replace the memory of all others; Python's own leaks are not looked for.
test-native: install  ## the tests of the compiled kernels under address and undefined-behaviour sanitizers (GCC or Clang)
	rm -rf build/sanitized
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -C cmake.define.LDM_SANITIZE=ON -w build/sanitized .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
	    $(BIN)/python -m tests.core.sanitized build/sanitized/*.whl

lint: install  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy
	$(BIN)/mypy

format: install  ## rewrite the files as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Editable: a change of a .py file needs no new install; a change of what is listed in SOURCES does.
$(STAMP): $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"
	@touch $@
	@$(BIN)/python -W ignore -c "from ldm_filter.core import native; \
	    print('ldm-filter is installed,', 'with its compiled kernels' if native.available() else 'without compiled kernels (slower; needs a C++ compiler)')"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "ldm-filter needs Python 3.11 or newer, and '$(PYTHON)' is not: install one, or name it with make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
