# SPDX-License-Identifier: Apache-2.0
"""The targets of `fuzz/`: what once found something stays found, and each can still find a bug."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from fuzz.names import target_names
from fuzz.planted import BUGS, plant

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "fuzz/kept").glob("*/*"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_input_that_found_something_is_taken(path: Path) -> None:
    importlib.import_module(f"fuzz.targets.{path.parent.name}").one_input(path.read_bytes())


@pytest.mark.parametrize("name", target_names())
def test_target_takes_what_it_begins_with_and_odd_bytes(name: str) -> None:
    target = importlib.import_module(f"fuzz.targets.{name}")
    seeds = list(getattr(target, "seeds", tuple)())
    for content in (*seeds[:8], b"", b"\0", b"\xff" * 64, bytes(range(256))):
        target.one_input(content)


@pytest.mark.parametrize("name", target_names())
def test_bug_to_plant_is_a_change_of_code_that_is_there(name: str, tmp_path: Path) -> None:
    module, old, new = BUGS[name]
    copy = tmp_path / module
    copy.parent.mkdir(parents=True)
    copy.write_bytes((ROOT / module).read_bytes())
    plant(name, tmp_path)
    assert old != new
    compile(copy.read_text("utf-8"), module, "exec")
    assert copy.read_bytes() != (ROOT / module).read_bytes()
