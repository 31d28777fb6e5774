# Every target starts from a bare clone with Python 3.11 or newer and sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE
TESTS := $(BIN)/python -m pytest -p no:cacheprovider

.PHONY: demo test test-all check clean

demo: .venv/weights
	$(BIN)/imtok demo --out out/demo

test: check .venv/weights
	$(TESTS) -q

test-all: check .venv/weights
	$(TESTS) -q -m 'not gpu'

check: .venv/dev
	$(BIN)/ruff check src tests recipes benchmarks
	$(BIN)/ruff format --check src tests recipes benchmarks
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell

clean:
	rm -rf .venv out

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[networks,fonts]'
	touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Third-party networks, pinned and checked by hash; a second run finds them in the cache.
.venv/weights: .venv/installed
	$(BIN)/imtok weights fetch
	touch $@
