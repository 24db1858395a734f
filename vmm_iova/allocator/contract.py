# SPDX-License-Identifier: Apache-2.0
"""What a request may look like, and every refusal with its facts: the same on both engines."""

from __future__ import annotations

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


class Contract:
    """The rules that stand between a caller and an engine."""

    __slots__ = ()

    if TYPE_CHECKING:
        granule: int
        _usable: Any
        _ranges: MappableRanges

        def __len__(self) -> int: ...
        def _swap(self, usable: Any, ranges: MappableRanges) -> list[Held]: ...
        def _snapshot(self) -> tuple[Any, Any, dict[int, object]]: ...
        def _gaps(self, start: int, last: int) -> tuple[Any, Any]: ...
        def _allocated(self) -> int: ...
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

    @staticmethod
    def _request_release(start: Any, size: Any) -> tuple[int, int | None]:
        return address_of(start, "start"), None if size is None else _integer(size, "size")

    def _size(self, value: Any) -> int:
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

    def _refuse_at(self, start: int, last: int, owner: Held | None) -> NoReturn:
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
            reason: PlacementError | None = usable.refusal(wanted)
            if reason is not None:
                return reason
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

    def _refuse_release(self, start: Any, size: Any, owner: Held | None) -> NoReturn:
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

    def _new_ranges(self, usable: Any) -> MappableRanges:
        ranges = ranges_of(usable)
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
        if total != self._allocated() or count != len(self):
            raise InvariantError(f"{count} allocations of {total:#x} bytes, but {self!r}")
        # INVARIANT: allocated and free together are the usable ranges, disjoint.
        free = [AddrRange(*span) for span in zip(*self._gaps(0, ADDRESS_LAST), strict=True)]
        if sum(span.size for span in free) + total != self._ranges.size:
            raise InvariantError("free and allocated do not add up to the usable ranges")
        if any(span not in self._ranges for span in free):
            raise InvariantError("a free span is out of place")


def numbers_of(buffer: Any, field: str) -> memoryview:
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


def output_of(buffer: Any, count: int, field: str) -> tuple[Numbers, memoryview]:
    """Return what the caller gets, and how to write to it."""
    result = array("Q", bytes(8 * count)) if buffer is None else buffer
    view = numbers_of(result, field)
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
