# SPDX-License-Identifier: Apache-2.0
# One command each: what is missing is installed into .venv, nothing else is touched.
#   make plan     set up, and plan a 1.5 TiB guest on a real AMD host (writes map.svg)
#   make check    set up, and run the tests that take seconds
#   make test     set up, and run all tests
#   make lint     style and types
#   make package  build what is handed out, and try it in empty environments
#   make deb      the Debian package, built and tried in a tree of Debian sid, into build/deb
#   make python   build and test on the Python of the Debian SUITE (trixie: 3.13)
#   make lab      boot real kernels with real IOMMU drivers and run the tests inside (lab/README.md)
#   make vmm      start real QEMUs and their firmware, and compare plans with them (lab/README.md)
#   make bench    timings
#   make long     the allocator under sanitizers, without AVX2, a million steps, every interrupt (minutes)
#   make fuzz     each target of fuzz/ for FUZZ_SECONDS (120), two at a time
#   make mutants  what the tests notice of MUTANTS (300) small changes to the code that decides
#   make site     the documentation as a site, into build/site; a broken link or a warning fails it
#   make browser  the site and the pictures in Chromium (CHROMIUM=FILE), by mouse and by keyboard
#   make docs     write everything in docs/, README.md and share/ anew that is printed or drawn
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: plan check test lint package deb python lab vmm bench long fuzz mutants docs site browser clean

VENV ?= .venv
PYTHON ?= python3
FUZZ_SECONDS ?= 120
MUTANTS ?= 300
SUITE ?= trixie
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# As many at once as there are CPUs.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
SOURCES := pyproject.toml setup.py $(shell find vmm_iova -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -path '*/tree/*.c')

# Without the caches of bytecode each process compiles Python, pytest and us anew.
unexport PYTHONDONTWRITEBYTECODE

plan: $(VENV)/.installed
	$(BIN)/vmm-iova plan --host amd-epyc-1tb --machine own-x86 --ram 1.5TiB -o map.svg

check: $(VENV)/.tested
	$(PYTEST) -m "not slow" --hypothesis-profile=check -p no:benchmark

test: $(VENV)/.tested
	$(PYTEST)

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/reuse lint --quiet
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[ad]*.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.citation-file-format CITATION.cff

package: $(VENV)/.packaged
	$(BIN)/python -m pytest tools --ignore tools/test_browser.py

deb:
	tools/make-deb

python: $(VENV)/.installed
	PYTHON=$(BIN)/python tools/try-python $(SUITE)

lab: $(VENV)/.tested
	$(BIN)/python -m pytest lab/checks
	$(BIN)/python -m lab run

vmm: $(VENV)/.tested
	$(BIN)/python -m lab.vmm
	$(BIN)/python -m lab.vmm --planted
	$(BIN)/python -m lab.vmm --promises
	$(BIN)/python -m lab.vmm.roundtrip

bench: $(VENV)/.tested
	$(BIN)/python -m pytest bench --benchmark-only

long: $(VENV)/.tested
	PYTHON=$(abspath $(BIN)/python) .ci/allocator-long

fuzz: $(VENV)/.tested
	$(PIP) 'vmm-iova[fuzz]'
	$(BIN)/python -m fuzz.every $(FUZZ_SECONDS)

mutants: $(VENV)/.tested
	$(PIP) 'vmm-iova[mutants]'
	$(BIN)/python -m tools.mutants $(MUTANTS)

docs: $(VENV)/.tested
	VMM_IOVA_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/repo/test_docs.py
	$(BIN)/python -m tools.manual
	$(BIN)/python -m tools.schemas
	$(BIN)/python -m tools.reference

site: $(VENV)/.tested
	$(PIP) 'vmm-iova[site]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

browser: site
	$(PIP) 'vmm-iova[browser]'
	$(BIN)/python -m pytest tools/test_browser.py

clean:
	rm -rf $(VENV) build map.svg
	find vmm_iova -name '*.so' -delete

$(VENV)/.installed: $(SOURCES) tools/make-venv
	@echo 'setting up $(VENV) ...' >&2
	PYTHON="$(PYTHON)" tools/make-venv "$(VENV)"
	@echo 'compiling the allocator and the ioctls, about half a minute; without a compiler the pure engine is taken ...' >&2
	$(PIP) -e .
	touch $@

# The package is there already, so this adds what its extras ask for, and compiles nothing.
$(VENV)/.tested: $(VENV)/.installed
	$(PIP) 'vmm-iova[test,lint]'
	touch $@

$(VENV)/.packaged: $(VENV)/.installed
	$(PIP) 'vmm-iova[package]'
	touch $@
