# People and CI use the same targets; each installs what it needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
WITH_COMPONENTS := PATH="$(CURDIR)/$(BIN):$$(scripts/components path):$$PATH"
PYTEST := $(WITH_COMPONENTS) $(BIN)/python -m pytest

.PHONY: help demo test check fuzz bench venv dev components format clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: venv ## run the whole pipeline once on real input (installs buildah and skopeo when missing)
	@scripts/components install demo
	@$(WITH_COMPONENTS) $(BIN)/lapstrake demo

test: dev ## everything: lint, types, contracts, unit to end-to-end tests, with real components
	@scripts/components install test
	@$(MAKE) --no-print-directory lint
	$(PYTEST)

check: dev lint ## the fast loop: format, lint, types, contracts, unit and conformance tests
	$(PYTEST) tests/unit tests/conformance -q

.PHONY: lint
lint: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: dev ## the readers of archives against bytes that atheris makes up, five minutes each
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	for what in tar rebuild index; do \
		$(BIN)/python -m tests.fuzz.reading $$what -max_total_time=300 -rss_limit_mb=1024 || exit 1; done

bench: dev ## benchmarks as ratios against real peers, as a table and as JSON (out/bench.json)
	@scripts/components install bench
	@$(WITH_COMPONENTS) $(BIN)/python -m tests.bench --json out/bench.json

format: dev ## rewrite the code as ruff formats it
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

venv: $(VENV)/.installed ## the virtual environment with the package
dev: $(VENV)/.installed-dev ## the virtual environment with what development needs

$(VENV)/.installed: pyproject.toml
	@scripts/make-venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --use-pep517 --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	@scripts/make-venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[dev]'
	@touch $(VENV)/.installed $@

clean: ## remove the virtual environment and all that was generated
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
