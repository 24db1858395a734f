# SPDX-License-Identifier: Apache-2.0
"""Which engine is taken, and what is said when it cannot be had. Each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmm_iova.allocator import engine as engine_module
from vmm_iova.allocator.engine import engine_name, load
from vmm_iova.errors import EngineError

WITHOUT_FAST = "import sys; sys.modules['vmm_iova._fast'] = None; "
SHOW = "from vmm_iova.allocator import engine_name; print(engine_name())"


def run(code, engine=None):
    environment = {key: value for key, value in os.environ.items() if key != "VMM_IOVA_ENGINE"}
    if engine is not None:
        environment["VMM_IOVA_ENGINE"] = engine
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def test_forced_engine_is_taken(engine):
    result = run(SHOW, engine)

    assert (f"{engine}\n", "", 0) == (result.stdout, result.stderr, result.returncode)


@pytest.mark.skipif(
    not Path(engine_module.__file__).parents[1].joinpath("_fast.pyx").exists(),
    reason="a wheel, whose user cannot build: see the next test",
)
def test_without_fast_the_pure_engine_is_taken_and_said_once():
    result = run(
        WITHOUT_FAST
        + SHOW
        + "; import vmm_iova.allocator.engine as e; e.load('pure'); e.engine_name()"
    )

    assert result.stdout == "pure\n"
    assert result.stderr.count("RuntimeWarning") == 1
    assert "pip install -e ." in result.stderr


def test_without_fast_in_a_wheel_the_pure_engine_is_taken_in_silence():
    no_source = (
        "import pathlib; there = pathlib.Path.exists; "
        "pathlib.Path.exists = lambda path: path.name != '_fast.pyx' and there(path); "
    )
    result = run(WITHOUT_FAST + no_source + SHOW)

    assert (result.stdout, result.stderr, result.returncode) == ("pure\n", "", 0)


def test_forced_pure_says_nothing_without_fast():
    result = run(WITHOUT_FAST + SHOW, "pure")

    assert (result.stdout, result.stderr) == ("pure\n", "")


def test_forced_fast_that_is_missing_raises_engine_error():
    result = run(WITHOUT_FAST + SHOW, "fast")

    assert result.returncode == 1
    assert "EngineError" in result.stderr
    assert "hint: build it" in result.stderr


def test_unknown_engine_raises_engine_error():
    result = run(SHOW, "turbo")

    assert "EngineError: there is no engine 'turbo'" in result.stderr
    with pytest.raises(EngineError) as caught:
        load("turbo")
    assert (caught.value.engine, caught.value.exit_code) == ("turbo", 8)


def test_engine_name_is_one_of_the_two():
    assert engine_name() in ("fast", "pure")
