# Every target sets up .venv by itself; the first one on a fresh machine installs the dependencies.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) -q

.PHONY: demo test test-all lint bench clean
.DEFAULT_GOAL := test

$(VENV)/.installed: setup.py requirements-test.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --requirement requirements-test.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/digits_demo.py --run_dir=runs/demo

# The whole suite on TensorFlow, then what does not need TensorFlow on the other two backends.
test: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(PYTEST) -m 'not slow'
	KERAS_BACKEND=jax $(PYTEST) -m 'not slow and not tensorflow'
	KERAS_BACKEND=torch $(PYTEST) -m 'not slow and not tensorflow'

test-all: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(PYTEST)
	KERAS_BACKEND=jax $(PYTEST) -m 'not tensorflow'
	KERAS_BACKEND=torch $(PYTEST) -m 'not tensorflow'

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
