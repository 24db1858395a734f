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
    from collections.abc import Iterator, Sequence
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
    try:
        frame = sys._getframe(depth)
    except ValueError:  # nobody: a thread began with the method that asks
        frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith("vmm_iova.") and frame.f_back is not None:
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


class PlainBook:
    """Mappings by their start: `_ioctl.Book` where that is not compiled.

    Attributes:
        unread: batches that are mapped and not put into the book before somebody asks.
    """

    __slots__ = ("_entries", "_late", "_order", "unread")

    def __init__(self) -> None:
        self.unread: list[tuple[Sequence[Mappable], Spot]] = []
        self._entries: dict[int, Entry] = {}
        # PERF: in order since somebody asked for it, but for what has changed since then. That
        # stands in `_late`, before the change itself does: so an interrupt leaves nothing out.
        self._order: SortedList[int] | None = None
        self._late: list[int] = []

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, start: int, size: int, hva: Hva, read: bool, write: bool, place: Spot) -> None:
        """Note a mapping, in place of what began there."""
        if self._order is not None:
            self._note(start)
        self._entries[start] = (size, hva, read, write, place)

    def read(self) -> None:
        """Put all batches into the book."""
        for pieces, place in self.unread:
            for item in pieces:
                self.put(item.iova, item.size, item.hva, item.read, item.write, place)
        self.unread.clear()

    def get(self, start: int) -> Entry | None:
        """Return what begins there."""
        return self._entries.get(start)

    def drop(self, start: int) -> None:
        """Forget what begins there, if anything does."""
        if self._order is not None:
            self._note(start)
        self._entries.pop(start, None)

    def clear(self) -> int:
        """Forget everything; return how many bytes that was."""
        total = sum(item[0] for item in self._entries.values())
        self._order = None
        self._entries.clear()
        return total

    def _note(self, start: int) -> None:
        self._late.append(start)
        if len(self._late) > 2 * len(self._entries) + 1000:
            self._order = None  # nobody asks: it need not be kept

    def _ordered(self) -> SortedList[int]:
        entries, order, late = self._entries, self._order, self._late
        if order is None or (len(late) > 64 and len(late) > len(entries) // 4):
            self._order = None
            self._late = []
            self._order = order = SortedList(entries)
        elif late:
            try:
                for start in late:
                    here = start in order
                    if here != (start in entries):
                        (order.remove if here else order.add)(start)
                late.clear()
            except BaseException:
                self._order = None
                raise
        return order

    def below(self, x: int) -> int:
        """Return the highest start up to x, or -1."""
        order = self._ordered()
        at = order.bisect_right(x)
        return order[at - 1] if at else -1

    def span(self, first: int, last: int) -> list[int]:
        """Return the starts from first to last."""
        return list(self._ordered().irange(first, last))


try:
    from vmm_iova.kernel._ioctl import Book as Book
    from vmm_iova.kernel._ioctl import spot as spot
except ImportError:  # not compiled
    Book, spot = PlainBook, plain_spot  # type: ignore[misc, assignment]


class LiveMappings:
    """The mappings of an address space, by IOVA.

    Complexity: O(log n) for a change, O(log n + k) for a question. Where the package was not
        compiled, O(1) for a change, O(log n) for each at the next question, and O(n log n) for the
        first one.
    Synchronization: external.

    Attributes:
        book: the same in plain numbers, which C reads and writes, too.
    """

    __slots__ = ("book",)

    def __init__(self) -> None:
        self.book = Book()

    def _read(self) -> Book:
        """Return the book, after all batches were put into it."""
        book = self.book
        if book.unread:
            book.read()
        return book

    def __repr__(self) -> str:
        total = sum(item.range.size for item in self)
        return f"<LiveMappings: {len(self)} of {total:#x} bytes>"

    def __len__(self) -> int:
        return len(self._read())

    def __iter__(self) -> Iterator[LiveMapping]:
        return iter([self.at(start) for start in self._read().span(0, ADDRESS_LAST)])

    def __contains__(self, start: int) -> bool:
        return self._read().get(start) is not None

    def add_many(self, pieces: Sequence[Mappable], place: Spot) -> None:
        """Note mappings that the kernel has taken; the sequence must not change any more."""
        if pieces:
            self.book.unread.append((pieces, place))

    def discard(self, start: int) -> None:
        """Forget the mapping that begins at `start`, if there is one."""
        self._read().drop(start)

    def forget(self, window: AddrRange) -> None:
        """Forget every mapping that shares an address with `window`."""
        for start in self._within(window):
            self.book.drop(start)

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
        book = self._read()
        start = book.below(iova)
        entry = book.get(start)
        got = start + entry[0] - iova if entry is not None else 0
        if entry is None or got <= 0:
            raise NotAllocatedError(f"nothing is mapped at {iova:#x}", address=iova)
        hva = entry[1] + (iova - start)
        while got < size:
            entry = book.get(iova + got)
            if entry is None or entry[1] != hva + got:
                break
            got += entry[0]
        return Hva(hva), min(got, size)

    def clear(self) -> int:
        """Forget everything; return how many bytes that was."""
        return self._read().clear()

    def get(self, start: int, size: int) -> LiveMapping:
        """Return the mapping that is exactly `size` bytes at `start`.

        Raises:
            NotAllocatedError: there is none; the message names what is there instead.
        """
        self.demand(start, size)
        return self.at(start)

    def demand(self, start: int, size: int) -> None:
        """Make sure that a mapping is exactly `size` bytes at `start`; raises as `get`."""
        entry = self._read().get(start)
        if entry is not None and entry[0] == size:
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
        entry = self._read().get(start)
        if entry is None:
            raise NotAllocatedError(f"no mapping begins at {start:#x}", address=start)
        size, hva, read, write, place = entry
        window = AddrRange(start, start + size - 1)
        return LiveMapping(window, hva, read, write, line_of(place))

    def overlapping(self, window: AddrRange) -> list[LiveMapping]:
        """Return the mappings that share an address with `window`, ascending."""
        return [self.at(start) for start in self._within(window)]

    def _within(self, window: AddrRange) -> list[int]:
        book = self._read()
        found = book.span(window.start, window.last)
        below = book.below(window.start - 1) if window.start else -1
        entry = book.get(below)
        if entry is not None and below + entry[0] > window.start:
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
        entries = map(self.book.get, self._within(window))
        return all(entry is not None and entry[4] is place for entry in entries)

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
