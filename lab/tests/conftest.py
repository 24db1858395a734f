# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that run inside a guest; outside of one, nothing here is collected."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if "VMM_IOVA_LAB" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def lab() -> dict[str, Any]:
    """What lab/guest_setup.py wrote: the guest's name, its devices, their groups and nodes."""
    loaded: dict[str, Any] = json.loads(Path(os.environ["VMM_IOVA_LAB"]).read_text())
    return loaded


@pytest.fixture(scope="session")
def facts(lab: dict[str, Any]) -> dict[str, Any]:
    """What lab/facts.py gathered in this very boot."""
    folder = Path(os.environ["VMM_IOVA_LAB"]).parent
    loaded: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return loaded
