# SPDX-License-Identifier: Apache-2.0
"""The book that an address space keeps of what it has mapped, and who asked for it.

So overlaps are explained before the kernel says `EEXIST`, unmapped sizes are verified, and a
mapping that was forgotten is reported with the place that made it.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Protocol

from sortedcontainers import SortedList

from vmm_iova.errors import NotAllocatedError
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, Hva, Iova
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import CodeType


@record
class LiveMapping:
    """One mapping.

    Attributes:
        range: of IOVA.
        hva: address of the memory in this process, or the offset in its file.
        read: the device may read.
        write: the device may write.
        place: file and line that asked for it.
    """

    range: AddrRange
    hva: Hva
    read: bool
    write: bool
    place: str


class Mappable(Protocol):
    """What `map_many` needs to know of a mapping, such as `mapping.Piece`."""

    @property
    def iova(self) -> Iova:
        """First IOVA."""

    @property
    def hva(self) -> Hva:
        """Address of the memory."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def read(self) -> bool:
        """Whether the device may read."""

    @property
    def write(self) -> bool:
        """Whether the device may write."""


Spot = tuple["CodeType", int]
"""Where a call stands: its code, and how far in it."""


def plain_spot(depth: int = 2) -> Spot:
    """Return code and place in it of the nearest caller outside of this package."""
    frame = sys._getframe(depth)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("vmm_iova."):
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


def line_of(spot: Spot) -> str:
    """Return file and line of a spot."""
    code, at = spot
    lines = (line for first, end, line in code.co_lines() if first <= at < end)
    return f"{code.co_filename}:{next(lines, None) or code.co_firstlineno}"


def caller(depth: int = 2) -> tuple[str, int]:
    """Return file and line of the nearest caller outside of this package."""
    frame = sys._getframe(depth)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("vmm_iova."):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


Entry = tuple[int, Hva, bool, bool, Spot]
"""Size, host address, rights and place of a mapping."""


class PlainOrder:
    """Addresses in ascending order: `_ioctl.Order` where that is not compiled."""

    def __init__(self, starts: list[int]) -> None:
        self._at = SortedList(starts)

    def update(self, late: list[int], book: dict[int, Entry]) -> None:
        """Bring these addresses up to date, and empty the list of them.

        Those that are in the book are in the order then, and no others.
        """
        for start in late:
            here = start in self._at
            if here != (start in book):
                (self._at.remove if here else self._at.add)(start)
        late.clear()

    def below(self, x: int) -> int:
        """Return the highest address up to x, or -1."""
        at = self._at.bisect_right(x)
        return self._at[at - 1] if at else -1

    def span(self, first: int, last: int) -> list[int]:
        """Return the addresses from first to last."""
        return list(self._at.irange(first, last))


try:
    from vmm_iova.kernel._ioctl import Order as Order
    from vmm_iova.kernel._ioctl import spot as spot
except ImportError:  # not compiled
    Order = PlainOrder  # type: ignore[misc, assignment]
    spot = plain_spot


class LiveMappings:
    """The mappings of an address space, by IOVA.

    Complexity: adding and removing O(1); a question O(log n + k), and O(log n) for each change
        since the last one; the first question O(n log n).
    Synchronization: external.
    """

    __slots__ = ("_by_start", "_late", "_order", "_unread")

    def __init__(self) -> None:
        # PERF: bench/map_calls.py; plain tuples, made into LiveMapping when somebody asks, and
        # batches that are not read into the book before somebody asks either. What has changed
        # since the order was last asked for stands in `_late`, before the change itself does: so an
        # interrupt leaves nothing out.
        self._by_start: dict[int, Entry] = {}
        self._unread: list[tuple[Sequence[Mappable], Spot]] = []
        self._order: Order | None = None
        self._late: list[int] = []

    def _book(self) -> dict[int, Entry]:
        if self._unread:
            for pieces, place in self._unread:
                self._note(item.iova for item in pieces)
                self._by_start.update(
                    (item.iova, (item.size, item.hva, item.read, item.write, place))
                    for item in pieces
                )
            self._unread.clear()
        return self._by_start

    def _note(self, starts: Iterable[int]) -> None:
        """Write down what is about to change, if there is an order that this concerns."""
        if self._order is not None:
            self._late.extend(starts)
            if len(self._late) > 2 * len(self._by_start) + 1000:
                self._order = None  # nobody asks: it need not be kept

    def _ordered(self) -> Order:
        book = self._book() if self._unread else self._by_start
        order, late = self._order, self._late
        if order is None or (len(late) > 64 and len(late) > len(book) // 4):
            self._order = None
            self._late = []
            self._order = order = Order(sorted(book))
        elif late:
            try:
                order.update(late, book)
            except BaseException:
                self._order = None
                raise
        return order

    def __repr__(self) -> str:
        total = sum(item.range.size for item in self)
        return f"<LiveMappings: {len(self)} of {total:#x} bytes>"

    def __len__(self) -> int:
        return len(self._book())

    def __iter__(self) -> Iterator[LiveMapping]:
        return iter([self.at(start) for start in self._ordered().span(0, ADDRESS_LAST)])

    def __contains__(self, start: object) -> bool:
        return start in self._book()

    def add(self, iova: Iova, size: int, hva: Hva, place: Spot, *, read: bool, write: bool) -> None:
        """Note a mapping that the kernel has taken."""
        if self._order is not None:
            self._note((iova,))
        self._by_start[iova] = (size, hva, read, write, place)

    def add_many(self, pieces: Sequence[Mappable], place: Spot) -> None:
        """Note mappings that the kernel has taken; the sequence must not change any more."""
        if pieces:
            self._unread.append((pieces, place))

    def opened(self, start: int) -> dict[int, Entry]:
        """Return the book itself, to note a mapping at `start` in it or to strike it out.

        For `_ioctl`, which does that where the call is made, so that nothing comes between.
        """
        book = self._book() if self._unread else self._by_start
        if self._order is not None:
            self._note((start,))
        return book

    def remove(self, start: int) -> None:
        """Forget the mapping that begins at `start`."""
        book = self._book()
        if self._order is not None:
            self._note((start,))
        del book[start]

    def discard(self, start: int) -> None:
        """Forget the mapping that begins at `start`, if there is one."""
        if start in self._book():
            self.remove(start)

    def forget(self, window: AddrRange) -> None:
        """Forget every mapping that shares an address with `window`."""
        gone = self._within(window)
        self._note(gone)
        for start in gone:
            self._by_start.pop(start, None)

    def translate(self, iova: Iova, size: int) -> tuple[Hva, int]:
        """Return where in this process an IOVA is, and how many bytes from there are contiguous.

        Args:
            iova: any address inside a mapping.
            size: bytes wanted, from 1; more than one mapping may be crossed if their memory
                follows on.

        Returns:
            The host address, and the bytes that can be had there: 1 to `size`.

        Raises:
            NotAllocatedError: nothing is mapped there.

        Complexity: O(log n + k) for k mappings that are crossed.
        """
        start = self._ordered().below(iova)
        book = self._by_start
        got = start + book[start][0] - iova if start >= 0 else 0
        if got <= 0:
            raise NotAllocatedError(f"nothing is mapped at {iova:#x}", address=iova)
        hva = book[start][1] + (iova - start)
        while got < size:
            item = book.get(iova + got)
            if item is None or item[1] != hva + got:
                break
            got += item[0]
        return Hva(hva), min(got, size)

    def clear(self) -> int:
        """Forget everything; return how many bytes that was."""
        book = self._book()
        total = sum(item[0] for item in book.values())
        self._order = None
        book.clear()
        return total

    def get(self, start: int, size: int) -> LiveMapping:
        """Return the mapping that is exactly `size` bytes at `start`.

        Raises:
            NotAllocatedError: there is none; the message names what is there instead.
        """
        self.demand(start, size)
        return self.at(start)

    def holds(self, start: int, size: int) -> bool:
        """Tell whether a mapping is exactly `size` bytes at `start`."""
        entry = self._book().get(start)
        return entry is not None and entry[0] == size

    def demand(self, start: int, size: int) -> None:
        """Make sure that a mapping is exactly `size` bytes at `start`; raises as `get`."""
        if self.holds(start, size):
            return
        near = self.overlapping(AddrRange(start, min(start + max(size, 1) - 1, ADDRESS_LAST)))
        there = ", ".join(str(item.range) for item in near[:4]) or "nothing"
        raise NotAllocatedError(
            f"no mapping is exactly {size:#x} bytes at {start:#x}; there is {there}",
            address=start,
            hint="the kernel unmaps whole mappings only: unmap what was mapped",
        )

    def at(self, start: int) -> LiveMapping:
        """Return the mapping that begins at `start`; raise NotAllocatedError if none does."""
        entry = self._book().get(start)
        if entry is None:
            raise NotAllocatedError(f"no mapping begins at {start:#x}", address=start)
        size, hva, read, write, place = entry
        window = AddrRange(start, start + size - 1)
        return LiveMapping(window, hva, read, write, line_of(place))

    def overlapping(self, window: AddrRange) -> list[LiveMapping]:
        """Return the mappings that share an address with `window`, ascending."""
        return [self.at(start) for start in self._within(window)]

    def _within(self, window: AddrRange) -> list[int]:
        order = self._ordered()
        found = order.span(window.start, window.last)
        below = order.below(window.start - 1) if window.start else -1
        if below >= 0 and below + self._by_start[below][0] > window.start:
            found.insert(0, below)
        return found

    def none_but(self, place: Spot, iova: int, size: int) -> bool:
        """Tell whether all that is noted of a range, if anything is, was noted with this `place`.

        Then an interrupted call with that place can only have mapped it, or not: had something else
        been there, the kernel would have refused.
        """
        if size < 1 or iova + size - 1 > ADDRESS_LAST:
            return False  # the kernel maps no such thing
        window = AddrRange(iova, iova + size - 1)
        return all(self._by_start[start][4] is place for start in self._within(window))

    def warn_if_any(self, what: str, source: object) -> None:
        """Warn of mappings that nobody took back, with the place that made the first."""
        if len(self):
            first = next(iter(self))
            warnings.warn(
                f"{what} was dropped with {len(self)} mapping(s); {first.range} was mapped at "
                f"{first.place}",
                ResourceWarning,
                stacklevel=2,
                source=source,
            )
