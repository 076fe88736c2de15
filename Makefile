# Every target installs its needs into .venv: `make demo` the runtime, all other targets also the development tools.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -q
BACKENDS := tensorflow jax torch
# Runs one suite on every backend in turn; stops at the first failure.
on_all_backends = set -e; for backend in $(BACKENDS); do \
	echo "== $(1) tests on $$backend"; KERAS_BACKEND=$$backend $(PYTEST) --suite=$(1); done

.PHONY: demo test test-rest test-all mutants lint docs notebooks bench report clean
.DEFAULT_GOAL := test

$(VENV)/.runtime: setup.py
	@echo "== Setting up $(VENV), once: TensorFlow, Keras and the other libraries of training and export (2.8 GB, 1 to 3 minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[litert]'
	@touch $@

$(VENV)/.installed: $(VENV)/.runtime requirements-test.txt
	@echo "== Adding to $(VENV), once: JAX, PyTorch and the tools of tests, style and docs (2.5 GB, 1 to 3 minutes)"
	$(BIN)/python -m pip install --requirement requirements-test.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.runtime
	$(BIN)/python examples/digits_demo.py --run_dir=runs/demo

# Takes about ten minutes on two cores, more on slow ones: all quick tests on TensorFlow, those that depend on the backend also on the others.
test: $(VENV)/.installed
	@$(call on_all_backends,quick)

# Continuous integration runs this after `make test`: long processes, more cases of a kind, every test on every backend.
test-rest: $(VENV)/.installed
	@$(call on_all_backends,rest)

# All tests, slow ones too, with random examples that differ from run to run.
test-all: $(VENV)/.installed
	@$(call on_all_backends,all)

# Runs the tests against seeded faults, one at a time (half an hour), and writes the table in docs/reliability.md.
mutants: $(VENV)/.installed
	$(BIN)/python tests/mutants.py --write

# Checks style and types. The link puts models/ at its installed place, for pyright.
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/first_words.py
	mkdir -p .cache/typing/elrt_keras
	ln -sfn ../../../models .cache/typing/elrt_keras/models
	$(BIN)/pyright --project pyproject.toml

# Runs examples/notebooks/ again. Nothing else should run on the machine: two notebooks measure times.
notebooks: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(BIN)/python examples/notebooks/execute.py

# Builds the site into site/; a broken link or a missing page is an error.
docs: $(VENV)/.installed
	KERAS_BACKEND=tensorflow NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The short set of measurements takes some minutes. CONTRIBUTING.md has the whole set.
bench: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.measure steps --models=resnet20
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.measure operations --models=resnet20
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.measure inference --models=resnet20
	$(BIN)/python -m benchmarks.measure imports --rounds=3
	$(MAKE) report

# Writes the pages of docs/ made from benchmarks/results/; their text is in benchmarks/pages/templates/.
report: $(VENV)/.installed
	$(BIN)/python -m benchmarks.pages

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
