# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all the set-up they need; see CONTRIBUTING.md for the others.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := $(VENV)/bin/python
SOURCES := $(shell find src -name '*.py' -o -name '*.pxd') setup.py

.PHONY: help demo test heavy check clients bench bench-guest build debug fuzz foreign guests packages manual testbed testbed-trixie lint types quick clean

help:
	@echo "make demo     a guest lists, checksums and writes files of a real directory"
	@echo "make test     everything: lint, types, unit, protocol and guest tests"
	@echo "make check    the quick loop: lint, types, unit and protocol tests of our own daemon"
	@echo "make heavy    CPython's tests, stress-ng, fio, SQLite and git on a mount of ours, or on DIR=... (docs/testing.md)"
	@echo "make clients  programs that start a virtio-fs daemon, unmodified, with ours (docs/clients.md; root)"
	@echo "make bench    measure this daemon and others side by side; writes benchmarks/latest.md, .html and dax.md (fifteen minutes)"
	@echo "make bench-guest  compare virtio-fs with 9p, NFS and a disk image in one guest; writes benchmarks/guest.md and .html"
	@echo "make debug    build with assertions and sanitisers into build/debug, and run the quick tests there"
	@echo "make fuzz     feed hostile bytes to what parses them, for T=600 seconds in total (docs/fuzzing.md)"
	@echo "make build    the virtual environment and the compiled modules"
	@echo "make guests   Debian packages and a kernel for guests"
	@echo "make testbed  that, libvirt and virtme-ng, and as root a newer QEMU, kernel and libvirt, beside the system"
	@echo "make testbed-trixie  the Rust virtiofsd of Debian 13, in the cache directory (root; PARTS=... for others)"
	@echo "make packages sdist and wheels in dist/, installed and tried on a bare Debian 12 and 13 (root; docs/packaging.md)"
	@echo "make manual   manual pages and shell completions, from the option tables"
	@echo "make clean    remove what was built"

demo: build guests
	@tools/demo $(VENV)/bin/virtiofs

test: lint types testbed foreign quick heavy
	$(RUN) -m pytest -m "guest and not clients"

# Without DIR on a mount of our own, where the kernel lets us.
heavy: build
	@$(PYTHON) tools/testbed --heavy
	@if [ -n "$(DIR)" ] || [ -e /dev/fuse ]; then \
	    $(RUN) tests/heavy/run $(or $(DIR),--mount) --size $(SIZE); \
	else echo "heavy suites left out: there is no /dev/fuse, and no DIR= is named"; fi

# With those that `make test` leaves out, for time, and as one takes a root file system of the next Debian.
clients: build testbed
	@$(PYTHON) tools/trixie vmspawn || echo "going on without systemd-vmspawn"
	$(RUN) -m pytest tests/clients

check: lint types build
	$(RUN) -m pytest -q -n 2 --dist loadfile -m "not guest" --device ours

# A daemon that failed is named in the report and is no reason to leave out the page.
bench: build guests
	@$(PYTHON) tools/trixie || echo "going on without the Rust virtiofsd of Debian 13"
	-$(VENV)/bin/virtiofs bench --markdown benchmarks/latest.md --html benchmarks/latest.html
	-$(VENV)/bin/virtiofs bench --dax --markdown benchmarks/dax.md

# What a guest can have its files by, in one guest: half an hour without KVM.
bench-guest: build guests
	@$(PYTHON) tools/testbed --flavour amd64 --compare
	@$(PYTHON) tools/trixie virtiofsd kernel-amd64 || echo "going on without the Rust virtiofsd and the kernel of Debian 13"
	-$(VENV)/bin/virtiofs bench-guest --markdown benchmarks/guest.md --html benchmarks/guest.html

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

SIZE ?= 1
T ?= 600
fuzz: $(VENV)/.installed
	tools/fuzz-build $(RUN)
	fuzz/run --python $(RUN) --seconds $(T)

guests:
	@$(PYTHON) tools/testbed

# What starts daemons of this kind; and of Debian 13 QEMU and a kernel for DAX, the Rust virtiofsd, libvirt, and a system
# to boot, which only root can prepare.
testbed:
	@$(PYTHON) tools/testbed --clients
	@$(PYTHON) tools/testbed --flavour amd64
	@if [ "$$(id -u)" = 0 ]; then $(PYTHON) tools/trixie virtiofsd qemu libvirt kernel guest || \
	    echo "tests of DAX in guests, of the Rust virtiofsd, of its libvirt and of whole systems are skipped"; fi

# Libraries whose file systems are served as well; pyfuse3 is built with what the testbed installs.
foreign: $(VENV)/.installed
	@tools/prepare-python $(PYTHON) $(VENV) foreign

testbed-trixie:
	@$(PYTHON) tools/trixie $(PARTS)

docs/conformance.md: build guests
	@$(PYTHON) tools/trixie || echo "going on without the Rust virtiofsd of Debian 13"
	-$(VENV)/bin/virtiofs check --installed --quiet --markdown $@

# sdist and wheels, tried on a bare Debian 12 and 13 (root).
packages: $(VENV)/.installed
	@$(RUN) tools/packages

manual: build
	$(RUN) tools/manual
	$(RUN) tools/completions

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
