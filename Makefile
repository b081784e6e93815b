# `make demo` and `make test` do all set-up on a fresh machine that has Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
BENCHMARKS = training_step activation_cache pair_scoring search_ranks encoding four_skills step_memory growth balancing_cost cross_entropy_memory generation
BENCHMARKS_WITH_DATA = real_size_plans writing_training

.PHONY: demo test bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[embedded,dev]"
	touch $(STAMP)

demo: $(STAMP)  ## mine Python code of this machine, train one module on it, show what it can do
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n 2

bench: $(STAMP)  ## every claim of speed, measured (DATA=folder with one folder a task; else mined): benchmarks/results/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	for name in $(BENCHMARKS) $(if $(DATA),$(BENCHMARKS_WITH_DATA)); do \
		$(BIN)/python benchmarks/$$name.py $(if $(DATA),--data "$(DATA)") || exit 1; \
	done

clean:  ## remove the environment and everything that demo made
	rm -rf $(VENV) demo
