# Two commands do everything: `make run` and `make test`. `make` alone lists the rest.
.DEFAULT_GOAL := help
.PHONY: help install tools run ui board cluster report notebook test coverage lint soak bench docs site clean

PYTHON ?= python3
BIN := .venv/bin
# Tests wait for sockets and processes more than they compute: two workers to a core.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 2) * 2)')

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

install: .venv/.installed ## Build the environment (.venv) and nothing else

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "nq_pipeline needs Python 3.11 or newer; call make with PYTHON=/path/to/python3.11")'
	@echo "Building .venv (a minute or two, once) …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: install ## Ask all sources for option chains, write the lake, show the winner
	@$(BIN)/nq run

ui: install ## Start the Dagster UI on http://127.0.0.1:3000
	@$(BIN)/nq ui

board: install ## Show the live capture on http://127.0.0.1:3001; in the sandbox with a capture
	@$(BIN)/nq board

cluster: install ## Start a cluster of several workers on this machine, in the sandbox
	@$(BIN)/python -m nq_pipeline.ui.cluster

report: install ## Write the report of the newest snapshot and open it
	@$(BIN)/nq report

notebook: install ## Open notebooks/first_look.py on the lake, in the browser
	@$(BIN)/marimo edit --host 127.0.0.1 notebooks/first_look.py

test: install ## Run the whole test suite
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

coverage: install ## Run the test suite and print which lines of the package it does not reach
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term

tools: .venv/tools/.installed ## Install the tools whose exports the tests open: NautilusTrader, OpenBB, optopsy

.venv/tools/.installed: .venv/.installed
	@$(BIN)/python -m venv .venv/tools
	@.venv/tools/bin/python -m pip install --quiet --disable-pip-version-check openbb-core==2.0.1 optopsy==2.2.0
	@.venv/tools/bin/python -m pip install --quiet --disable-pip-version-check --only-binary nautilus_trader \
		'nautilus_trader==1.221.0; python_version < "3.12"' 'nautilus_trader==1.231.0; python_version >= "3.12"'
	@touch $@

lint: install ## Style, types and the layers of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

soak: install ## The slow soak and fault suites
	@$(BIN)/pytest -m slow --timeout=3600 --hypothesis-profile=search

bench: install ## Print the benchmarks, as ratios measured in one run
	@$(BIN)/python -m bench

docs: install ## Generate the reference pages of the documentation
	@$(BIN)/nq settings --markdown > docs/configuration.md
	@$(BIN)/nq tables --markdown > docs/tables.md

site: install ## Build the documentation as a site, into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Site: site/index.html; open it in any browser"

clean: ## Remove the environment, the sandbox's data and Dagster's history; data/live stays
	rm -rf .venv site data/sandbox data/.dagster
