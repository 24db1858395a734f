# One command each: what is missing is installed into .venv, nothing else is touched.
#   make plan   set up, and plan a 1.5 TiB guest on a real AMD host (writes map.svg)
#   make test   set up, and run the tests
#   make lint   style and types
#   make lab    boot real kernels with real IOMMU drivers and run the tests inside (lab/README.md)
#   make bench  timings
#   make long   the allocator under sanitizers, without AVX2, and a million steps (minutes)
#   make docs   write the output in docs/ anew
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: plan test lint lab bench long docs clean

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard vmm_iova/*.pyx vmm_iova/*.pxd vmm_iova/kernel/*.pyx vmm_iova/allocator/tree/*.h)

plan: $(VENV)/.installed
	$(BIN)/vmm-iova plan --host amd-epyc-1tb --machine q35 --ram 1.5TiB -o map.svg

test: $(VENV)/.tested
	$(BIN)/python -m pytest

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(VENV)/.tested
	$(BIN)/python -m pytest lab/checks
	$(BIN)/python -m lab run

bench: $(VENV)/.tested
	$(BIN)/python -m pytest bench --benchmark-only

long: $(VENV)/.tested
	PYTHON=$(abspath $(BIN)/python) .ci/allocator-long

docs: $(VENV)/.tested
	VMM_IOVA_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/repo/test_docs.py

clean:
	rm -rf $(VENV) build map.svg vmm_iova/*.so vmm_iova/*/*.so

$(VENV)/.installed: $(SOURCES) tools/make-venv
	PYTHON="$(PYTHON)" tools/make-venv "$(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	touch $@
