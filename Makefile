# Every target sets up what it needs in .venv: `make demo` the runtime, all others the tools of development beside it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -q
BACKENDS := tensorflow jax torch
# One suite on every backend, one after the other; stops at the first that fails.
on_all_backends = set -e; for backend in $(BACKENDS); do \
	echo "== $(1) tests on $$backend"; KERAS_BACKEND=$$backend $(PYTEST) --suite=$(1); done

.PHONY: demo test test-rest test-all mutants lint docs notebooks bench report clean
.DEFAULT_GOAL := test

$(VENV)/.runtime: setup.py
	@echo "== Setting up $(VENV), once: TensorFlow, Keras and what else training and export run on (2.8 GB, 1 to 3 minutes)"
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

# Meant to take ten minutes on two cores (slow processors take more): everything once, on TensorFlow; what depends on the backend also on the other two.
test: $(VENV)/.installed
	@$(call on_all_backends,quick)

# What continuous integration runs after `make test`: long processes, more cases of a kind, every test on every backend.
test-rest: $(VENV)/.installed
	@$(call on_all_backends,rest)

# Everything, the slow tests too, with random examples that differ from run to run.
test-all: $(VENV)/.installed
	@$(call on_all_backends,all)

# Seeded faults, one at a time, against the tests (half an hour); the table of docs/reliability.md from what it finds.
mutants: $(VENV)/.installed
	$(BIN)/python tests/mutants.py --write

# Style and types. models/ is linked to where it is installed, for pyright.
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/first_words.py
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
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.measure steps --models=resnet20
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.measure operations --models=resnet20
	KERAS_BACKEND=tensorflow $(BIN)/python -m benchmarks.measure inference --models=resnet20
	$(BIN)/python -m benchmarks.measure imports --rounds=3
	$(MAKE) report

# The pages of docs/ that are made from benchmarks/results/; their words are in benchmarks/pages/templates/.
report: $(VENV)/.installed
	$(BIN)/python -m benchmarks.pages

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
