# SPDX-License-Identifier: Apache-2.0
"""IOVAs given out and taken back, exactly: lowest, highest or best fit, any alignment and window.

Pure arithmetic: nothing here touches a device or a file. The searching is done by one of two
engines with the same answers (`vmm_iova.allocator.engine`); what a request may look like, and
every refusal with its facts, stands in `vmm_iova.allocator.contract`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from vmm_iova.allocator import engine
from vmm_iova.allocator.contract import (
    Contract,
    Numbers,
    Policy,
    UsableLike,
    address_of,
    granule_of,
    ranges_of,
    window_of,
)
from vmm_iova.allocator.engine import engine_name
from vmm_iova.errors import RequestError
from vmm_iova.ranges import AddrRange, Iova, MappableRanges, RangeSet
from vmm_iova.record import record
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from vmm_iova.allocator.contract import Held

__all__ = [
    "Allocation",
    "IovaAllocator",
    "Transaction",
    "UsableLike",
    "allocator_class",
    "engine_name",
]


@record
class Allocation:
    """One range that is owned. Immutable.

    Attributes:
        range: its addresses.
        tag: what it was allocated with, or None.
    """

    range: AddrRange
    tag: object = None


_Class = TypeVar("_Class", bound=type)


def _with_engine(part: type[Any]) -> Callable[[_Class], _Class]:
    """Put the engine's part before a class: methods of the engine, with the words of the class.

    So a call of the compiled engine is a call into C with nothing between.
    """

    def combine(words: _Class) -> _Class:
        for name, method in vars(words).items():
            if name in vars(part) and not name.startswith("_"):
                engine.describe(vars(part)[name], method)
        scope = {name: getattr(words, name) for name in ("__doc__", "__module__", "__qualname__")}
        combined: _Class = type(words)(words.__name__, (part, words), {"__slots__": (), **scope})
        return combined

    return combine


@_with_engine(engine.load(engine_name()).Transaction)
class Transaction:
    """A stretch of changes to one allocator that stays whole, or is undone whole.

    Made by `IovaAllocator.transaction`. Changes that other threads make to the same allocator in
    the meantime belong to it too, and are undone with it.

    Synchronization: external (one thread enters and leaves it).
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __init__(self, allocator: IovaAllocator) -> None: ...
        def __enter__(self) -> Transaction: ...
        def __exit__(
            self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
        ) -> None: ...

    def __repr__(self) -> str:
        return "<Transaction of an IovaAllocator>"

    def rollback(self) -> None:
        """Undo now everything since the transaction was entered.

        The body may go on; what it does from here on stays, unless it raises.

        Raises:
            RequestError: the transaction is not open.

        Complexity: O(k log n) to undo k changes.
        """
        raise NotImplementedError


@_with_engine(engine.load(engine_name()).Core)
class IovaAllocator(Contract):
    """Gives out IOVAs and takes them back, exactly as asked.

    Address 0 is legal but not chosen by itself unless `allow_zero`; asking for it with
    `allocate_at` works. Sizes are never rounded. No allocation crosses the seam between two
    usable ranges that touch. Same calls, same addresses, on both engines.

    Args:
        usable: what may be used: a `RangeSet`, a `MappableRanges`, or what the judge returns
            (`UsableLike`), which also knows why anything else is refused.
        granule: bytes, a power of two from 1; sizes and places are multiples of it, and the
            ranges are cut inward to it. Needed with plain ranges; the judge's answer has its own.
        allow_zero: let `allocate` choose address 0.
        size_cache: keep up to 126 released ranges of each size up to 64 granules for the next
            request of that size with policy "first", no alignment and no window, which takes the
            one released last. It suits traffic of one size; it is off by default because it
            changes which addresses are chosen. What is kept counts as free everywhere else.

    Raises:
        RequestError: one of them makes no sense.

    Complexity: building O(r) for r usable ranges.
    Synchronization: internally locked; each method is atomic.

    Example:
        >>> from vmm_iova import AddrRange, RangeSet
        >>> iova = IovaAllocator(RangeSet([AddrRange(0x1000, 0xffff)]), granule=0x1000)
        >>> hex(iova.allocate(0x2000, align=0x2000))
        '0x2000'
        >>> hex(iova.allocate(0x1000, policy="last", tag="queue"))
        '0xf000'
        >>> iova.release(0x2000)
        >>> len(iova)
        1
    """

    __slots__ = ()

    if TYPE_CHECKING:
        # Of the engine: each is one atomic step.
        allow_zero: bool

        def __len__(self) -> int: ...
        def _setup(
            self, usable: Any, ranges: Any, granule: int, allow_zero: bool, size_cache: bool
        ) -> None: ...
        def _at(self, address: int) -> Held | None: ...

    _transaction = Transaction

    def __init__(
        self,
        usable: RangeSet | MappableRanges | UsableLike,
        granule: int | None = None,
        allow_zero: bool = False,
        *,
        size_cache: bool = False,
    ) -> None:
        unit = granule_of(usable, granule)
        ranges = ranges_of(usable).align_inward(unit)
        self._setup(usable, ranges, unit, bool(allow_zero), bool(size_cache))

    # The first six stand in the engine, which comes before this class: see _searching_with.

    def allocate(
        self,
        size: int,
        align: int | None = None,
        policy: Policy = "first",
        within: AddrRange | None = None,
        tag: object = None,
    ) -> Iova:
        """Choose a free range, own it, and return its first address.

        Address 0 is not chosen unless the allocator was made with `allow_zero`. The size is not
        rounded. The range lies inside one usable range and inside the window.

        Args:
            size: bytes, 1 to 2^64, a multiple of the granule; with a granule of one byte, at most
                2^64-1.
            align: bytes, a power of two; default and minimum is the granule.
            policy: "first" is the lowest place, "last" the highest, "best" the lowest place in
                the smallest free span that can hold it (the lowest span among equals, each span
                cut to the window).
            within: the range must lie inside this window, which is cut inward to whole granules;
                default is everything.
            tag: any object, kept with the allocation and named where it is in the way.

        Returns:
            IOVA, a multiple of the alignment.

        Raises:
            NoSpaceError: nothing fits; carries the largest free span and the largest size that
                would fit at that alignment.
            MisalignedError: the size is not a multiple of the granule.
            RequestError: an argument makes no sense.

        Complexity: O(log n) in the fast engine, and O(n) once for each alignment and for "best"
            when they are first asked for, and for the parts of the space where the edges of
            windows of "best" lie. In the pure engine "first" and "last" may look at every span
            that is at least as large as the request and below the next power of two, and "best" at
            every large enough span that the alignment or the window rejects.
        Synchronization: internally locked; one call is atomic.
        Source: never choosing 0 follows iommufd, drivers/iommu/iommufd/io_pagetable.c,
            iopt_alloc_iova(), Linux 6.2.
        """
        raise NotImplementedError

    def allocate_at(
        self, start: int, size: int, tag: object = None, *, align: int | None = None
    ) -> Iova:
        """Own the range at a place that the caller chose, address 0 included.

        Args:
            start: IOVA, a multiple of the granule.
            size: bytes, 1 to 2^64, a multiple of the granule; with a granule of one byte, at most
                2^64-1.
            tag: any object, kept with the allocation and named where it is in the way.
            align: bytes, a power of two that `start` must be a multiple of, for callers that
                have such a demand; default is the granule.

        Returns:
            `start`.

        Raises:
            OccupiedError: an allocation is in the way; carries its tag and range.
            ApertureError, ReservedError, StraddleError: the place is not usable; says why.
            MisalignedError: start or size is not a multiple of the granule or alignment.
            RequestError: an argument makes no sense, or the range reaches beyond 2^64-1.

        Complexity: O(log n).
        Synchronization: internally locked; one call is atomic.
        """
        raise NotImplementedError

    def release(self, start: int, size: int | None = None) -> None:
        """Give an allocation back, the whole of it.

        Args:
            start: its first address.
            size: bytes; if given it must be the size of the allocation.

        Raises:
            NotAllocatedError: no allocation begins there; names the one that holds the address.
            SizeMismatchError: it has another size; nothing was released.
            RequestError: an argument makes no sense.

        Complexity: O(log n).
        Synchronization: internally locked; one call is atomic.
        """
        raise NotImplementedError

    def allocate_many(
        self,
        sizes: Numbers,
        out: Numbers | None = None,
        *,
        align: int | None = None,
        policy: Policy = "first",
        within: AddrRange | None = None,
    ) -> Numbers:
        """Allocate a range for each size, in order, as `allocate` would: all or nothing.

        Args:
            sizes: bytes; any contiguous buffer of 64-bit integers.
            out: writable buffer of as many, for the first addresses; default is a new array.
            align: bytes, for all of them; as in `allocate`.
            policy: for all of them; as in `allocate`.
            within: for all of them; as in `allocate`.

        Returns:
            `out`.

        Raises:
            NoSpaceError, MisalignedError, RequestError: as `allocate`; a note says which item it
                was. Nothing was allocated, and what `out` holds is undefined.

        Complexity: O(k log n).
        Synchronization: internally locked; the whole batch is atomic.
        """
        raise NotImplementedError

    def release_many(self, starts: Numbers, sizes: Numbers | None = None) -> None:
        """Release the allocation that begins at each address, as `release` would: all or nothing.

        Args:
            starts: first addresses; any contiguous buffer of 64-bit integers.
            sizes: bytes of each, to be checked; default is not to check.

        Raises:
            NotAllocatedError, SizeMismatchError, RequestError: as `release`; a note says which
                item it was. Nothing was released.

        Complexity: O(k log n).
        Synchronization: internally locked; the whole batch is atomic.
        """
        raise NotImplementedError

    def lookup_many(
        self, addresses: Numbers, starts: Numbers | None = None, lasts: Numbers | None = None
    ) -> tuple[Numbers, Numbers]:
        """Find the allocation that holds each address.

        Args:
            addresses: any contiguous buffer of 64-bit integers.
            starts: writable buffer of as many, for the first address of each allocation; default
                is a new array.
            lasts: the same for its last address.

        Returns:
            `starts` and `lasts`; 1 and 0 where nothing is allocated: no range has its last
            address below its first.

        Raises:
            RequestError: they are not such buffers.

        Complexity: O(k log n).
        Synchronization: internally locked; the whole batch is atomic.
        """
        raise NotImplementedError

    def __copy__(self) -> NoReturn:
        raise TypeError("an allocator is not copied: two would give out the same addresses")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an allocator is not pickled; its allocations, ranges and errors are")

    def __repr__(self) -> str:
        ranges, allocated, count = self._counts()
        return (
            f"<IovaAllocator of {len(ranges)} ranges, granule {self.granule:#x}: "
            f"{count} allocations, {format_size(allocated)}>"
        )

    def __iter__(self) -> Iterator[Allocation]:
        """Yield the allocations in address order, as they were when the iteration began."""
        starts, lasts, tags = self._snapshot()
        for start, last in zip(starts, lasts, strict=True):
            yield Allocation(AddrRange(start, last), tags.get(start))

    def __contains__(self, address: object) -> bool:
        """Tell whether an address is allocated."""
        try:
            return self._at(address_of(address, "address")) is not None
        except RequestError:
            return False  # no address at all

    @property
    def usable(self) -> RangeSet | MappableRanges | UsableLike:
        """What the allocator was told it may use, as it was given."""
        usable: RangeSet | MappableRanges | UsableLike = self._usable
        return usable

    @property
    def ranges(self) -> MappableRanges:
        """The same cut inward to whole granules: what is really used."""
        return self._ranges

    @property
    def allocated_bytes(self) -> int:
        """Bytes allocated, 0 to 2^64."""
        return self._counts()[1]

    @property
    def free_bytes(self) -> int:
        """Bytes free, 0 to 2^64; a free granule at address 0 counts."""
        ranges, allocated, _ = self._counts()
        return ranges.size - allocated

    def allocation_at(self, address: int) -> Allocation | None:
        """Return the allocation that holds an address, or None.

        Args:
            address: IOVA, 0 to 2^64-1; need not be the first of the allocation.

        Raises:
            RequestError: not such an address.

        Complexity: O(log n).
        Synchronization: internally locked; one call is atomic.
        """
        held = self._at(address_of(address, "address"))
        return None if held is None else Allocation(AddrRange(held[0], held[1]), held[2])

    def free_spans(self, within: AddrRange | None = None) -> Iterator[AddrRange]:
        """Yield the free spans, ascending, as they were when this was called.

        Spans of different usable ranges stay apart even where they touch: nothing may be
        allocated across. A free granule at address 0 is part of its span although `allocate`
        does not choose it unless `allow_zero`.

        Args:
            within: cut the spans to this window; default is everything.

        Complexity: O(log n + k), at the call.
        Synchronization: internally locked; the spans belong to one moment.
        """
        start, last = window_of(within)
        starts, lasts = self._gaps(start, last)
        return map(AddrRange, starts, lasts)

    def narrow(self, usable: RangeSet | MappableRanges | UsableLike) -> None:
        """Take a smaller set of usable ranges, because a device was attached: all or nothing.

        Args:
            usable: new ranges, none outside of the present ones; the granule stays.

        Raises:
            NarrowError: allocations are in the way; carries them, and nothing was changed.
            RequestError: `usable` holds addresses that are not usable now (see `widen`), or its
                granule is larger than the allocator's.

        Complexity: O(n).
        Synchronization: internally locked; one call is atomic.
        """
        self._change_ranges(usable, wider=False)

    def widen(self, usable: RangeSet | MappableRanges | UsableLike) -> None:
        """Take a larger set of usable ranges, because a device was detached: all or nothing.

        Args:
            usable: new ranges that hold all of the present ones; the granule stays.

        Raises:
            NarrowError: a new seam runs through an allocation; nothing was changed.
            RequestError: `usable` lacks addresses that are usable now (see `narrow`), or its
                granule is larger than the allocator's.

        Complexity: O(n).
        Synchronization: internally locked; one call is atomic.
        """
        self._change_ranges(usable, wider=True)

    def transaction(self) -> Transaction:
        """Return a context that restores allocations, tags and usable ranges if its body raises.

        May be nested. `rollback()` on what `with` gives restores without an error.

        Complexity: O(1) to enter; O(k log n) to undo k changes, O(n) if usable ranges changed.
        Synchronization: each change is atomic, the transaction as a whole is not: other threads
            see its changes at once, and what they change meanwhile is undone with it.
        """
        return self._transaction(self)


@cache
def allocator_class(name: str | None = None) -> type[IovaAllocator]:
    """Return the allocator class of an engine, so that one process can hold both.

    Args:
        name: "fast" or "pure"; default is the engine in force, whose class is `IovaAllocator`.

    Raises:
        EngineError: there is no such engine here.
    """
    module = engine.load(name or engine_name())
    if issubclass(IovaAllocator, module.Core):
        return IovaAllocator
    # The classes of the words come after the public ones and their engine.
    words: list[Any] = [IovaAllocator.__mro__[2], Transaction.__mro__[2]]
    combined: type[IovaAllocator] = _with_engine(module.Core)(words[0])
    combined._transaction = _with_engine(module.Transaction)(words[1])
    return combined
