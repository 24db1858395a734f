# SPDX-License-Identifier: Apache-2.0
"""The files of tests/data."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
"""The repository."""

DATA = ROOT / "tests/data"
"""The folder of them."""

FAILED_MAPS = DATA / "failed-maps-2016-2026.txt"
"""Maps that failed for real people, one a line."""


@cache
def all_cases() -> tuple[dict[str, Any], ...]:
    """Every case that other programs' tests were turned into."""
    return tuple(json.loads((ROOT / "tests/data/cases.json").read_text("utf-8"))["cases"])


def cases(*kinds: str) -> list[dict[str, Any]]:
    """The cases of these kinds."""
    return [case for case in all_cases() if case["kind"] in kinds]
