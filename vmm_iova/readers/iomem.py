# SPDX-License-Identifier: Apache-2.0
"""`/proc/iomem`: physical addresses of a machine, which say nothing about IOVAs by themselves.

Source: kernel/resource.c, r_show(): two blanks a level, `start-last : name`, last included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.patterns import regex
from vmm_iova.ranges import AddrRange
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINE = regex(r"(?P<indent> *)(?P<start>[0-9a-f]{8,16})-(?P<last>[0-9a-f]{8,16}) : (?P<name>.+)")


@record
class IomemEntry:
    """One resource.

    Attributes:
        range: its addresses.
        name: what it is.
        level: 0 for the outermost.
    """

    range: AddrRange
    name: str
    level: int


def read_iomem(lines: Iterable[str]) -> tuple[IomemEntry, ...]:
    """Read the entries; lines of another form, and the zeros that only root can see past, go.

    Complexity: O(size).
    """
    found = []
    for line in lines:
        match = _LINE.match(line[:300])
        if match is None:
            continue
        start, last = int(match["start"], 16), int(match["last"], 16)
        if last > start:
            span = AddrRange(start, last)
            found.append(IomemEntry(span, match["name"].strip(), len(match["indent"]) // 2))
    return tuple(found)
