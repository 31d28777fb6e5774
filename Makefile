# Every target starts from a bare clone with Python 3.11 or newer and sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE
# One thread a worker: two workers on two cores take little more than half the time of one after the other. Files go to
# them in the order of tests/conftest.py: those that take longest first, so that none is left alone at the end.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:cacheprovider -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

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
