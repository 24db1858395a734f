# SPDX-License-Identifier: Apache-2.0
"""The orders in which the pure engine searches, on sortedcontainers.

Free spans stand in three orders: by address, by size, and by address within each power of two of
size. The last makes first fit a look at some 64 lists instead of a walk over all spans; only spans
whose size lies between the request and the power of two above it must be looked at one by one.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from sortedcontainers import SortedList

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm_iova.ranges import MappableRanges

Span = tuple[int, int]  # first and last address


class Orders:
    """The allocations by address, and what is free in the three orders that the policies search.

    Made of `ranges`, of what is owned and of what the size cache keeps, and only ever a help: what
    is true stands elsewhere.
    """

    __slots__ = ("_by_class", "_by_size", "_firsts", "_lasts", "_ranges", "spoilt", "starts")

    def __init__(
        self,
        ranges: MappableRanges,
        owned: Mapping[int, tuple[int, object]],
        kept: Mapping[int, tuple[int, ...]],
    ) -> None:
        self.spoilt = False  # true to nothing any more
        self._ranges = ranges
        self.starts: SortedList[int] = SortedList(owned)
        self._lasts: dict[int, int] = {}
        self._firsts: SortedList[int] = SortedList()
        self._by_size: SortedList[Span] = SortedList()  # (extent, start): ties go to the lowest
        self._by_class: dict[int, SortedList[int]] = {}
        lasts = {start: last for start, (last, _) in owned.items()}
        for size, starts in kept.items():
            lasts.update((start, start + size - 1) for start in starts)
        taken = SortedList(lasts)
        for home in ranges:
            low = home.start
            for start in taken.irange(home.start, home.last):
                if low < start:
                    self._add(low, start - 1)
                low = lasts[start] + 1
            if low <= home.last:
                self._add(low, home.last)

    # Changes.

    def own(self, start: int, last: int) -> None:
        """Take a range, which is free."""
        span = self.free_at(start)
        assert span is not None
        self._remove(span[0])
        if span[0] < start:
            self._add(span[0], start - 1)
        if last < span[1]:
            self._add(last + 1, span[1])
        self.starts.add(start)

    def disown(self, start: int, last: int) -> None:
        """Make an allocation free."""
        self.starts.remove(start)
        self.give(start, last)

    def give(self, start: int, last: int) -> None:
        """Make a range free that is neither free nor an allocation."""
        home = self._ranges.range_at(start)
        assert home is not None
        low, high = start, last
        below = self.free_at(start - 1) if home.start < start else None
        if below is not None:
            low = below[0]
            self._remove(low)
        if last < home.last and last + 1 in self._lasts:
            high = self._remove(last + 1)
        self._add(low, high)

    def give_all(self, kept: Mapping[int, tuple[int, ...]]) -> None:
        """Make all free that the size cache keeps."""
        for size, starts in kept.items():
            for start in starts:
                self.give(start, start + size - 1)

    def _add(self, start: int, last: int) -> None:
        extent = last - start
        self._lasts[start] = last
        self._firsts.add(start)
        self._by_size.add((extent, start))
        self._by_class.setdefault(extent.bit_length(), SortedList()).add(start)

    def _remove(self, start: int) -> int:
        last = self._lasts.pop(start)
        extent = last - start
        self._firsts.remove(start)
        self._by_size.remove((extent, start))
        group = self._by_class[extent.bit_length()]
        group.remove(start)
        if not group:
            del self._by_class[extent.bit_length()]
        return last

    # Questions.

    def owner(self, address: int) -> int | None:
        """Return the highest allocation that begins at an address or below."""
        place = self.starts.bisect_right(address) - 1
        return None if place < 0 else self.starts[place]

    def free_at(self, address: int) -> Span | None:
        """Return the free span that holds an address."""
        place = self._firsts.bisect_right(address) - 1
        if place < 0:
            return None
        start = self._firsts[place]
        last = self._lasts[start]
        return (start, last) if address <= last else None

    def free_within(self, low: int, high: int) -> Iterator[Span]:
        """Yield the free spans that share an address with the window, cut to it, ascending."""
        edge = self.free_at(low)
        if edge is not None and edge[0] < low:
            yield low, min(edge[1], high)
        for start in self._firsts.irange(low, high):
            yield start, min(self._lasts[start], high)

    def search(self, policy: int, extent: int, align: int, low: int, high: int) -> int | None:
        """Return the place that policy 0 (first), 1 (last) or 2 (best) chooses in the window."""
        if low > high:
            return None
        return (self._first, self._last, self._best)[policy](extent, align, low, high)

    def _first(self, extent: int, align: int, low: int, high: int) -> int | None:
        """Return the lowest place inside the window."""
        edge = self.free_at(low)
        if edge is not None and edge[0] < low:
            place = (low + align - 1) & -align
            if place + extent <= min(edge[1], high):
                return place
        best = None
        bound = high
        for size, group in self._by_class.items():
            if size < extent.bit_length():
                continue
            for start in group.irange(low, bound):
                place = (start + align - 1) & -align
                if place + extent <= min(self._lasts[start], high):
                    best, bound = place, start
                    break
        return best

    def _last(self, extent: int, align: int, low: int, high: int) -> int | None:
        """Return the highest place inside the window."""
        best = None
        bound = low
        for size, group in self._by_class.items():
            if size < extent.bit_length():
                continue
            for start in group.irange(bound, high, reverse=True):
                place = (min(self._lasts[start], high) - extent) & -align
                if place >= start:
                    best, bound = place, start
                    break
        if best is not None:
            return best
        edge = self.free_at(low)
        if edge is not None and edge[0] < low:
            place = (min(edge[1], high) - extent) & -align
            if place >= low:
                return place
        return None

    def _best(self, extent: int, align: int, low: int, high: int) -> int | None:
        """Return the lowest place in the smallest span of the window, the lowest among equals."""
        cut: tuple[int, int, int] | None = None  # extent of the span, its start, the place
        for edge in {self.free_at(low), self.free_at(high)} - {None}:
            assert edge is not None
            start, last = max(edge[0], low), min(edge[1], high)
            place = (start + align - 1) & -align
            if (start, last) != edge and place + extent <= last:
                candidate = (last - start, start, place)
                cut = candidate if cut is None else min(cut, candidate)
        for span, start in self._by_size.irange((extent, 0)):
            if cut is not None and (span, start) >= cut[:2]:
                break
            place = (start + align - 1) & -align
            if low <= start and start + span <= high and place + extent <= start + span:
                return place
        return None if cut is None else cut[2]

    def differs_from(self, other: Orders) -> bool:
        """Tell whether this is not what `other` was made of."""
        return (
            list(self.starts) != list(other.starts)
            or self._lasts != other._lasts
            or list(self._firsts) != sorted(self._lasts)
            or list(self._by_size) != sorted((b - a, a) for a, b in self._lasts.items())
            or sorted(chain.from_iterable(self._by_class.values())) != list(self._firsts)
            or any(
                (self._lasts[start] - start).bit_length() != size
                for size, group in self._by_class.items()
                for start in group
            )
        )
