# SPDX-License-Identifier: Apache-2.0
"""What a type1 container, an IOAS and their simulation have in common: an address space.

`AddressSpace` is all that `mapping` needs to know. `LiveMappings` is the book that each keeps of
what it has mapped, so that overlaps are explained before the kernel says `EEXIST`, unmapped sizes
are verified, and a mapping that was forgotten is reported with the place that made it.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import warnings
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from vmm_iova.brief import brief
from vmm_iova.errors import (
    DmaError,
    NotAllocatedError,
    PartialUnmapError,
    RangeOverflowError,
    RequestError,
)
from vmm_iova.ranges import ADDRESS_LAST, GIB, AddrRange, Hva, Iova, MappableRanges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_iova.host.facts import SpaceKind
    from vmm_iova.kernel.registers import Device
    from vmm_iova.kernel.syscalls import Kernel, LockBudget


_LARGEST_IN_USE = GIB  # VT-d, AMD-Vi and SMMUv3 with 4 KiB pages; congruence costs nothing


@brief
@dataclass(frozen=True, slots=True)
class SpaceFacts:
    """What the kernel says of an address space, after the devices that are attached now.

    Attributes:
        ranges: where mappings may lie, each inside ONE of them; or None: the kernel does not say.
        granule: bytes; IOVA, HVA and size of a mapping are multiples of it.
        page_sizes: bitmap of the IOMMU's page sizes; with iommufd, which does not tell, the granule
            and 0 for the rest.
        entries_left: map calls that can still be made, or None: no limit, or not told.
        source: the call that told.
        final: whether attaching the devices that are attached now can change nothing any more;
            a fresh IOAS says "everything" and means nothing.
    """

    ranges: MappableRanges | None
    granule: int
    page_sizes: int
    entries_left: int | None
    source: str
    final: bool

    @property
    def largest_page(self) -> int:
        """The largest page that the IOMMU may use, bytes: 1 GiB where nothing tells (iommufd)."""
        return 1 << self.page_sizes.bit_length() - 1 if self.page_sizes else _LARGEST_IN_USE


@brief
@dataclass(frozen=True, slots=True)
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


class Doubtful(NamedTuple):
    """One mapping of which an interrupt makes it doubtful whether it is there."""

    iova: Iova
    hva: Hva
    size: int
    read: bool
    write: bool


class AddressSpace(Protocol):
    """An I/O address space: where devices see memory of this process.

    Synchronization: external.
    """

    kind: SpaceKind
    live: LiveMappings

    def facts(self) -> SpaceFacts:
        """Ask the kernel; the answer can change with every attach."""

    def map(
        self, iova: Iova, hva: Hva, size: int, *, read: bool = True, write: bool = True
    ) -> None:
        """Map `size` bytes of this process at `iova`, or raise DmaError and leave nothing."""

    def map_many(self, pieces: Sequence[Mappable]) -> tuple[int, DmaError | None]:
        """Map in the order given until one is refused; return how many are mapped, and why."""

    def unmap(self, iova: Iova, size: int) -> int:
        """Unmap exactly one mapping; return its bytes. Raise PartialUnmapError if not so many."""

    def unmap_range(self, iova: Iova, size: int) -> int:
        """Make the bare call, whatever `live` says; return the bytes that the kernel removed."""

    def unmap_all(self) -> int:
        """Unmap everything; return the bytes."""

    def lock_budget(self) -> LockBudget:
        """Return how much memory this process may lock."""

    @property
    def kernel(self) -> Kernel:
        """Where the calls go."""

    def device_fd(self, bdf: str) -> int:
        """Return the descriptor of an attached device.

        Raises UnknownNameError if it is not attached, ClosedError when the space is closed.
        """

    def device(self, bdf: str) -> Device:
        """Return an attached device with its registers and interrupts; raises as `device_fd`."""

    def __enter__(self) -> Self:
        """Return this; leaving closes."""

    def __exit__(self, *exc: object) -> None:
        """Close, also when the body raised."""

    def close(self) -> None:
        """Close devices, mappings and files, in this order. Idempotent."""


def caller(depth: int = 2) -> tuple[str, int]:
    """Return file and line of the nearest caller outside of this package."""
    frame = sys._getframe(depth)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("vmm_iova."):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


_Entry = tuple[int, Hva, bool, bool, tuple[str, int]]
"""Size, host address, rights and place of a mapping."""


class LiveMappings:
    """The mappings of an address space, by IOVA.

    Complexity: adding and removing O(1); the first question after a change O(n log n), further
    ones O(log n + k).
    Synchronization: external.
    """

    __slots__ = ("_by_start", "_order", "_unread")

    def __init__(self) -> None:
        # PERF: bench/map_calls.py; plain tuples, made into LiveMapping when somebody asks, and
        # batches that are not read into the book before somebody asks either.
        self._by_start: dict[int, _Entry] = {}
        self._unread: list[tuple[Sequence[Mappable], tuple[str, int]]] = []
        self._order: list[int] | None = []

    def _book(self) -> dict[int, _Entry]:
        # In every change the order goes first: whatever an interrupt leaves out, what is there can
        # be sorted again.
        if self._unread:
            self._order = None
            for pieces, place in self._unread:
                self._by_start.update(
                    (item.iova, (item.size, item.hva, item.read, item.write, place))
                    for item in pieces
                )
            self._unread.clear()
        return self._by_start

    def __repr__(self) -> str:
        total = sum(item.range.size for item in self)
        return f"<LiveMappings: {len(self)} of {total:#x} bytes>"

    def __len__(self) -> int:
        return len(self._book())

    def __iter__(self) -> Iterator[LiveMapping]:
        return iter([self.at(start) for start in self._sorted()])

    def __contains__(self, start: object) -> bool:
        return start in self._book()

    def _sorted(self) -> list[int]:
        book = self._book()
        if self._order is None:
            self._order = sorted(book)
        return self._order

    def add(
        self, iova: Iova, size: int, hva: Hva, place: tuple[str, int], *, read: bool, write: bool
    ) -> None:
        """Note a mapping that the kernel has taken."""
        self._order = None
        self._by_start[iova] = (size, hva, read, write, place)

    def add_many(self, pieces: Sequence[Mappable], place: tuple[str, int]) -> None:
        """Note mappings that the kernel has taken; the sequence must not change any more."""
        if pieces:
            self._unread.append((pieces, place))

    def remove(self, start: int) -> None:
        """Forget the mapping that begins at `start`."""
        book = self._book()
        self._order = None
        del book[start]

    def discard(self, start: int) -> None:
        """Forget the mapping that begins at `start`, if there is one."""
        if start in self._book():
            self.remove(start)

    def forget(self, window: AddrRange) -> None:
        """Forget every mapping that shares an address with `window`."""
        gone = self._within(window)
        self._order = None
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
        near = self.overlapping(AddrRange(iova, min(iova + size - 1, ADDRESS_LAST)))
        if not near or near[0].range.start > iova:
            raise NotAllocatedError(f"nothing is mapped at {iova:#x}", address=iova)
        first = near[0]
        hva = first.hva + (iova - first.range.start)
        got = first.range.last - iova + 1
        for item in near[1:]:
            if item.range.start != iova + got or item.hva != hva + got:
                break
            got += item.range.size
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
        entry = self._book().get(start)
        if entry is not None and entry[0] == size:
            return self.at(start)
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
        return LiveMapping(window, hva, read, write, f"{place[0]}:{place[1]}")

    def overlapping(self, window: AddrRange) -> list[LiveMapping]:
        """Return the mappings that share an address with `window`, ascending."""
        return [self.at(start) for start in self._within(window)]

    def _within(self, window: AddrRange) -> list[int]:
        order = self._sorted()
        first = bisect_right(order, window.start) - 1
        if first < 0 or order[first] + self._by_start[order[first]][0] <= window.start:
            first += 1
        return order[first : bisect_right(order, window.last)]

    def none_but(self, place: tuple[str, int], iova: int, size: int) -> bool:
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
            first = self.at(self._sorted()[0])
            warnings.warn(
                f"{what} was dropped with {len(self)} mapping(s); {first.range} was mapped at "
                f"{first.place}",
                ResourceWarning,
                stacklevel=2,
                source=source,
            )


def no_number(**values: object) -> RequestError:
    """Make the error for what no field of 64 bits can take; struct does not say which it was."""
    field, value = next(
        (
            (field, value)
            for field, value in values.items()
            if not isinstance(value, int) or not 0 <= value <= ADDRESS_LAST
        ),
        ("pieces", values),
    )
    if not isinstance(value, int):
        return RequestError(f"{field} {value!r} is not a number", field=field, value=value)
    return RangeOverflowError(
        f"{field} {value:#x} is outside of 0 to 2^64-1", field=field, value=value
    )


def no_numbers(pieces: Sequence[Mappable]) -> RequestError:
    """Make that error for the first of many pieces that has it."""
    errors = (no_number(iova=item.iova, hva=item.hva, size=item.size) for item in pieces)
    return next((error for error in errors if error.field != "pieces"), no_number())


def undo_doubtful(space: AddressSpace, pieces: Sequence[Mappable], place: tuple[str, int]) -> None:
    """Unmap in reverse what an interrupted map call with this place has mapped, noted or not.

    What the kernel refuses stays, noted or not: an interrupt is on its way, and has the word.
    """
    ours = [item for item in pieces if space.live.none_but(place, item.iova, item.size)]
    for item in reversed(ours):
        with contextlib.suppress(DmaError):
            make_sure_unmapped(space, item.iova, item.size)


def make_sure_unmapped(space: AddressSpace, iova: Iova, size: int) -> None:
    """Unmap what may or may not be mapped: an interrupt came before the book was written.

    Raises:
        DmaError: the kernel refused; ENOENT, iommufd's word for "nothing there", is no refusal.
    """
    try:
        space.unmap_range(iova, size)
    except DmaError as exc:
        if exc.errno != errno.ENOENT:
            raise
    space.live.discard(iova)


def unmap_exactly(space: AddressSpace, ioctl: str, iova: Iova, size: int) -> int:
    """Unmap one whole mapping; return its bytes.

    Raises:
        NotAllocatedError: `size` bytes at `iova` are not one mapping; nothing was done.
        DmaError: the kernel refused.
        PartialUnmapError: it removed another number of bytes; the address space is not as this
            process believes.
    """
    space.live.get(iova, size)
    try:
        unmapped = space.unmap_range(iova, size)
        space.live.remove(iova)
    except DmaError:
        raise
    except BaseException:
        # An interrupt: whether before the call or after it, it is brought to its end.
        with contextlib.suppress(DmaError):
            make_sure_unmapped(space, iova, size)
        raise
    if unmapped != size:
        raise PartialUnmapError(
            f"{ioctl} at {iova:#x} removed {unmapped:#x} bytes instead of {size:#x}",
            errno=0,
            ioctl=ioctl,
            iova=iova,
            length=size,
            unmapped=unmapped,
            hint="something else maps in this address space; unmap_all makes it empty",
        )
    return unmapped


def empty(space: AddressSpace, unmap_everything: Callable[[], int]) -> int:
    """Unmap everything, and forget it; return the bytes.

    Raises:
        DmaError: the kernel refused; nothing is forgotten.
    """
    try:
        total = unmap_everything()
        space.live.clear()
    except DmaError:
        raise
    except BaseException:
        with contextlib.suppress(DmaError):
            unmap_everything()
            space.live.clear()
        raise
    return total
