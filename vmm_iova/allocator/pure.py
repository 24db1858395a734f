# SPDX-License-Identifier: Apache-2.0
"""The engine in Python, on sortedcontainers: the same answers as `_fast`, slower.

Free spans stand in three orders: by address, by size, and by address within each power of two of
size. The last makes first fit a look at some 64 lists instead of a walk over all spans; only spans
whose size lies between the request and the power of two above it must be looked at one by one.
"""

from __future__ import annotations

from array import array
from threading import RLock
from typing import TYPE_CHECKING, Any

from sortedcontainers import SortedList

from vmm_iova.allocator.contract import Contract, numbers_of, output_of
from vmm_iova.errors import InvariantError, RequestError
from vmm_iova.ranges import AddrRange, Iova, MappableRanges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import FunctionType

    from vmm_iova.allocator.contract import Held, Numbers, Policy

Span = tuple[int, int]  # first and last address

FIRST, LAST, BEST = 0, 1, 2

PARKED_SIZES = 64  # granules: the largest size that the size cache keeps
PARKED_DEEP = 126  # released ranges of one size that it keeps


class _FreeSpans:
    """Disjoint spans in the three orders that the policies search."""

    __slots__ = ("by_class", "by_size", "lasts", "starts")

    def __init__(self) -> None:
        self.lasts: dict[int, int] = {}
        self.starts: SortedList[int] = SortedList()
        self.by_size: SortedList[Span] = SortedList()  # (extent, start): ties go to the lowest
        self.by_class: dict[int, SortedList[int]] = {}

    def add(self, start: int, last: int) -> None:
        extent = last - start
        self.lasts[start] = last
        self.starts.add(start)
        self.by_size.add((extent, start))
        self.by_class.setdefault(extent.bit_length(), SortedList()).add(start)

    def remove(self, start: int) -> int:
        last = self.lasts.pop(start)
        extent = last - start
        self.starts.remove(start)
        self.by_size.remove((extent, start))
        group = self.by_class[extent.bit_length()]
        group.remove(start)
        if not group:
            del self.by_class[extent.bit_length()]
        return last

    def at(self, address: int) -> Span | None:
        """Return the span that holds an address."""
        place = self.starts.bisect_right(address) - 1
        if place < 0:
            return None
        start = self.starts[place]
        last = self.lasts[start]
        return (start, last) if address <= last else None

    def within(self, low: int, high: int) -> Iterator[Span]:
        """Yield the spans that share an address with the window, cut to it, ascending."""
        edge = self.at(low)
        if edge is not None and edge[0] < low:
            yield low, min(edge[1], high)
        for start in self.starts.irange(low, high):
            yield start, min(self.lasts[start], high)

    def first(self, extent: int, align: int, low: int, high: int) -> int | None:
        """Return the lowest place inside the window."""
        edge = self.at(low)
        if edge is not None and edge[0] < low:
            place = (low + align - 1) & -align
            if place + extent <= min(edge[1], high):
                return place
        best = None
        bound = high
        for size, group in self.by_class.items():
            if size < extent.bit_length():
                continue
            for start in group.irange(low, bound):
                place = (start + align - 1) & -align
                if place + extent <= min(self.lasts[start], high):
                    best, bound = place, start
                    break
        return best

    def last(self, extent: int, align: int, low: int, high: int) -> int | None:
        """Return the highest place inside the window."""
        best = None
        bound = low
        for size, group in self.by_class.items():
            if size < extent.bit_length():
                continue
            for start in group.irange(bound, high, reverse=True):
                place = (min(self.lasts[start], high) - extent) & -align
                if place >= start:
                    best, bound = place, start
                    break
        if best is not None:
            return best
        edge = self.at(low)
        if edge is not None and edge[0] < low:
            place = (min(edge[1], high) - extent) & -align
            if place >= low:
                return place
        return None

    def best(self, extent: int, align: int, low: int, high: int) -> int | None:
        """Return the lowest place in the smallest span of the window, the lowest among equals."""
        cut: tuple[int, int, int] | None = None  # extent of the span, its start, the place
        for edge in {self.at(low), self.at(high)} - {None}:
            assert edge is not None
            start, last = max(edge[0], low), min(edge[1], high)
            place = (start + align - 1) & -align
            if (start, last) != edge and place + extent <= last:
                candidate = (last - start, start, place)
                cut = candidate if cut is None else min(cut, candidate)
        for span, start in self.by_size.irange((extent, 0)):
            if cut is not None and (span, start) >= cut[:2]:
                break
            place = (start + align - 1) & -align
            if low <= start and start + span <= high and place + extent <= start + span:
                return place
        return None if cut is None else cut[2]


class Core(Contract):
    """Free spans and allocations, and the steps on them that must be atomic."""

    __slots__ = (
        "_depth",
        "_free",
        "_journal",
        "_lasts",
        "_lock",
        "_parked",
        "_ranges",
        "_starts",
        "_tags",
        "_total",
        "_usable",
        "allow_zero",
        "granule",
    )

    if TYPE_CHECKING:
        allow_zero: bool

        transaction: Callable[[], AbstractContextManager[object]]

    @classmethod
    def _describe(cls, method: FunctionType) -> None:
        """Give a method its words: they stand once, in `vmm_iova.allocator`."""
        vars(cls)[method.__name__].__doc__ = method.__doc__

    def _setup(
        self,
        usable: Any,
        ranges: MappableRanges,
        granule: int,
        allow_zero: bool,
        size_cache: bool,
    ) -> None:
        self.granule = granule
        self.allow_zero = allow_zero
        self._lock = RLock()
        self._usable = usable
        self._ranges = ranges
        self._starts: SortedList[int] = SortedList()
        self._lasts: dict[int, int] = {}
        self._tags: dict[int, object] = {}
        self._total = 0
        self._journal: list[Callable[[], None]] = []
        self._depth = 0
        # The size cache: released ranges that wait for a request of their size.
        self._parked: dict[int, list[int]] | None = {} if size_cache else None
        self._free = self._spans_of(ranges)

    def __len__(self) -> int:
        return len(self._lasts)

    def allocate(
        self,
        size: int,
        align: int | None = None,
        policy: Policy = "first",
        within: AddrRange | None = None,
        tag: object = None,
    ) -> Iova:
        """Choose a free range, own it, and return its first address."""
        plain = align is None and within is None
        size, align, number, low, high = self._request(size, align, policy, within)
        with self._lock:
            kept = self._parked.get(size) if self._parked and plain and number == FIRST else None
            if kept:
                start = kept.pop()
                self._free_again(start, start + size - 1)
                self._own(start, start + size - 1, tag)
                return Iova(start)
            bottom = low if self.allow_zero else max(low, self.granule)
            place = self._search(number, size - 1, align, bottom, high)
            if place is None and self._flush():
                place = self._search(number, size - 1, align, bottom, high)
            if place is not None:
                self._own(place, place + size - 1, tag)
                return Iova(place)
            facts = self._facts(align, low, bottom, high)
        return self._no_space(size, align, within, *facts)

    def allocate_at(
        self, start: int, size: int, tag: object = None, *, align: int | None = None
    ) -> Iova:
        """Own the range at a place that the caller chose."""
        start, last = self._request_at(start, size, align)
        with self._lock:
            self._flush()
            span = self._free.at(start)
            if span is not None and last <= span[1]:
                self._own(start, last, tag)
                return Iova(start)
            owner = self._overlap(start, last)
        return self._refuse_at(start, last, owner)

    def release(self, start: int, size: int | None = None) -> None:
        """Give an allocation back."""
        start, size = self._request_release(start, size)
        with self._lock:
            last = self._lasts.get(start)
            if last is not None and size in (None, last - start + 1):
                if not self._park(start, last):
                    self._disown(start)
                return
            owner = self._at(start)
        self._refuse_release(start, size, owner)

    def _search(self, number: int, extent: int, align: int, low: int, high: int) -> int | None:
        if low > high:
            return None
        return (self._free.first, self._free.last, self._free.best)[number](
            extent, align, low, high
        )

    # The size cache. A parked range is in no list but its own.

    def _park(self, start: int, last: int) -> bool:
        """Keep an allocation that is being released, if it is one of the sizes that are kept."""
        size = last - start + 1
        if self._parked is None or self._depth or size > PARKED_SIZES * self.granule or not start:
            return False
        kept = self._parked.setdefault(size, [])
        if len(kept) == PARKED_DEEP:
            return False
        kept.append(start)
        del self._lasts[start]
        self._starts.remove(start)
        self._tags.pop(start, None)
        self._total -= size
        return True

    def _flush(self) -> bool:
        """Make all that is parked free; tell whether there was any."""
        any_kept = False
        for size, kept in (self._parked or {}).items():
            while kept:
                start = kept.pop()
                self._free_again(start, start + size - 1)
                any_kept = True
        return any_kept

    # Batches.

    def allocate_many(
        self,
        sizes: Numbers,
        out: Numbers | None = None,
        *,
        align: int | None = None,
        policy: Policy = "first",
        within: AddrRange | None = None,
    ) -> Numbers:
        """Allocate a range for each size: all or nothing."""
        wanted = numbers_of(sizes, "sizes")
        result, places = output_of(out, len(wanted), "out")
        with self._lock, self.transaction():
            for i, size in enumerate(wanted.tolist()):
                with self._naming_item(i):
                    places[i] = self.allocate(size, align, policy, within)
        return result

    def release_many(self, starts: Numbers, sizes: Numbers | None = None) -> None:
        """Release the allocation that begins at each address: all or nothing."""
        places = numbers_of(starts, "starts").tolist()
        lengths = [None] * len(places) if sizes is None else numbers_of(sizes, "sizes").tolist()
        if len(lengths) != len(places):
            raise RequestError(
                f"sizes has {len(lengths)} items for {len(places)} starts",
                field="sizes",
                value=sizes,
            )
        with self._lock, self.transaction():
            for i, (start, size) in enumerate(zip(places, lengths, strict=True)):
                with self._naming_item(i):
                    self.release(start, size)

    def lookup_many(
        self, addresses: Numbers, starts: Numbers | None = None, lasts: Numbers | None = None
    ) -> tuple[Numbers, Numbers]:
        """Find the allocation that holds each address."""
        wanted = numbers_of(addresses, "addresses")
        first, first_view = output_of(starts, len(wanted), "starts")
        last, last_view = output_of(lasts, len(wanted), "lasts")
        with self._lock:
            for i, address in enumerate(wanted.tolist()):
                held = self._at(address)
                first_view[i], last_view[i] = (1, 0) if held is None else held[:2]
        return first, last

    # Steps that the public class calls.

    def _at(self, address: int) -> Held | None:
        with self._lock:
            self._flush()
            place = self._starts.bisect_right(address) - 1
            if place < 0:
                return None
            start = self._starts[place]
            last = self._lasts[start]
            return (start, last, self._tags.get(start)) if address <= last else None

    def _overlap(self, start: int, last: int) -> Held | None:
        """Return the lowest allocation that shares an address with the range."""
        owner = self._at(start)
        if owner is None:
            above = next(self._starts.irange(start, last), None)
            owner = None if above is None else self._at(above)
        return owner

    def _allocated(self) -> int:
        return self._total

    def _snapshot(self) -> tuple[Sequence[int], Sequence[int], dict[int, object]]:
        with self._lock:
            self._flush()
            starts = array("Q", self._starts)
            return starts, array("Q", map(self._lasts.__getitem__, starts)), self._tags.copy()

    def _gaps(self, start: int, last: int) -> tuple[Sequence[int], Sequence[int]]:
        with self._lock:
            self._flush()
            spans = list(self._free.within(start, last))
        return array("Q", [a for a, _ in spans]), array("Q", [b for _, b in spans])

    def _facts(self, align: int, low: int, bottom: int, high: int) -> tuple[Span | None, int, int]:
        largest: Span | None = None
        aligned = total = 0
        if low > high:
            return None, 0, 0
        for start, last in self._free.within(low, high):
            if largest is None or last - start > largest[1] - largest[0]:
                largest = (start, last)
            place = (max(start, bottom) + align - 1) & -align
            aligned = max(aligned, last - place + 1)
            total += last - start + 1
        return largest, aligned, total

    def _swap(self, usable: Any, ranges: MappableRanges) -> list[Held]:
        """Take new usable ranges, or return the allocations that they do not cover."""
        with self._lock:
            self._flush()
            conflicts = [
                (start, self._lasts[start], self._tags.get(start))
                for start in self._starts
                if AddrRange(start, self._lasts[start]) not in ranges
            ]
            if conflicts:
                return conflicts
            before = (self._usable, self._ranges)
            free = self._spans_of(ranges)
            self._usable, self._ranges, self._free = usable, ranges, free
            if self._depth:
                self._journal.append(lambda: self._put_back(*before))
        return []

    # Transactions: a list of what undoes each step.

    def _begin(self) -> int:
        with self._lock:
            self._depth += 1
            return len(self._journal)

    def _undo(self, mark: int) -> None:
        with self._lock:
            depth, self._depth = self._depth, 0
            try:
                while len(self._journal) > mark:
                    self._journal.pop()()
            finally:
                self._depth = depth

    def _finish(self, mark: int, failed: bool) -> None:
        with self._lock:
            if failed:
                self._undo(mark)
            self._depth -= 1
            if not self._depth:
                self._journal = []

    def _own(self, start: int, last: int, tag: object) -> None:
        span = self._free.at(start)
        assert span is not None
        self._free.remove(span[0])
        if span[0] < start:
            self._free.add(span[0], start - 1)
        if last < span[1]:
            self._free.add(last + 1, span[1])
        self._starts.add(start)
        self._lasts[start] = last
        if tag is not None:
            self._tags[start] = tag
        self._total += last - start + 1
        if self._depth:
            self._journal.append(lambda: self._disown(start))

    def _disown(self, start: int) -> None:
        last = self._lasts.pop(start)
        self._starts.remove(start)
        tag = self._tags.pop(start, None)
        self._total -= last - start + 1
        self._free_again(start, last)
        if self._depth:
            self._journal.append(lambda: self._own(start, last, tag))

    def _free_again(self, start: int, last: int) -> None:
        home = self._ranges.range_at(start)
        assert home is not None
        low, high = start, last
        below = self._free.at(start - 1) if home.start < start else None
        if below is not None:
            low = below[0]
            self._free.remove(low)
        if last < home.last and last + 1 in self._free.lasts:
            high = self._free.remove(last + 1)
        self._free.add(low, high)

    def _put_back(self, usable: Any, ranges: MappableRanges) -> None:
        self._usable, self._ranges, self._free = usable, ranges, self._spans_of(ranges)

    def _spans_of(self, ranges: MappableRanges) -> _FreeSpans:
        """Work out the free spans from the usable ranges and the allocations."""
        free = _FreeSpans()
        for home in ranges:
            low = home.start
            for start in self._starts.irange(home.start, home.last):
                if low < start:
                    free.add(low, start - 1)
                low = self._lasts[start] + 1
            if low <= home.last:
                free.add(low, home.last)
        return free

    def _check_core(self) -> None:
        self._flush()
        free = self._free
        # INVARIANT: the orders hold the same spans, and those are what the allocations leave.
        same = (
            sorted(free.lasts) == list(free.starts)
            and sorted((last - start, start) for start, last in free.lasts.items())
            == list(free.by_size)
            and sorted(start for group in free.by_class.values() for start in group)
            == list(free.starts)
            and all(
                (free.lasts[start] - start).bit_length() == size
                for size, group in free.by_class.items()
                for start in group
            )
            and self._spans_of(self._ranges).lasts == free.lasts
        )
        # INVARIANT: tags belong to allocations; a journal exists only inside a transaction.
        if not same or not self._tags.keys() <= self._lasts.keys():
            raise InvariantError("the orders of the free spans differ")
        if sorted(self._lasts) != list(self._starts) or (self._journal and not self._depth):
            raise InvariantError("the allocations or the journal are out of order")
