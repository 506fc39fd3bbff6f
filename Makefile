# Every target works from a clean clone: the environment is made on first use, from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export ORT_DISABLE_TELEMETRY := 1
THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# processes that share the test suite
WORKERS ?= 2

.PHONY: help install demo serve test check e2e bench docs format chaos fuzz schema clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing tightfit and its dependencies into $(VENV) (one to three minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,demo,dev]'
	@touch $@

install: $(STAMP) ## make the environment

demo: $(STAMP) ## the whole journey on real data: train, upload, search, download, verify, verdict
	$(BIN)/python examples/demo.py

serve: $(STAMP) ## service, dashboard and one worker for daily use (Ctrl-C stops them)
	$(BIN)/tightfit serve

test: $(STAMP) ## the test suite in two processes (WORKERS=4: in four); PostgreSQL and reference data are used where present
	$(THREADS) $(BIN)/python -m pytest -m "not e2e" -n $(WORKERS) --dist loadfile --durations=10

check: $(STAMP) ## ruff, mypy --strict, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

e2e: $(STAMP) ## the dashboard in a real headless Chromium
	$(THREADS) $(BIN)/python -m pytest -m e2e tests/e2e

bench: $(STAMP) ## benchmarks; one JSON result per cell under benchmarks/results
	$(BIN)/python -m benchmarks

chaos: $(STAMP) ## kill workers, service and trial children at random, 200 of each on both databases (goes on where it was stopped)
	$(THREADS) $(BIN)/python -m tests.reliability $(CHAOS)

fuzz: $(STAMP) ## 10,000 mutated files per reader, and a tally of the problems they end in
	$(THREADS) $(BIN)/python -m tests.fuzz $(FUZZ)

schema: $(STAMP) ## 10,000 requests generated from the OpenAPI document: no fault, no answer that is not in it
	$(THREADS) $(BIN)/python -m tests.schema $(SCHEMA)

docs: $(STAMP) ## print the pages that are made from the code
	$(BIN)/python -m worker.graph.ops > docs/operators.md.new
	@mv docs/operators.md.new docs/operators.md
	$(BIN)/python -m app.api.openapi > docs/openapi.json.new
	@mv docs/openapi.json.new docs/openapi.json
	$(THREADS) $(BIN)/python -m tests.zoo > docs/networks.md.new
	@mv docs/networks.md.new docs/networks.md

format: $(STAMP) ## format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and everything the targets wrote
	rm -rf $(VENV) .demo .data .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
