# Two commands that need nothing but Python 3.11: each makes .venv first, if it is not there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check format clean

run: .venv/installed
	$(BIN)/presel run experiment=quickstart

# Side by side, a thread each: most tests keep one core busy.
test: .venv/installed check
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The lock comes first: without it, a range that admits a newer torch may bring gigabytes of CUDA libraries.
.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv
