# Every target sets up .venv by itself; the first one on a fresh machine installs the dependencies.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -q

.PHONY: demo test test-all lint docs notebooks bench report clean
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

# Style and types. models/ is linked to where it is installed, for pyright.
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .cache/typing/elrt_keras
	ln -sfn ../../../models .cache/typing/elrt_keras/models
	$(BIN)/pyright --project pyproject.toml

# The outputs of examples/notebooks/ anew, on a machine with nothing else to do: two of them measure times.
notebooks: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(BIN)/python examples/notebooks/execute.py

# The site, into site/; a broken link or a page that is missing fails.
docs: $(VENV)/.installed
	KERAS_BACKEND=tensorflow NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The short set: some minutes. CONTRIBUTING.md has the whole one.
bench: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.steps --models=resnet20
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.operations --models=resnet20
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.inference --models=resnet20
	$(BIN)/python -m benchmarks.imports --rounds=3
	$(MAKE) report

# The pages of docs/ that are made from benchmarks/results/.
report: $(VENV)/.installed
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.performance

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
