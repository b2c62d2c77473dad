# Two commands that need nothing but Python 3.11: each makes .venv first, if it is not there.
PYTHON ?= python3
BIN := .venv/bin

# Every file that pip downloads is checked against the locks. Build isolation is off, because pip would download
# build backends unchecked; setuptools and hatchling are in the locks instead.
INSTALL := $(BIN)/pip install --quiet --require-hashes --no-build-isolation --requirement
LOCKS := requirements-torch.lock requirements-torch-cpu.lock requirements.lock

# Side by side, a thread each: most tests keep one core busy.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: run install test test-all coverage check docs format lock clean

run: .venv/installed
	$(BIN)/presel run experiment=quickstart
	@echo 'presel is in $(BIN); to have it on the PATH: source $(BIN)/activate'

install: .venv/installed

test: check
	$(PYTEST) -m "not slow"

# With what is marked slow, and more examples for each property.
test-all: check docs
	$(PYTEST) --hypothesis-profile thorough

coverage: .venv/installed-dev
	$(PYTEST) --hypothesis-profile thorough --cov --cov-report term

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Into outputs/site, without network; a broken link or reference fails, unless --quiet hides the warning of it. The
# variable silences an advertisement.
docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# PyTorch comes first, since its build depends on the machine: the CPU build where an index or folder that pip
# is configured with has it, otherwise PyPI's, which on Linux brings gigabytes of CUDA libraries.
.venv/installed: pyproject.toml $(LOCKS)
	$(PYTHON) -m venv .venv
	$(INSTALL) requirements-torch-cpu.lock \
	    || { echo "pip finds no CPU build of PyTorch; installing PyPI's"; $(INSTALL) requirements-torch.lock; }
	$(INSTALL) requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(INSTALL) requirements-dev.lock
	touch $@

# Needs uv, and in TORCH_CPU a folder or page that lists PyTorch's CPU build. Pins stay unless UPGRADE=--upgrade.
# The last lock leaves out what the others always install; what they install on some systems only, it has too.
COMPILE = uv pip compile --quiet --python-version 3.11 --generate-hashes --prerelease disallow --no-annotate \
    --custom-compile-command "make lock" $(UPGRADE) --output-file
lock:
	echo torch | $(COMPILE) requirements-torch.lock --universal -
	sed -n 's/^torch==\([^ ]*\).*/torch==\1+cpu/p' requirements-torch.lock | $(COMPILE) requirements-torch-cpu.lock \
	    --find-links $(TORCH_CPU) --constraints requirements-torch.lock --python-platform x86_64-manylinux_2_28 -
	echo torch | $(COMPILE) requirements.lock --universal --excludes - --constraints requirements-torch.lock \
	    --extra cpu --group build pyproject.toml
	sed -n 's/^\([^ ]*\)==[^ ]* \\$$/\1/p' requirements-torch.lock requirements.lock \
	    | $(COMPILE) requirements-dev.lock --universal --excludes - --constraints requirements.lock \
	    --extra sources --extra sweep --extra wandb --extra ray --extra docs --extra dev pyproject.toml

clean:
	rm -rf .venv
