# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all the set-up they need; see CONTRIBUTING.md for the others.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := $(VENV)/bin/python
SOURCES := $(shell find src -name '*.py' -o -name '*.pxd') setup.py

.PHONY: help demo test check bench build debug fuzz guests testbed testbed-trixie lint types quick clean

help:
	@echo "make demo     a guest lists, checksums and writes files of a real directory"
	@echo "make test     everything: lint, types, unit, protocol and guest tests"
	@echo "make check    the quick loop: lint, types, unit and protocol tests"
	@echo "make bench    measure this daemon and others side by side; writes benchmarks/latest.md"
	@echo "make debug    build with assertions and sanitisers into build/debug, and run the quick tests there"
	@echo "make fuzz     feed hostile bytes to what parses them, for T=600 seconds in total (docs/fuzzing.md)"
	@echo "make build    the virtual environment and the compiled modules"
	@echo "make guests   Debian packages and a kernel for guests"
	@echo "make testbed  that, and as root a newer QEMU and kernel, beside the system, for tests of DAX"
	@echo "make testbed-trixie  the Rust virtiofsd of Debian 13, in the cache directory (root; PARTS=qemu kernel for those)"
	@echo "make clean    remove what was built"

demo: build guests
	@tools/demo $(VENV)/bin/virtiofs

test: lint types quick testbed
	$(RUN) -m pytest -m guest

check: lint types quick

bench: build guests
	$(VENV)/bin/virtiofs bench --markdown benchmarks/latest.md

build: $(VENV)/.built

$(VENV)/.installed: pyproject.toml tools/prepare-python
	tools/prepare-python $(PYTHON) $(VENV)
	touch $@

# In place, so that a change of plain Python needs no build.
$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(RUN) setup.py -q build_ext --inplace --parallel 2
	$(RUN) -m compileall -q src
	touch $@

debug: $(VENV)/.installed
	tools/debug-build $(RUN)

T ?= 600
fuzz: $(VENV)/.installed
	tools/fuzz-build $(RUN)
	fuzz/run --python $(RUN) --seconds $(T)

guests:
	@$(PYTHON) tools/testbed

# Besides, for DAX: QEMU and a kernel of Debian 13, which only root can prepare; without them its tests are skipped.
testbed: guests
	@if [ "$$(id -u)" = 0 ]; then $(PYTHON) tools/trixie qemu kernel || echo "tests of DAX in guests are skipped"; fi

testbed-trixie:
	@$(PYTHON) tools/trixie $(PARTS)

docs/operations.md: build
	$(RUN) tools/operations >$@

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed
	$(VENV)/bin/mypy

quick: build
	$(RUN) -m pytest -q -n 2 --dist loadfile -m "not guest"

clean:
	rm -rf build $(VENV) src/virtiofs.egg-info src/virtiofs/fuse/layout.pxd src/virtiofs/sandbox/filters
	find src -name '*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
