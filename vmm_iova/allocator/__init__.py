# SPDX-License-Identifier: Apache-2.0
"""IOVAs given out and taken back, exactly: lowest, highest or best fit, any alignment and window.

Pure arithmetic: nothing here touches a device or a file. The searching is done by one of two
engines with the same answers (`vmm_iova.allocator.engine`); what they share stands here: what a
request may look like, and every refusal with its facts.
"""

from __future__ import annotations

from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from operator import index
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from vmm_iova.allocator import engine
from vmm_iova.allocator.engine import engine_name
from vmm_iova.errors import (
    ApertureError,
    InvariantError,
    IovaError,
    MisalignedError,
    NarrowError,
    NoSpaceError,
    NotAllocatedError,
    OccupiedError,
    PlacementError,
    RangeOverflowError,
    RequestError,
    SizeMismatchError,
    StraddleError,
)
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges, RangeSet, check_granule
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

__all__ = [
    "Allocation",
    "IovaAllocator",
    "Transaction",
    "UsableLike",
    "allocator_class",
    "engine_name",
]

Numbers = Any
"""Any contiguous buffer of 64-bit integers: an `array`, a `memoryview`, a NumPy array."""

_POLICIES = {"first": 0, "last": 1, "best": 2}
_SHOWN_CONFLICTS = 4


class UsableLike(Protocol):
    """What the allocator asks of the judge's answer (`vmm_iova.host.usable.Usable`)."""

    @property
    def ranges(self) -> MappableRanges:
        """Where one mapping may lie; neighbours that touch stay two."""

    @property
    def granule(self) -> int:
        """Smallest mapping unit, bytes."""

    def refusal(self, range: AddrRange, /) -> PlacementError | None:  # noqa: A002
        """Return the error that says what forbids `range`, or None when nothing does."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One range that is owned. Immutable.

    Attributes:
        range: its addresses.
        tag: what it was allocated with, or None.
    """

    range: AddrRange
    tag: object = None


class Transaction:
    """A stretch of changes to one allocator that stays whole, or is undone whole.

    Made by `IovaAllocator.transaction`. Changes that other threads make to the same allocator in
    the meantime belong to it too, and are undone with it.

    Synchronization: external (one thread enters and leaves it).
    """

    __slots__ = ("_allocator", "_mark")

    def __init__(self, allocator: _Contract) -> None:
        self._allocator = allocator
        self._mark = -1

    def __enter__(self) -> Transaction:
        self._mark = self._allocator._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        mark, self._mark = self._mark, -1
        self._allocator._finish(mark, kind is not None)

    def rollback(self) -> None:
        """Undo now everything since the transaction was entered.

        The body may go on; what it does from here on stays, unless it raises.

        Raises:
            RequestError: the transaction is not open.
        """
        if self._mark < 0:
            raise RequestError("the transaction is not open", field="transaction", value=self)
        self._allocator._undo(self._mark)


class _Contract:
    """What is the same on both engines. Its `_core` methods come from the engine's class."""

    __slots__ = ()

    if TYPE_CHECKING:
        # Of the engine: each is one atomic step.
        granule: int
        allow_zero: bool
        _usable: Any
        _ranges: MappableRanges

        def __len__(self) -> int: ...
        def _setup(self, usable: Any, ranges: Any, granule: int, options: Any) -> None: ...
        def _swap(self, usable: Any, ranges: Any) -> list[tuple[int, int, object]]: ...
        def _at(self, address: int) -> tuple[int, int, object] | None: ...
        def _overlap(self, start: int, last: int) -> tuple[int, int, object] | None: ...
        def _snapshot(self) -> tuple[Any, Any, dict[int, object]]: ...
        def _gaps(self, start: int, last: int) -> tuple[Any, Any]: ...
        def _allocated(self) -> int: ...
        def _begin(self) -> int: ...
        def _undo(self, mark: int) -> None: ...
        def _finish(self, mark: int, failed: bool) -> None: ...
        def _check_core(self) -> None: ...
        def _held(self) -> AbstractContextManager[object]: ...
        def allocate(
            self, size: Any, align: Any = None, policy: Any = "first", within: Any = None
        ) -> int: ...
        def release(self, start: Any, size: Any = None) -> None: ...

    def __init__(
        self,
        usable: RangeSet | MappableRanges | UsableLike,
        granule: int | None = None,
        allow_zero: bool = False,
        *,
        size_cache: bool = False,
    ) -> None:
        unit = _granule_of(usable, granule)
        ranges = _ranges_of(usable).align_inward(unit)
        self._setup(
            usable, ranges, unit, {"allow_zero": bool(allow_zero), "size_cache": bool(size_cache)}
        )

    def __copy__(self) -> NoReturn:
        raise TypeError("an allocator is not copied: two would give out the same addresses")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an allocator is not pickled; its allocations, ranges and errors are")

    def __repr__(self) -> str:
        return (
            f"<IovaAllocator of {len(self._ranges)} ranges, granule {self.granule:#x}: "
            f"{len(self)} allocations, {format_size(self._allocated())}>"
        )

    def __iter__(self) -> Iterator[Allocation]:
        """Yield the allocations in address order, as they were when the iteration began."""
        starts, lasts, tags = self._snapshot()
        for start, last in zip(starts, lasts, strict=True):
            yield Allocation(AddrRange(start, last), tags.get(start))

    def __contains__(self, address: object) -> bool:
        """Tell whether an address is allocated."""
        return isinstance(address, int) and self._at(address) is not None

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
        return self._allocated()

    @property
    def free_bytes(self) -> int:
        """Bytes free, 0 to 2^64; a free granule at address 0 counts."""
        return self._ranges.size - self._allocated()

    def allocation_at(self, address: int) -> Allocation | None:
        """Return the allocation that holds an address, or None.

        Args:
            address: IOVA, 0 to 2^64-1; need not be the first of the allocation.

        Raises:
            RequestError: not such an address.

        Complexity: O(log n).
        Synchronization: internally locked; one call is atomic.
        """
        found = self._at(_address(address, "address"))
        return None if found is None else Allocation(AddrRange(found[0], found[1]), found[2])

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
        start, last = _window(within)
        starts, lasts = self._gaps(start, last)
        return map(AddrRange, starts, lasts)

    def allocate_many(
        self,
        sizes: Numbers,
        out: Numbers | None = None,
        *,
        align: int | None = None,
        policy: str = "first",
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
        return self._allocate_many(sizes, out, align, policy, within)

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
        self._release_many(starts, sizes)

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
        return self._lookup_many(addresses, starts, lasts)

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
        ranges = self._new_ranges(usable)
        extra = ranges.as_set() - self._ranges.as_set()
        if extra:
            raise RequestError(
                f"narrow() was given {extra[0]}, which is not usable now",
                field="usable",
                value=usable,
                hint="take what a detached device gives back with widen()",
            )
        self._adopt(usable, ranges)

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
        ranges = self._new_ranges(usable)
        lost = self._ranges.as_set() - ranges.as_set()
        if lost:
            raise RequestError(
                f"widen() was given ranges without {lost[0]}, which is usable now",
                field="usable",
                value=usable,
                hint="take what an attached device forbids with narrow()",
            )
        self._adopt(usable, ranges)

    def transaction(self) -> Transaction:
        """Return a context that restores allocations, tags and usable ranges if its body raises.

        May be nested. `rollback()` on what `with` gives restores without an error.

        Complexity: O(1) to enter; O(k log n) to undo k changes, O(n) if usable ranges changed.
        Synchronization: each change is atomic, the transaction as a whole is not: other threads
            see its changes at once, and what they change meanwhile is undone with it.
        """
        return Transaction(self)

    def _check(self) -> None:
        """Walk every invariant; raises InvariantError at the first that does not hold."""
        self._check_core()
        previous = -1
        total = count = 0
        for start, last in zip(*self._snapshot()[:2], strict=True):
            # INVARIANT: allocations are whole granules, ascending, disjoint, in one usable range.
            fine = previous < start <= last and not (start | (last + 1)) & (self.granule - 1)
            if not fine or AddrRange(start, last) not in self._ranges:
                raise InvariantError(f"the allocation {start:#x}-{last:#x} is out of place")
            previous = last
            total += last - start + 1
            count += 1
        # INVARIANT: the counters tell what the allocations add up to.
        if total != self.allocated_bytes or count != len(self):
            raise InvariantError(f"{count} allocations of {total:#x} bytes, but {self!r}")
        # INVARIANT: allocated and free together are the usable ranges, disjoint.
        free = [AddrRange(*span) for span in zip(*self._gaps(0, ADDRESS_LAST), strict=True)]
        if sum(span.size for span in free) + total != self._ranges.size:
            raise InvariantError("free and allocated do not add up to the usable ranges")
        if any(span not in self._ranges for span in free):
            raise InvariantError("a free span is out of place")

    def _allocate_many(self, sizes: Any, out: Any, align: Any, policy: Any, within: Any) -> Numbers:
        asked = _numbers(sizes, "sizes")
        result, told = _output(out, len(asked), "out")
        with self._held(), self.transaction():
            for i, size in enumerate(asked.tolist()):
                with self._naming_item(i):
                    told[i] = self.allocate(size, align, policy, within)
        return result

    def _release_many(self, starts: Any, sizes: Any) -> None:
        asked = _numbers(starts, "starts")
        told = None if sizes is None else _numbers(sizes, "sizes").tolist()
        if told is not None and len(told) != len(asked):
            raise RequestError(
                f"sizes has {len(told)} items for {len(asked)} starts", field="sizes", value=sizes
            )
        with self._held(), self.transaction():
            for i, start in enumerate(asked.tolist()):
                with self._naming_item(i):
                    self.release(start, None if told is None else told[i])

    def _lookup_many(self, addresses: Any, starts: Any, lasts: Any) -> tuple[Numbers, Numbers]:
        asked = _numbers(addresses, "addresses")
        first, first_view = _output(starts, len(asked), "starts")
        last, last_view = _output(lasts, len(asked), "lasts")
        with self._held():
            for i, address in enumerate(asked.tolist()):
                found = self._at(address)
                first_view[i], last_view[i] = (1, 0) if found is None else found[:2]
        return first, last

    @staticmethod
    @contextmanager
    def _naming_item(number: int) -> Iterator[None]:
        try:
            yield
        except IovaError as error:
            error.add_note(f"item {number} of the batch; the whole of it was undone")
            raise

    def _new_ranges(self, usable: Any) -> MappableRanges:
        ranges = _ranges_of(usable)
        if _asks(usable) and usable.granule > self.granule:
            raise RequestError(
                f"the new ranges have the granule {usable.granule:#x}, above the {self.granule:#x} "
                "of what was already allocated",
                field="usable",
                value=usable,
                hint="begin with the largest granule of all devices that will be attached",
            )
        return ranges.align_inward(self.granule)

    def _adopt(self, usable: Any, ranges: MappableRanges) -> None:
        conflicts = self._swap(usable, ranges)
        if conflicts:
            named = [
                f"{AddrRange(start, last)}{_of_tag(tag)}"
                for start, last, tag in conflicts[:_SHOWN_CONFLICTS]
            ]
            more = len(conflicts) - len(named)
            raise NarrowError(
                f"the new ranges do not cover {', '.join(named)}"
                + (f" and {more} more allocations" if more else ""),
                conflicts=[(AddrRange(start, last), tag) for start, last, tag in conflicts],
                hint="release or move what is in the way, then try again",
            )

    # What a request may look like. The engines come here for everything but the plainest form.

    def _request(
        self, size: Any, align: Any, policy: Any, within: Any
    ) -> tuple[int, int, int, int, int]:
        """Return size, alignment, policy number, and the window cut inward to whole granules.

        Its first address is above its last when it has none.
        """
        size = self._size(size)
        align = self.granule if align is None else max(self._align(align), self.granule)
        if not isinstance(policy, str) or policy not in _POLICIES:
            raise RequestError(
                f"policy {policy!r} is not one of first, last, best", field="policy", value=policy
            )
        low, high = _window(within)
        low, high = (low + self.granule - 1) & -self.granule, (high + 1 & -self.granule) - 1
        return size, align, _POLICIES[policy], low, high

    def _request_at(self, start: Any, size: Any, align: Any) -> tuple[int, int]:
        """Return the first and last address of a place asked for."""
        size = self._size(size)
        start = _address(start, "start")
        align = self.granule if align is None else max(self._align(align), self.granule)
        if start & (align - 1):
            raise MisalignedError(
                f"start {start:#x} is not a multiple of "
                f"{'the granule' if align == self.granule else 'the alignment'} {align:#x}",
                field="start",
                value=start,
                align=align,
                hint=f"the multiples beside it are {start & -align:#x} and "
                f"{(start | (align - 1)) + 1:#x}",
            )
        return start, AddrRange.from_size(start, size).last

    @staticmethod
    def _request_release(start: Any, size: Any) -> tuple[int, int | None]:
        return _address(start, "start"), None if size is None else _integer(size, "size")

    def _size(self, value: Any) -> int:
        size = _integer(value, "size")
        if not 1 <= size <= ADDRESS_LAST + 1:
            raise RequestError(
                f"size {size:#x} is out of the range 1 byte to 2^64 bytes", field="size", value=size
            )
        if size & (self.granule - 1):
            raise MisalignedError(
                f"size {size:#x} is not a multiple of the granule {self.granule:#x}",
                field="size",
                value=size,
                align=self.granule,
                hint=f"sizes are not rounded; the next that works is "
                f"{(size | (self.granule - 1)) + 1:#x}",
            )
        return size

    @staticmethod
    def _align(align: Any) -> int:
        return check_granule(_integer(align, "align"), "align")

    # Refusals. The engines gather the facts in the same atomic step that failed.

    def _no_space(
        self,
        size: int,
        align: int,
        within: AddrRange | None,
        largest: tuple[int, int] | None,
        largest_aligned: int,
        total_free: int,
    ) -> NoReturn:
        where = "" if within is None else f" within {within}"
        span = None if largest is None else AddrRange(*largest)
        if span is None:
            detail = "nothing is free" + (" there" if where else "")
        else:
            detail = (
                f"the largest free span is {span} ({span.size:#x} bytes), the largest size that "
                f"fits at that alignment {largest_aligned:#x}, free in all {total_free:#x}"
            )
        hint = "release something, or take more of the address space"
        if where:
            hint = "widen the window, or release something inside it"
        elif span is not None and span.size >= size:
            hint = f"ask for a smaller alignment: {span} is large enough"
        elif total_free >= size:
            hint = "ask in several pieces: enough is free, but not in one span"
        raise NoSpaceError(
            f"no free span holds {size:#x} bytes aligned to {align:#x}{where}",
            size=size,
            align=align,
            largest_free=span,
            largest_aligned=largest_aligned,
            total_free=total_free,
            detail=detail,
            hint=hint,
        )

    def _refuse_at(self, start: int, last: int, owner: tuple[int, int, object] | None) -> NoReturn:
        """Say why a place cannot be had: not usable, or owned by `owner`."""
        wanted = AddrRange(start, last)
        if owner is None or wanted not in self._ranges:
            raise self._unusable(wanted)
        held = AddrRange(owner[0], owner[1])
        raise OccupiedError(
            f"{wanted} overlaps the allocation {held}{_of_tag(owner[2])}",
            range=wanted,
            owner=owner[2],
            owner_range=held,
            hint="release it first, or choose another place",
        )

    def _unusable(self, wanted: AddrRange) -> IovaError:
        usable = self._usable
        if _asks(usable):
            told: PlacementError | None = usable.refusal(wanted)
            if told is not None:
                return told
        ranges = self._ranges
        if wanted in ranges.as_set():
            seam = next(item for item in ranges.seams if item > wanted.start)
            return StraddleError(
                f"{wanted} crosses {seam:#x}, where one usable range stops and the next begins",
                range=wanted,
                seam=seam,
            )
        home = ranges.as_set().range_at(wanted.start)
        bad = wanted.start if home is None else home.last + 1
        below = [item.last for item in ranges if item.last < bad]
        limit = below[-1] if below else None
        return ApertureError(
            f"{wanted} is not usable from {bad:#x} on"
            + ("" if limit is None else f"; the last usable address below is {limit:#x}"),
            range=wanted,
            limit=limit,
        )

    def _refuse_release(
        self, start: Any, size: Any, found: tuple[int, int, object] | None
    ) -> NoReturn:
        """Say why `start` cannot be released; `found` is the allocation that holds it, or None."""
        if found is None:
            raise NotAllocatedError(f"nothing is allocated at {start:#x}", address=start)
        held = AddrRange(found[0], found[1])
        if held.start != start:
            raise NotAllocatedError(
                f"no allocation begins at {start:#x}; it lies inside {held}{_of_tag(found[2])}",
                address=start,
                hint=f"release {held.start:#x} to release the whole of it",
            )
        raise SizeMismatchError(
            f"the allocation {held}{_of_tag(found[2])} has {held.size:#x} bytes, not {size:#x}; "
            "nothing was released",
            value=size,
            range=held,
        )


def _numbers(buffer: Any, field: str) -> memoryview:
    """Open a buffer of 64-bit integers, as unsigned."""
    try:
        view = memoryview(buffer)
        fits = view.itemsize == 8 and view.c_contiguous and view.format[-1] in "QqLlNn"
    except TypeError:
        fits = False
    if not fits:
        raise RequestError(
            f"{field} must be a buffer of 64-bit integers", field=field, value=buffer
        )
    return view.cast("B").cast("Q")


def _output(buffer: Any, count: int, field: str) -> tuple[Numbers, memoryview]:
    """Return what the caller gets, and how to write to it."""
    result = array("Q", bytes(8 * count)) if buffer is None else buffer
    view = _numbers(result, field)
    if view.readonly or len(view) != count:
        raise RequestError(
            f"{field} must be writable and have {count} items", field=field, value=buffer
        )
    return result, view


def _of_tag(tag: object) -> str:
    return "" if tag is None else f" of {tag!r}"


def _integer(value: Any, field: str) -> int:
    """Return `value` as an int, if it is a whole number and no truth value."""
    if isinstance(value, bool):
        raise RequestError(f"{field} must be an int, not bool", field=field, value=value)
    try:
        return index(value)
    except TypeError:
        raise RequestError(
            f"{field} must be an int, not {type(value).__name__}", field=field, value=value
        ) from None


def _address(value: Any, field: str) -> int:
    address = _integer(value, field)
    if not 0 <= address <= ADDRESS_LAST:
        raise RangeOverflowError(
            f"{field} {address:#x} is outside of 0 to 2^64-1", field=field, value=value
        )
    return address


def _window(within: Any) -> tuple[int, int]:
    if within is None:
        return 0, ADDRESS_LAST
    if not isinstance(within, AddrRange):
        raise RequestError(
            f"within must be an AddrRange, not {type(within).__name__}",
            field="within",
            value=within,
        )
    return within.start, within.last


def _asks(usable: Any) -> bool:
    """Tell whether `usable` is what the judge returns, rather than plain ranges."""
    return not isinstance(usable, (RangeSet, MappableRanges))


def _ranges_of(usable: Any) -> MappableRanges:
    ranges = usable.ranges if _asks(usable) and hasattr(usable, "refusal") else usable
    if isinstance(ranges, RangeSet):
        return MappableRanges(ranges)
    if isinstance(ranges, MappableRanges):
        return ranges
    raise RequestError(
        f"usable must be a RangeSet, a MappableRanges or the judge's answer, "
        f"not {type(usable).__name__}",
        field="usable",
        value=usable,
    )


def _granule_of(usable: Any, granule: Any) -> int:
    ranges_know = _asks(usable) and hasattr(usable, "refusal")
    if granule is None:
        if not ranges_know:
            raise RequestError(
                "plain ranges do not tell their granule",
                field="granule",
                value=None,
                hint="give granule=, the smallest page size of the IOMMU",
            )
        granule = usable.granule
    unit = check_granule(granule)
    if ranges_know and unit < usable.granule:
        raise RequestError(
            f"granule {unit:#x} is below the {usable.granule:#x} that the host maps",
            field="granule",
            value=unit,
        )
    return unit


if TYPE_CHECKING:
    from vmm_iova.allocator.pure import Core as _Core
else:
    _Core = engine.core()


class IovaAllocator(_Core, _Contract):
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


@cache
def allocator_class(name: str | None = None) -> type[IovaAllocator]:
    """Return the allocator class of an engine, so that one process can hold both.

    Args:
        name: "fast" or "pure"; default is the engine in force, whose class is `IovaAllocator`.

    Raises:
        EngineError: there is no such engine here.
    """
    wanted = engine.core(name)
    if wanted is _Core:
        return IovaAllocator
    doc = IovaAllocator.__doc__
    return type("IovaAllocator", (wanted, _Contract), {"__slots__": (), "__doc__": doc})
