# SPDX-License-Identifier: Apache-2.0
"""Calls of the simulated kernel that go wrong, as ordered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm_iova.record import brief

if TYPE_CHECKING:
    from collections.abc import Callable


@brief
@dataclass
class Fault:
    """Something that goes wrong, once.

    Attributes:
        skip: how many matching calls go well first.
        request: only this ioctl, or None for any.
        errno: what the call answers, without doing anything; 0 lets it be done.
        change: called with the argument of a call that was done, to falsify its answer.
    """

    skip: int
    request: int | None = None
    errno: int = 0
    change: Callable[[bytearray], None] | None = None


def due(faults: list[Fault], request: int) -> Fault | None:
    """Count a call; return the fault whose turn it is, which is taken out, or None."""
    found = None
    for fault in list(faults):
        if fault.request not in (None, request):
            continue
        if fault.skip:
            fault.skip -= 1
        elif found is None:
            found = fault
            faults.remove(fault)
    return found
