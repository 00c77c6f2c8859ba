# Both commands make .venv themselves and install pinned versions into it.
PYTHON ?= python3
VENV := .venv
OLDEST := torch==2.6.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-compile -c constraints.txt

.PHONY: demo test lint types doctest check bench oldest clean

demo: $(VENV)/.lab ## train a classical and a MIP hypernetwork on real digits and compare them
	$(BIN)/hyperlight demo

test: $(VENV)/.dev ## run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## static types
	$(BIN)/mypy

doctest: $(VENV)/.dev ## the examples in docstrings
	$(BIN)/python -m pytest --doctest-modules src/hyperlight --doctest-continue-on-failure

check: test lint types doctest ## all of the above

bench: $(VENV)/.dev ## HyperLight and other libraries side by side (about an hour)
	$(BIN)/python -m benchmarks $(ARGS)

# What PyPI has of a torch that old needs CUDA: a download of 3 GB, 6 GB on disk. For the CPU build,
# make oldest ARGS='--extra-index-url ADDRESS' with the address that PyTorch gives for its CPU builds.
oldest: $(VENV)-oldest/.dev ## the tests of the library with the oldest torch that it supports
	$(VENV)-oldest/bin/python -m pytest --ignore=tests/lab

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

# Without the versions pinned for another torch: its own, and of what asks for one or the other.
$(VENV)-oldest/.dev: Makefile pyproject.toml constraints.txt $(VENV)-oldest/.python
	grep -vE '^(torch|sympy|monai)==' constraints.txt >$(@D)/constraints.txt
	$(@D)/bin/python -m pip --disable-pip-version-check install --no-compile -c $(@D)/constraints.txt \
	  $(ARGS) $(OLDEST) -e '.[lab,dev]'
	@touch $@

clean: ## remove the environments and caches
	rm -rf $(VENV) $(VENV)-oldest .mypy_cache .ruff_cache .pytest_cache .hypothesis
