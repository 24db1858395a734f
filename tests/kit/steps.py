# SPDX-License-Identifier: Apache-2.0
"""How much work something is, counted and not timed: a busy machine changes nothing of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps(act: Callable[[], object]) -> int:
    """Return how many lines of Python run in this thread while it acts."""
    count = 0

    def trace(_: FrameType, event: str, __: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def growth(act: Callable[[int], object], size: int) -> float:
    """Return by how much the steps grow when the size is doubled; 2 is linear, 4 a square."""
    return steps(lambda: act(2 * size)) / steps(lambda: act(size))
