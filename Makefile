# Each command makes a virtual environment if there is none, installs what it needs, and runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint coverage timm-suite clean

quickstart: $(VENV)/.examples
	$(BIN)/python examples/quickstart.py $(ARGS)

test: $(VENV)/.test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Lines of the package that the tests run; fails below the share in pyproject.toml.
coverage: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --cov --cov-report term $(ARGS)

# timm's own tests on every architecture; `make test` runs them on one.
timm-suite: $(VENV)/.test
	HYBRIDHASH_TIMM_MODELS='hybridhash_*' $(BIN)/python -m pytest tests/models/test_timm_suite.py

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.examples: $(BIN)/python setup.cfg pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[examples]"
	touch $@

$(VENV)/.test: $(BIN)/python setup.cfg pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[test,dev]"
	touch $@
