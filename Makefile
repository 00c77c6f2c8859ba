# Both commands make .venv themselves and install pinned versions into it.
PYTHON ?= python3
VENV := .venv
OLDEST := torch==2.11.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-compile -c constraints.txt

# Packages are installed without bytecode, and tests start dozens of processes, most of whose time
# went into compiling what they import. It is compiled once and kept in .venv, outside the sources.
BYTECODE := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX='$(CURDIR)/$(VENV)/bytecode'

.PHONY: demo test lint types doctest check bench oldest docs dist clean

demo: $(VENV)/.lab ## train a network with a knob on real digits, four ways, and show what the knob does
	$(BIN)/hyperlight demo

test: $(VENV)/.dev ## run the tests, one worker a core (conftest.py says how many)
	$(BYTECODE) $(BIN)/python -m pytest -n auto

lint: $(VENV)/.dev ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Pyright runs on node: that of the machine, or the one that playwright brings along. It does not
# ask for newer versions.
types: $(VENV)/.dev ## static types
	$(BIN)/mypy
	PATH="$$PATH:$$(echo $(VENV)/lib/python*/site-packages/playwright/driver)" \
	  PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

# The examples are small: one thread is faster than several.
docs: $(VENV)/.docs ## the documentation site, in build/site; the examples of the gallery are run
	OMP_NUM_THREADS=1 $(BYTECODE) $(BIN)/python -m sphinx -E -c docs -d build/doctrees -n -W --keep-going -q . build/site
	@echo build/site/index.html

doctest: $(VENV)/.dev ## the examples in docstrings
	$(BIN)/python -m pytest --doctest-modules src/hyperlight --doctest-continue-on-failure

check: test lint types doctest docs dist ## all of the above

bench: $(VENV)/.dev ## HyperLight and other libraries side by side, in minutes (ARGS=--all: hours)
	$(BIN)/python -m benchmarks $(ARGS)

# On Linux an older torch comes with CUDA by default: 3 GB to download, 6 GB on disk. ARGS takes
# options of pip, such as those that PyTorch documents for its CPU builds.
oldest: $(VENV)-oldest/.dev ## test the library with the oldest torch that it supports
	$(BYTECODE) $(VENV)-oldest/bin/python -m pytest -n auto --ignore=tests/lab

dist: $(VENV)/.lab ## build a wheel and an sdist in dist/, and check their metadata and description
	$(INSTALL) build twine hatchling hatch-fancy-pypi-readme
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

%/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "HyperLight needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $*
	@touch $@

$(VENV)/.lab: pyproject.toml constraints.txt $(VENV)/.python
	$(INSTALL) -e '.[lab]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.lab
	$(INSTALL) -e '.[lab,dev]'
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt $(VENV)/.dev
	$(INSTALL) -e '.[lab,dev,docs]'
	@touch $@

$(VENV)-oldest/.dev: Makefile pyproject.toml constraints.txt $(VENV)-oldest/.python
	grep -v '^torch==' constraints.txt >$(@D)/constraints.txt
	$(@D)/bin/python -m pip --disable-pip-version-check install --no-compile -c $(@D)/constraints.txt \
	  $(ARGS) $(OLDEST) -e '.[lab,dev]'
	@touch $@

clean: ## remove the environments and caches
	rm -rf $(VENV) $(VENV)-oldest .mypy_cache .ruff_cache .pytest_cache .hypothesis
