# SPDX-License-Identifier: Apache-2.0
"""What a request may look like, and every refusal with its facts: the same on both engines."""

from __future__ import annotations

import sys
from array import array
from contextlib import contextmanager
from operator import index
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

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

if TYPE_CHECKING:
    from collections.abc import Iterator

Numbers = Any
"""Any contiguous buffer of 64-bit integers: an `array`, a `memoryview`, a NumPy array."""

Policy = Literal["first", "last", "best"]
"""Which of the free places that fit is taken."""

Held = tuple[int, int, object]
"""An allocation as the engines give it: first and last address, tag."""

Facts = tuple[tuple[int, int] | None, int, int]
"""Of a refusal: the largest free span, the largest size that fits at that alignment, all free."""

_NATIVE_ORDER = ("", "@", "=", "<" if sys.byteorder == "little" else ">")
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


def never_set_up() -> RequestError:
    """Return the error of a change to an allocator whose `__init__` did not run to its end."""
    return RequestError(
        "this allocator was never set up",
        field="self",
        value=None,
        hint="a class derived from IovaAllocator must call super().__init__(...) first",
    )


def set_up_twice() -> RequestError:
    """Return the error of a second `__init__`."""
    return RequestError(
        "this allocator is set up already, and may have given out addresses",
        field="self",
        value=None,
        hint="make another one instead of calling __init__ again",
    )


def open_already(transaction: object) -> RequestError:
    """Return the error of entering a transaction that is open."""
    return RequestError(
        "the transaction is open already",
        field="transaction",
        value=transaction,
        hint="call transaction() again to nest another in it",
    )


def not_open(transaction: object) -> RequestError:
    """Return the error of leaving, or rolling back, a transaction that is not open."""
    return RequestError(
        "the transaction is not open",
        field="transaction",
        value=transaction,
        hint="enter it with a `with` statement first; after that its changes are final",
    )


class Contract:
    """The rules that stand between a caller and an engine."""

    __slots__ = ()

    _set_up_twice = staticmethod(set_up_twice)
    _open_already = staticmethod(open_already)
    _not_open = staticmethod(not_open)

    if TYPE_CHECKING:
        # Of the engine: each is one atomic step.
        @property
        def granule(self) -> int:
            """Bytes; sizes and places are multiples of it."""

        @property
        def _usable(self) -> Any: ...
        @property
        def _ranges(self) -> MappableRanges: ...
        def _swap(
            self, before: MappableRanges, usable: Any, ranges: MappableRanges
        ) -> list[Held] | None: ...
        def _counts(self) -> tuple[MappableRanges, int, int]: ...
        def _snapshot(self) -> tuple[Any, Any, dict[int, object]]: ...
        def _gaps(self, start: int, last: int) -> tuple[Any, Any]: ...
        def _check_core(self) -> None: ...

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
        low, high = window_of(within)
        low, high = (low + self.granule - 1) & -self.granule, (high + 1 & -self.granule) - 1
        return size, align, _POLICIES[policy], low, high

    def _request_at(self, start: Any, size: Any, align: Any) -> tuple[int, int]:
        """Return the first and last address of a place asked for."""
        size = self._size(size)
        start = address_of(start, "start")
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

    def _request_release(self, start: Any, size: Any) -> tuple[int, int | None]:
        self._must_be_set_up()
        return address_of(start, "start"), None if size is None else _integer(size, "size")

    def _must_be_set_up(self) -> None:
        if self._usable is None:
            raise never_set_up()

    def _size(self, value: Any) -> int:
        self._must_be_set_up()
        size = _integer(value, "size")
        if not 1 <= size <= ADDRESS_LAST + 1:
            raise RequestError(
                f"size {size:#x} is out of the range 1 byte to 2^64 bytes", field="size", value=size
            )
        if size > ADDRESS_LAST and self.granule == 1:
            raise RequestError(
                "2^64 bytes cannot be one allocation where the granule is one byte",
                field="size",
                value=size,
                hint="take it in two pieces, or make the allocator with a granule of 2 or more",
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
        facts: Facts,
    ) -> NoReturn:
        largest, largest_aligned, total_free = facts
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
        elif span is not None and span.size >= size and align == self.granule:
            hint = "address 0 is not chosen by itself: place it with allocate_at(), or make the "
            hint += "allocator with allow_zero=True"
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

    @staticmethod
    def _refuse_at(
        start: int, last: int, owner: Held | None, usable: Any, ranges: MappableRanges
    ) -> NoReturn:
        """Say why a place cannot be had: not usable, or owned by `owner`."""
        wanted = AddrRange(start, last)
        if owner is None or wanted not in ranges:
            raise _unusable(wanted, usable, ranges)
        held = AddrRange(owner[0], owner[1])
        raise OccupiedError(
            f"{wanted} overlaps the allocation {held}{_of_tag(owner[2])}",
            range=wanted,
            owner=owner[2],
            owner_range=held,
            hint="release it first, or choose another place",
        )

    @staticmethod
    def _refuse_release(start: Any, size: Any, owner: Held | None) -> NoReturn:
        """Say why `start` cannot be released; `owner` is the allocation that holds it, or None."""
        if owner is None:
            raise NotAllocatedError(f"nothing is allocated at {start:#x}", address=start)
        held = AddrRange(owner[0], owner[1])
        if held.start != start:
            raise NotAllocatedError(
                f"no allocation begins at {start:#x}; it lies inside {held}{_of_tag(owner[2])}",
                address=start,
                hint=f"release {held.start:#x} to release the whole of it",
            )
        raise SizeMismatchError(
            f"the allocation {held}{_of_tag(owner[2])} has {held.size:#x} bytes, not {size:#x}; "
            "nothing was released",
            value=size,
            range=held,
        )

    # New ranges.

    def _change_ranges(self, usable: Any, *, wider: bool) -> None:
        """Adopt ranges that have no address less than the present ones, or no address more."""
        self._must_be_set_up()
        if _asks(usable) and hasattr(usable, "refusal") and usable.granule > self.granule:
            raise RequestError(
                f"the new ranges have the granule {usable.granule:#x}, above the {self.granule:#x} "
                "of what was already allocated",
                field="usable",
                value=usable,
                hint="begin with the largest granule of all devices that will be attached",
            )
        ranges = ranges_of(usable).align_inward(self.granule)
        conflicts = None
        while conflicts is None:  # once, but where another call changes the ranges meanwhile
            before = self._ranges
            lost, extra = before.as_set() - ranges.as_set(), ranges.as_set() - before.as_set()
            if wider and lost:
                raise RequestError(
                    f"widen() was given ranges without {lost[0]}, which is usable now",
                    field="usable",
                    value=usable,
                    hint="take what an attached device forbids with narrow()",
                )
            if not wider and extra:
                raise RequestError(
                    f"narrow() was given {extra[0]}, which is not usable now",
                    field="usable",
                    value=usable,
                    hint="take what a detached device gives back with widen()",
                )
            conflicts = self._swap(before, usable, ranges)
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

    @staticmethod
    @contextmanager
    def _naming_item(number: int) -> Iterator[None]:
        try:
            yield
        except IovaError as error:
            error.add_note(f"item {number} of the batch; the whole of it was undone")
            raise

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
        if self._counts() != (self._ranges, total, count):
            raise InvariantError(f"{count} allocations of {total:#x} bytes, but {self!r}")
        # INVARIANT: allocated and free together are the usable ranges, disjoint.
        free = [AddrRange(*span) for span in zip(*self._gaps(0, ADDRESS_LAST), strict=True)]
        if sum(span.size for span in free) + total != self._ranges.size:
            raise InvariantError("free and allocated do not add up to the usable ranges")
        if any(span not in self._ranges for span in free):
            raise InvariantError("a free span is out of place")


def _unusable(wanted: AddrRange, usable: Any, ranges: MappableRanges) -> IovaError:
    if _asks(usable):
        reason: PlacementError | None = usable.refusal(wanted)
        if reason is not None:
            return reason
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


def numbers_of(buffer: Any, field: str) -> memoryview:
    """Open a buffer of 64-bit integers of this machine's byte order, as unsigned ones in a row."""
    try:
        view = memoryview(buffer)
    except (TypeError, BufferError):
        view = memoryview(b"")
    order, letter = view.format[:-1], view.format[-1:]
    if (
        view.itemsize != 8
        or not view.c_contiguous
        or order not in _NATIVE_ORDER
        or letter not in ("Q", "q", "L", "l", "N", "n")
    ):
        raise RequestError(
            f"{field} must be a contiguous buffer of native 64-bit integers",
            field=field,
            value=buffer,
        )
    # A cast refuses a shape that has a 0 in it.
    return view.cast("B").cast("Q") if view.nbytes else memoryview(bytearray()).cast("Q")


def output_of(buffer: Any, count: int, field: str) -> tuple[Numbers, memoryview]:
    """Return what the caller gets, and how to write to it."""
    result = array("Q", bytes(8 * count)) if buffer is None else buffer
    view = numbers_of(result, field)
    if memoryview(result).readonly:
        raise RequestError(f"{field} must be writable", field=field, value=buffer)
    if len(view) != count:
        raise RequestError(
            f"{field} must have {count} items, not {len(view)}", field=field, value=buffer
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


def address_of(value: Any, field: str) -> int:
    """Return an address of the 64-bit space."""
    address = _integer(value, field)
    if not 0 <= address <= ADDRESS_LAST:
        raise RangeOverflowError(
            f"{field} {address:#x} is outside of 0 to 2^64-1", field=field, value=value
        )
    return address


def window_of(within: Any) -> tuple[int, int]:
    """Return the first and last address of a window, which is everything when it is None."""
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


def ranges_of(usable: Any) -> MappableRanges:
    """Return where one allocation may lie, of plain ranges or of the judge's answer."""
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


def granule_of(usable: Any, granule: Any) -> int:
    """Return the granule that was asked for, or else the one of the judge's answer."""
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
