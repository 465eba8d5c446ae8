# Both targets work on a fresh machine with Python 3.11 or newer and make: they create .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
# Extra words for pytest, e.g. `make test ARGS="-k meanflow"`.
ARGS ?=

.PHONY: demo check test thorough format clean

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[cli,digits,plots,testing,dev]"
	touch $@

demo: .venv/.installed
	$(BIN)/onestep demo --folder runs/demo

# The fast part of `make test`: style, types, layers and the unit tests.
check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n 2 -m "not slow and not thorough" $(ARGS)

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n 2 $(ARGS)

thorough: .venv/.installed
	ONESTEP_LAW_EXAMPLES=2000 $(BIN)/python -m pytest -n 2 -m thorough $(ARGS)
	ONESTEP_COMPILE=inductor $(BIN)/python -m pytest -n 2 tests/core/test_transforms.py

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs
