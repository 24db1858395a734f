# SPDX-License-Identifier: Apache-2.0
"""An allocator that is slow and obviously right: every question is answered by looking at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vmm_iova.ranges import ADDRESS_LAST

Span = tuple[int, int]


@dataclass
class Model:
    """Lists of closed intervals, and nothing else."""

    ranges: list[Span]
    granule: int
    allow_zero: bool = False
    taken: dict[int, tuple[int, object]] = field(default_factory=dict)

    def free(self, low: int = 0, high: int = ADDRESS_LAST) -> list[Span]:
        """Every free span of the window, cut to it."""
        spans = []
        for start, last in self.ranges:
            position = start
            for first in sorted(self.taken):
                if start <= first <= last:
                    spans.append((position, first - 1))
                    position = self.taken[first][0] + 1
            spans.append((position, last))
        cut = [(max(a, low), min(b, high)) for a, b in spans]
        return [(a, b) for a, b in cut if a <= b]

    def inward(self, low: int, high: int) -> Span:
        """The window, cut inward to whole granules."""
        return -(-low // self.granule) * self.granule, (high + 1) // self.granule * self.granule - 1

    def places(
        self, size: int, align: int, low: int, high: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """For each span that can hold it: its size, its start, lowest and highest place."""
        low, high = self.inward(low, high)
        bottom = low if self.allow_zero else max(low, self.granule)
        for start, last in self.free(bottom, high):
            lowest = -(-start // align) * align
            if lowest + size - 1 <= last:
                yield last - start + 1, start, lowest, (last - size + 1) // align * align

    def choose(self, size: int, align: int, policy: str, low: int, high: int) -> int | None:
        places = list(self.places(size, max(align, self.granule), low, high))
        if not places:
            return None
        if policy == "first":
            return min(place[2] for place in places)
        if policy == "last":
            return max(place[3] for place in places)
        return min(places)[2]

    def facts(self, align: int, low: int, high: int) -> tuple[Span | None, int, int]:
        """Largest free span, largest size that fits at the alignment, bytes free in all."""
        low, high = self.inward(low, high)
        free = self.free(low, high)
        bottom = low if self.allow_zero else max(low, self.granule)
        aligned = [last - -(-start // align) * align + 1 for start, last in self.free(bottom, high)]
        largest = max(free, key=lambda span: (span[1] - span[0], -span[0]), default=None)
        return largest, max([0, *aligned]), sum(last - start + 1 for start, last in free)

    def at(self, address: int) -> tuple[int, int, object] | None:
        for start, (last, tag) in self.taken.items():
            if start <= address <= last:
                return start, last, tag
        return None

    def overlapping(self, low: int, high: int) -> int | None:
        """The lowest allocation that shares an address with the range."""
        found = [start for start, (last, _) in self.taken.items() if start <= high and last >= low]
        return min(found, default=None)

    def usable(self, low: int, high: int) -> bool:
        return any(start <= low and high <= last for start, last in self.ranges)
