# SPDX-License-Identifier: Apache-2.0
"""Others, from PyPI or as people write them, each with what it promises and how far it goes.

To bench your own: a class with `allocate(size) -> handle` and `release(handle)`, and, if you like,
`semantics` (text) and `limit` (the most live ranges to try). Then

    python -m bench --with yourmodule:YourClass
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Protocol

from bench.workloads import APERTURE, PAGE
from vmm_iova.allocator import allocator_class


class Rival(Protocol):
    """What a workload asks of an allocator."""

    def allocate(self, size: int) -> Any: ...
    def release(self, handle: Any) -> None: ...


def ours(engine: str, **options: Any) -> Any:
    """Return an allocator of this package over the aperture of the workloads."""
    return allocator_class(engine)(APERTURE, granule=PAGE, **options)


class SortedBest:
    """Gaps in a SortedList of (size, start)."""

    semantics = "best fit, exact, no alignment, no window"
    limit = 1_000_000

    def __init__(self) -> None:
        from sortedcontainers import SortedList

        self.by_size = SortedList((span.size, span.start) for span in APERTURE)
        self.gaps = {span.start: span.size for span in APERTURE}
        self.above = {span.last + 1: span.start for span in APERTURE}
        self.live: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        place = self.by_size.bisect_left((size, 0))
        span, start = self.by_size.pop(place)
        del self.gaps[start], self.above[start + span]
        if span > size:
            self._add(start + size, span - size)
        self.live[start] = size
        return start

    def release(self, start: int) -> None:
        size = self.live.pop(start)
        after = self.gaps.pop(start + size, None)
        if after is not None:
            self.by_size.remove((after, start + size))
            del self.above[start + size + after]
            size += after
        below = self.above.pop(start, None)
        if below is not None:
            span = self.gaps.pop(below)
            self.by_size.remove((span, below))
            start, size = below, size + span
        self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        self.by_size.add((size, start))
        self.gaps[start] = size
        self.above[start + size] = start


class SortedFirst:
    """Gaps in a SortedDict by address, walked from the bottom."""

    semantics = "first fit, exact, no alignment, no window"
    limit = 10_000

    def __init__(self) -> None:
        from sortedcontainers import SortedDict

        self.gaps = SortedDict((span.start, span.size) for span in APERTURE)
        self.live: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        start, span = next(item for item in self.gaps.items() if item[1] >= size)
        del self.gaps[start]
        if span > size:
            self.gaps[start + size] = span - size
        self.live[start] = size
        return start

    def release(self, start: int) -> None:
        size = self.live.pop(start)
        size += self.gaps.pop(start + size, 0)
        place = self.gaps.bisect_left(start) - 1
        if place >= 0:
            below, span = self.gaps.peekitem(place)
            if below + span == start:
                start, size = below, size + span
        self.gaps[start] = size


class Bisect:
    """Gaps in two lists by address, walked from the bottom."""

    semantics = "first fit, exact, no alignment, no window"
    limit = 10_000

    def __init__(self) -> None:
        self.starts = [span.start for span in APERTURE]
        self.sizes = [span.size for span in APERTURE]
        self.live: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        place, span = next(item for item in enumerate(self.sizes) if item[1] >= size)
        start = self.starts[place]
        if span > size:
            self.starts[place] += size
            self.sizes[place] -= size
        else:
            del self.starts[place], self.sizes[place]
        self.live[start] = size
        return start

    def release(self, start: int) -> None:
        size = self.live.pop(start)
        place = bisect_left(self.starts, start)
        if place < len(self.starts) and self.starts[place] == start + size:
            size += self.sizes[place]
            del self.starts[place], self.sizes[place]
        if place and self.starts[place - 1] + self.sizes[place - 1] == start:
            self.sizes[place - 1] += size
        else:
            self.starts.insert(place, start)
            self.sizes.insert(place, size)


class Tinygrad:
    """The TLSF allocator of tinygrad."""

    semantics = "good fit, sizes rounded up to a class, no fixed places, no lookup"
    limit = 1_000_000

    def __init__(self) -> None:
        from tinygrad.runtime.support.memory import TLSFAllocator

        made = TLSFAllocator((1 << 48) - 0x1_0000, base=0x1_0000, block_size=PAGE)
        self.allocate, self.release = made.alloc, made.free


class IntervalTree:
    """Gaps in an intervaltree, walked from the bottom."""

    semantics = "first fit, exact, no alignment, no window"
    limit = 300

    def __init__(self) -> None:
        from intervaltree import IntervalTree as Tree

        self.gaps = Tree.from_tuples((span.start, span.last + 1) for span in APERTURE)
        self.live: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        gap = min(gap for gap in self.gaps if gap.end - gap.begin >= size)
        self.gaps.remove(gap)
        if gap.end - gap.begin > size:
            self.gaps.addi(gap.begin + size, gap.end)
        self.live[gap.begin] = size
        return gap.begin

    def release(self, start: int) -> None:
        first, stop = start, start + self.live.pop(start)
        for gap in [*self.gaps.at(start - 1), *self.gaps.at(stop)]:
            first, stop = min(first, gap.begin), max(stop, gap.end)
            self.gaps.remove(gap)
        self.gaps.addi(first, stop)


class Portion:
    """Free space as one portion interval."""

    semantics = "first fit, exact, no alignment, no window"
    limit = 100

    def __init__(self) -> None:
        import portion

        self.portion = portion
        self.free = portion.empty()
        for span in APERTURE:
            self.free |= portion.closedopen(span.start, span.last + 1)
        self.live: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        start = next(part.lower for part in self.free if part.upper - part.lower >= size)
        self.free -= self.portion.closedopen(start, start + size)
        self.live[start] = size
        return start

    def release(self, start: int) -> None:
        size = self.live.pop(start)
        self.free |= self.portion.closedopen(start, start + size)


class SortedLookup:
    """Lookup of an address through a SortedDict, as a yardstick."""

    def __init__(self, starts: list[int], lasts: list[int]) -> None:
        from sortedcontainers import SortedDict

        self.lasts = SortedDict(zip(starts, lasts, strict=True))

    def find(self, address: int) -> int | None:
        place = self.lasts.bisect_right(address) - 1
        if place < 0:
            return None
        start, last = self.lasts.peekitem(place)
        return start if address <= last else None


RIVALS: dict[str, Any] = {
    "sortedcontainers best fit": SortedBest,
    "tinygrad TLSF": Tinygrad,
    "sortedcontainers first fit": SortedFirst,
    "bisect first fit": Bisect,
    "intervaltree first fit": IntervalTree,
    "portion first fit": Portion,
}

__all__ = ["RIVALS", "Rival", "SortedLookup", "ours"]
