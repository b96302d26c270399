# Everything here works from a clean clone. It needs python3 (3.11 or later, with venv) and a Rust toolchain;
# all else comes from the package registries into .venv and target/.

PYTHON ?= python3
VENV ?= .venv
# Worker processes of pytest.
JOBS ?= 2
# Disks that `make crash` tries per workload.
PERDURE_CRASH_STATES ?= 20000

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

BIN := $(VENV)/bin
PY := $(BIN)/python
# Installs valgrind where that can be done without asking; a missing one is an error, not a skip.
VALGRIND = command -v valgrind >/dev/null || { apt-get install -y -qq valgrind || sudo -n apt-get install -y -qq valgrind; } || \
  { echo "counting instructions needs valgrind; install it (Debian: apt-get install valgrind)" >&2; exit 1; }
RUST_SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find rust -name '*.rs' -o -name Cargo.toml)

# maturin installs into this environment, whatever the caller has active.
export VIRTUAL_ENV := $(abspath $(VENV))
unexport CONDA_PREFIX
unexport PYTHONPATH
unexport PYTHONHOME

# The extension module is not in git; without it there is nothing to be up to date.
ifeq ($(wildcard python/perdure/_core*.so python/perdure/_core*.pyd),)
$(shell rm -f $(VENV)/.core)
endif

.PHONY: help demo test dev weights lint fmt test-rust test-py smoke bench callgrind callgrind-update crash wheel sdist test-wheel clean property

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: dev weights ## a real model, killed in mid-turn ten times; the session goes on
	$(BIN)/perdure demo

test: dev weights lint test-rust smoke callgrind test-py ## everything that has to pass, with all the set-up it needs

# ---- set-up

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "this needs Python 3.11 or later (the model layer does; perdure without models works on 3.10), and $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@command -v cargo >/dev/null || { echo "perdure needs a Rust toolchain (cargo is not on PATH)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.requirements: $(VENV)/.made requirements-dev.txt
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/.core: $(VENV)/.requirements $(RUST_SOURCES)
	$(BIN)/maturin develop --release --quiet
	touch $@

dev: $(VENV)/.core ## .venv with everything in it; perdure built and installed editable

weights: dev
	$(BIN)/perdure local install

# ---- checks

lint: dev ## formats, lints and types of both languages
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --warnings
	$(PY) -m mypy.stubtest perdure._core
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

fmt: dev ## put the formats right
	cargo fmt --all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test-rust: ## the engine's tests, without Python
	if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run -p perdure-core --locked --no-fail-fast --status-level fail && \
	  cargo test -p perdure-core --locked --quiet --doc; \
	else \
	  cargo test -p perdure-core --locked --quiet --lib --bins --tests --no-fail-fast && \
	  cargo test -p perdure-core --locked --quiet --doc; \
	fi

test-py: dev weights ## pytest, everything: turns on the local model, packages, documentation
	$(PY) -m pytest -p no:benchmark -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

smoke: dev ## the benchmarks with small numbers, so that they cannot rot
	$(PY) -m pytest -q benches --benchmark-disable
	$(PY) benches/save_bench.py --sizes 10 --rounds 3 --allow-tmpfs --out target/smoke/save.json
	$(PY) benches/resume_bench.py --sizes 10 --rounds 3 --allow-tmpfs --out target/smoke/resume.json
	for name in journal many stall amplification infos; do \
	  $(PY) benches/$${name}_bench.py --quick --allow-tmpfs --out target/smoke/$$name.json; \
	done

bench: dev ## measure everything, and write the tables and plots of README.md and docs/performance.md: half an hour
	for name in save journal many stall amplification resume infos; do $(PY) benches/$${name}_bench.py; done
	$(PY) benches/compare/run.py
	$(PY) tools/figures.py
	cargo bench -p perdure-core --locked

callgrind: ## instructions of a journal save, against those that are recorded for this compiler
	@$(VALGRIND)
	$(PYTHON) benches/callgrind/check.py

callgrind-update: ## record the instructions of a journal save as they are now
	@$(VALGRIND)
	$(PYTHON) benches/callgrind/check.py --update

crash: ## the crash matrix with many disks: some minutes
	PERDURE_CRASH_STATES=$(PERDURE_CRASH_STATES) cargo test -p perdure-core --locked --release --test crash_matrix -- --nocapture

property: dev ## the property test of the three stores with ten thousand cases: ten minutes
	PERDURE_CASES=10000 $(PY) -m pytest -p no:benchmark --timeout 0 tests/core/test_same_state.py

# ---- packages

wheel: $(VENV)/.requirements ## a wheel for this platform, in dist/
	$(BIN)/maturin build --release --locked --out dist

sdist: $(VENV)/.requirements ## the source distribution, in dist/
	$(BIN)/maturin sdist --out dist

test-wheel: dev ## build wheel and sdist, install them where nothing else is, and use them
	$(PY) -m pytest -p no:benchmark tests/packaging $(PYTEST_ARGS)

clean: ## remove what was built here: .venv, target, dist, caches
	rm -rf $(VENV) target dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f python/perdure/_core*.so python/perdure/_core*.pyd
	find python tests benches examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
