# Everything runs in .venv, which `make setup` builds from pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)

.DEFAULT_GOAL := help
TEXTS := studies/miniature/texts/.made

.PHONY: help setup demo study replication study-quick test test-slow test-all bench lint types wheel tokenizers clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(STAMP) ## Create .venv with pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "xtoken needs Python 3.10 or newer; choose one with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Audit a pair, train a student four ways, print the table (under 4 minutes)
	@$(BIN)/xtoken demo

$(TEXTS): $(STAMP) scripts/make_miniature.py
	$(BIN)/python scripts/make_miniature.py texts
	@touch $@

study: $(TEXTS) ## Run the miniature of the paper: every method, two pairs, five seeds (under an hour)
	$(BIN)/xtoken study studies/miniature/study.yaml --out studies/miniature/results

replication: $(TEXTS) ## Run its open questions again with ten other seeds, and at one rate (40 minutes more)
	@# The sweep is the same, and a finished cell is never run again.
	@mkdir -p studies/miniature/replication && cp -rn studies/miniature/results/*/ studies/miniature/replication/ 2>/dev/null || true
	$(BIN)/xtoken study studies/miniature/replication.yaml --out studies/miniature/replication
	@mkdir -p studies/miniature/one-rate && cp -rn studies/miniature/replication/*/ studies/miniature/one-rate/
	$(BIN)/xtoken study studies/miniature/one-rate.yaml --out studies/miniature/one-rate

study-quick: $(TEXTS) ## Run a few cells of it (under 8 minutes)
	$(BIN)/xtoken study studies/miniature/study.yaml --quick --out studies-out/miniature-quick

test: $(STAMP) ## Run the test suite, but for the slow ones
	@# One thread a worker: torch would otherwise take both cores in each.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(STAMP) ## Run the tests of more than a few seconds, several processes among them
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m slow

test-all: test test-slow ## Run every test

bench: $(STAMP) tokenizers ## Measure time and memory against their limits (under 10 minutes)
	$(BIN)/python -m benchmarks

lint: $(STAMP) ## Check style with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## Check types with mypy
	$(BIN)/mypy

wheel: $(STAMP) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

tokenizers: $(STAMP) ## Fetch six real tokenizers into .cache/tokenizers
	$(BIN)/python scripts/fetch_tokenizers.py

clean: ## Remove .venv, caches and builds
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
