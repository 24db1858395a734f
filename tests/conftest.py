# SPDX-License-Identifier: Apache-2.0
"""Each test of the allocator runs on each engine that this machine can have."""

from __future__ import annotations

import gc
import os
from importlib import import_module

import pytest

from vmm_iova.allocator import IovaAllocator, allocator_class
from vmm_iova.errors import EngineError

pytest.register_assert_rewrite("tests.kit")
import_module("tests.kit.examples")  # loads Hypothesis's profile, before any test is read


def _engines() -> list[str]:
    found = ["pure"]
    try:
        allocator_class("fast")
    except EngineError:
        if os.environ.get("VMM_IOVA_REQUIRE_EXT") == "1":
            raise
    else:
        found.append("fast")
    return found


ENGINES = _engines()


def pytest_collection_finish() -> None:
    """Leave the tests themselves out of garbage collections, which some of them ask for."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Say which engines are tested: a run without the compiled one must not look whole."""
    missing = "" if "fast" in ENGINES else " (the compiled one is not built, so it is not tested)"
    return f"vmm_iova engines: {', '.join(ENGINES)}{missing}"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Name of an engine."""
    name: str = request.param
    return name


@pytest.fixture
def make(engine: str) -> type[IovaAllocator]:
    """The allocator class of that engine."""
    return allocator_class(engine)
